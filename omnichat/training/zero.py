"""DeepSpeed's ZeRO-2 and ZeRO-3: an engine that keeps AdamW's state and gradients in a piece per process.

ZeRO-2 has all weights in each process, ZeRO-3 a piece of each, the frozen ones too; a module's weights are gathered
while it runs. The engine is started on the processes that accelerate has begun. accelerate's own wrapper of it steps
inside `backward`, where a loss that is not finite could no longer be refused, and does not count processes without a
GPU. Weights keep their types; the gradient is summed and the update made in float32, as under DDP.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnichat.training.checkpoint import MOMENTS
from omnichat.training.optim import OptimConfig, build_optimizer
from omnichat.utils.errors import UserError

PERSIST_BELOW = 100_000  # elements; ZeRO-3 leaves smaller tensors whole, which take little room and long to gather
LARGEST_BUCKET = 500_000_000  # gradient elements that are reduced at once, DeepSpeed's own


def installed() -> bool:
    """Whether DeepSpeed is there."""
    return importlib.util.find_spec("deepspeed") is not None


def engine_config(stage: int, elements: int, clip_norm: float, autocast: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration, for so many trainable elements."""
    # A buffer of this size is held all the time: the gradients of LoRA and fusion need no 2 GB.
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(elements, LARGEST_BUCKET)}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSIST_BELOW
    return {
        "train_micro_batch_size_per_gpu": 1,  # only to be stated: batches are ours, and weighted by their tokens
        "gradient_accumulation_steps": 1,  # losses are divided before backward; `no_sync` marks the last micro-batch
        "gradient_clipping": clip_norm,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        # The engine would switch autocast off; no module's gradient is reduced in bfloat16.
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }


class ZeroOptimizer:
    """AdamW in pieces, of which each process steps its own.

    Args:
        model: whose trainables it steps; ZeRO-3 cuts its weights.
        optim: of the groups, and of the gradient's clipping.
        device: of this process.
        autocast: whether the forward pass runs in bfloat16.
        stage: 2 or 3.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, device: torch.device, autocast: bool, stage: int) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        self._trainables = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._shapes = {name: value.shape for name, value in self._trainables.items()}
        elements = sum(value.numel() for value in self._trainables.values())
        config = engine_config(stage, elements, optim.clip_norm, autocast)
        optimizer = build_optimizer(model, optim)  # sorts by dimensions, which cut weights have lost
        if stage == 3:
            _cut(model, config, device)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.engine.set_gradient_accumulation_boundary(True)
        self._sharded = self.engine.optimizer
        self._state = self._sharded.optimizer.state
        pieces = {2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}
        self._pieces = getattr(self._sharded, pieces[stage])
        for piece in self._pieces:  # there before the first step, so that a checkpoint can be put into it
            moments = {key: torch.zeros_like(piece) for key in MOMENTS if key != "step"}
            self._state[piece] = {"step": torch.tensor(0.0), **moments}
        if stage == 2:
            self._sharded._lazy_init_hp_params_optimizer_state()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of `build_optimizer`, over pieces: names and learning rates are as they were."""
        groups: list[dict[str, Any]] = self._sharded.param_groups
        return groups

    def update(self, allowed: bool) -> float | None:
        """Clip the gradient, step and forget the gradient; the same on every process.

        Returns:
            The gradient's norm; None if it was not finite or the update not allowed, and nothing was changed.
        """
        if not allowed:
            self._spoil_gradient()  # the engine drops it
        self.engine.step()
        return None if self._sharded.overflow else float(self.engine.get_global_grad_norm())

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's state, whole, by the names of `checkpoint.optimizer_tensors`. Collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self._state[self._pieces[0]]["step"]
        if step == 0:
            return {}
        return {
            f"{name}/{key}": step.clone() if key == "step" else safe_get_full_optimizer_state(value, key).clone()
            for name, value in self._trainables.items()
            for key in MOMENTS
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave, and take over the weights that the model has been given.

        Raises:
            UserError: it is not the state of what this model trains; nothing was changed.
        """
        wanted = {f"{name}/{key}" for name in self._trainables for key in MOMENTS}
        if tensors and (other := sorted(wanted ^ set(tensors))):
            raise UserError(f"checkpoint: optimizer state of other tensors than this model trains, e.g. {other[0]}")
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            shape = torch.Size() if key == "step" else self._shapes[name]
            if value.shape != shape:
                raise UserError(f"checkpoint: optimizer state {full} is {tuple(value.shape)}, not {tuple(shape)}")
        self._sharded.refresh_fp32_params()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if key != "step":
                self._put_moment(self._trainables[name], value, key)
        for piece in self._pieces if tensors else []:
            self._state[piece]["step"].fill_(float(next(v for k, v in tensors.items() if k.endswith("/step"))))

    def _spoil_gradient(self) -> None:
        from deepspeed.utils import safe_set_full_grad, safe_set_local_grad

        value: Any = next(iter(self._trainables.values()))
        if is_cut(value):
            safe_set_local_grad(value, torch.full_like(value.ds_tensor, torch.nan))
        else:
            safe_set_full_grad(value, torch.full_like(value, torch.nan))

    @staticmethod
    def _put_moment(own: Any, value: Tensor, key: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(own.device)
        if not is_cut(own):
            safe_set_full_optimizer_state(own, value, key)
            return
        # DeepSpeed's own cutting fails where a tensor cannot be shared evenly and the last piece is padded.
        size = own.ds_tensor.numel()
        padded = F.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
        safe_set_local_optimizer_state(own, padded.narrow(0, size * torch.distributed.get_rank(), size), key)


def _cut(model: nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Cut every weight into one piece a process, one after the other: the whole model is never on the device."""
    import deepspeed

    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    for buffer in model.buffers():  # small, and whole in every process
        buffer.data = buffer.data.to(device)
    for module in model.modules():  # containers without a forward pass of their own: whoever holds them gathers
        for child in module.children():
            if isinstance(child, nn.ParameterDict | nn.ParameterList):
                for parameter in child.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)


def is_cut(parameter: Any) -> bool:
    """Whether ZeRO-3 has cut a parameter."""
    return hasattr(parameter, "ds_tensor")


@contextlib.contextmanager
def gathered_weights(parameters: Iterable[Tensor], write: bool = False) -> Iterator[None]:
    """Parameters that ZeRO-3 has cut, whole in every process. Collective.

    Args:
        parameters: some of one model's.
        write: whether what the first process has made of them is kept.
    """
    import deepspeed

    listed: list[Any] = list(parameters)
    listed[0]._z3_optimizer.parameter_offload.partition_all_parameters()  # some may still be on their way, unasked
    with deepspeed.zero.GatheredParameters(listed, modifier_rank=0 if write else None):
        yield


@contextlib.contextmanager
def gathered_model(model: nn.Module) -> Iterator[None]:
    """All that ZeRO-3 has cut, whole in every process, and no module gathers or waits for other processes meanwhile."""
    listed: list[Any] = list(model.parameters())
    offload = listed[0]._z3_optimizer.parameter_offload
    with gathered_weights(listed):
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(model)


def is_engine(wrapped: Any) -> bool:
    """Whether a wrapped model is DeepSpeed's engine."""
    return hasattr(wrapped, "set_gradient_accumulation_boundary")
