"""How a model is spread over processes, and its whole state gathered from them.

A checkpoint holds every tensor whole, by the same name and in the same shape whatever the strategy, so a run may go on
under another one. All functions here are collective: every process calls them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from omnichat.model.omnichat import OmniChat
from omnichat.training import checkpoint as ckpt
from omnichat.training.optim import OptimConfig, build_optimizer
from omnichat.training.processes import LaunchConfig
from omnichat.training.zero import ZeroOptimizer, gathered_model, gathered_weights, is_cut, is_engine


def spread(model: OmniChat, optim: OptimConfig, accelerator: Accelerator, launch: LaunchConfig) -> tuple[Any, Any]:
    """Put the model onto its devices. Returns (what to call instead of the model, AdamW itself or a ZeroOptimizer)."""
    if launch.strategy == "fsdp2":
        shard(model, accelerator, launch.offload_params)
        return model, build_optimizer(model, optim)
    if launch.strategy in ("zero2", "zero3"):
        stage = int(launch.strategy[-1])
        zero = ZeroOptimizer(model, optim, accelerator.device, accelerator.native_amp, stage)
        return zero.engine, zero
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
    return isinstance(model, FSDPModule) or _is_zero3(model)


def backward(wrapped: Any, accelerator: Accelerator, loss: Tensor) -> None:
    """Add the gradient of a loss; outside `no_sync`, averaged over the processes."""
    if is_engine(wrapped):
        wrapped.backward(loss)
    else:
        accelerator.backward(loss)


def update(optimizer: Any, accelerator: Accelerator, clip_norm: float, allowed: bool) -> float | None:
    """Clip the gradient, step, and forget the gradient.

    Returns:
        The gradient's norm before clipping, equal on all processes; None if it was not finite or the update not
        allowed, and nothing was changed.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.update(allowed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(whole(accelerator.clip_grad_norm_(parameters, clip_norm)))
    if done := allowed and math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm if done else None


@contextlib.contextmanager
def no_sync(wrapped: Any, accelerator: Accelerator) -> Iterator[None]:
    """Backward passes in here leave their gradients in this process: they are reduced with the next one outside."""
    if is_engine(wrapped):
        wrapped.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            wrapped.set_gradient_accumulation_boundary(True)
        return
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
    if _is_zero3(model):
        with gathered_model(model):
            yield
        return
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
    if _is_zero3(model):
        with gathered_weights(_checkpointed(model)):
            return {name: value.cpu().clone() for name, value in model.trainable_state().items()}
    return {name: whole(value.detach()).cpu() for name, value in model.trainable_state().items()}


def load_trainable_state(model: OmniChat, state: dict[str, Tensor]) -> None:
    """Put back what `trainable_state` gave. Raises UserError naming the first tensor that does not fit."""
    if _is_zero3(model):
        with gathered_weights(_checkpointed(model), write=True):
            model.load_trainable_state(state)
        return
    own = model.trainable_state()
    model.load_trainable_state({name: _cut_like(own.get(name), value) for name, value in state.items()})


def _is_zero3(model: OmniChat) -> bool:
    return any(is_cut(parameter) for parameter in model.parameters())


def _checkpointed(model: OmniChat) -> list[Tensor]:
    """The parameters in a checkpoint: the fusion's and whatever else trains."""
    fusion = set() if model.fusion is None else set(model.fusion.parameters())
    return [parameter for parameter in model.parameters() if parameter.requires_grad or parameter in fusion]


def optimizer_state(optimizer: Any, model: OmniChat) -> dict[str, Tensor]:
    """AdamW's state, whole, on the CPU."""
    zero = isinstance(optimizer, ZeroOptimizer)
    tensors = optimizer.tensors() if zero else ckpt.optimizer_tensors(optimizer, model)
    return {name: whole(value.detach()).cpu() for name, value in tensors.items()}


def load_optimizer_state(optimizer: Any, model: OmniChat, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, after the trainables. Raises UserError where it does not fit."""
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.load(tensors)
        return
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
