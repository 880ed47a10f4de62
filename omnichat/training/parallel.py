"""How a model is spread over processes, and its whole state gathered from them.

A checkpoint holds every tensor whole, by the same name and in the same shape whatever the strategy, so a run may go on
under another one. All functions here are collective: every process calls them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from omnichat.model.omnichat import OmniChat
from omnichat.training import checkpoint as ckpt
from omnichat.training.optim import OptimConfig, build_optimizer
from omnichat.training.processes import LaunchConfig


def spread(
    model: OmniChat, optim: OptimConfig, accelerator: Accelerator, launch: LaunchConfig
) -> tuple[Any, torch.optim.Optimizer]:
    """Put the model onto its devices. Returns (what to call instead of the model, AdamW itself)."""
    if launch.strategy == "fsdp2":
        shard(model, accelerator, launch.offload_params)
        return model, build_optimizer(model, optim)
    optimizer = build_optimizer(model, optim)
    # The scheduler is ours (a prepared one steps once a process), so only model and optimiser are prepared.
    wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, getattr(prepared, "optimizer", prepared)


def shard(model: OmniChat, accelerator: Accelerator, offload: bool) -> None:
    """Cut every tensor of the model into one piece a process (FSDP2): each decoder layer whole again while it runs.

    Frozen weights keep their type and trainables float32, so the numbers are those of DDP; autocast does the rest.
    """
    device = accelerator.device
    model.to(device)
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for layer in model.llm.get_base_model().get_decoder().layers:
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)


def forward_is_collective(model: OmniChat) -> bool:
    """Whether a forward pass of one process waits for one of every other."""
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def no_sync(wrapped: Any, accelerator: Accelerator) -> Iterator[None]:
    """Backward passes in here leave their gradients in this process: they are reduced with the next one outside."""
    if not isinstance(wrapped, FSDPModule):
        with accelerator.no_sync(wrapped):
            yield
        return
    wrapped.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        wrapped.set_requires_gradient_sync(True)


@contextlib.contextmanager
def gathered(model: OmniChat) -> Iterator[None]:
    """The whole model in every process, for calls that are not its forward pass (generation) and that each process
    makes as often as it likes. Needs memory for all of it."""
    pieces = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for piece in pieces:
        piece.unshard()
        piece.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for piece in pieces:
            piece.set_reshard_after_forward(piece is not model, recurse=False)  # the root stays whole until backward
            piece.reshard()


def whole(value: Tensor) -> Tensor:
    """A tensor that may be cut over processes, as one plain tensor in each of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def trainable_state(model: OmniChat) -> dict[str, Tensor]:
    """Every trainable, whole, on the CPU, by the names that checkpoints use."""
    return {name: whole(value.detach()).cpu() for name, value in model.trainable_state().items()}


def load_trainable_state(model: OmniChat, state: dict[str, Tensor]) -> None:
    """Put back what `trainable_state` gave. Raises UserError naming the first tensor that does not fit."""
    own = model.trainable_state()
    model.load_trainable_state({name: _cut_like(own.get(name), value) for name, value in state.items()})


def optimizer_state(optimizer: torch.optim.Optimizer, model: OmniChat) -> dict[str, Tensor]:
    """AdamW's state, whole, on the CPU."""
    return {name: whole(value.detach()).cpu() for name, value in ckpt.optimizer_tensors(optimizer, model).items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: OmniChat, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave. Raises UserError where it does not fit."""
    parameters = dict(model.named_parameters())
    cut = {  # a moment has its parameter's shape, and a scalar (the number of steps) is never cut
        name: _cut_like(parameters.get(name.rpartition("/")[0]), value) if value.dim() else value
        for name, value in tensors.items()
    }
    ckpt.load_optimizer_tensors(optimizer, model, cut)


def _cut_like(own: Tensor | None, value: Tensor) -> Tensor:
    """`value`, which every process has whole, cut over processes as `own` is; one that does not fit is left as it is,
    for whoever loads it to refuse."""
    if not isinstance(own, DTensor) or own.shape != value.shape:
        return value
    value = value.to(own.to_local().device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
