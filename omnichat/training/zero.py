"""DeepSpeed's ZeRO-2 and ZeRO-3: an engine that keeps AdamW's state, gradients and (3) weights in a piece per process.

The engine is started on the processes that accelerate has begun. accelerate's own wrapper of it steps inside
`backward`, where a loss that is not finite could no longer be refused, and does not count processes without a GPU.
Weights keep their types; the gradient is summed and the update made in float32, as under DDP.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.training.checkpoint import MOMENTS
from omnichat.training.optim import OptimConfig, build_optimizer
from omnichat.utils.errors import UserError


def installed() -> bool:
    """Whether DeepSpeed is there."""
    return importlib.util.find_spec("deepspeed") is not None


def engine_config(stage: int, clip_norm: float, autocast: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration of a stage."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # only to be stated: batches are ours, and weighted by their tokens
        "gradient_accumulation_steps": 1,  # losses are divided before backward; `no_sync` marks the last micro-batch
        "gradient_clipping": clip_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        # The engine would switch autocast off; no module's gradient is reduced in bfloat16.
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }


class ZeroOptimizer:
    """AdamW in pieces, of which each process steps its own.

    Args:
        model: whose trainables it steps; in pieces, too, when the stage is 3.
        optim: of the groups, and of the gradient's clipping.
        stage: 2 or 3.
        device: of this process.
        autocast: whether the forward pass runs in bfloat16.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, stage: int, device: torch.device, autocast: bool) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        self.stage = stage
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, optim),
            config=engine_config(stage, optim.clip_norm, autocast),
            dist_init_required=False,
        )
        self.engine.set_gradient_accumulation_boundary(True)
        self._trainables = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._sharded = self.engine.optimizer
        self._state = self._sharded.optimizer.state
        self._pieces = (
            self._sharded.single_partition_of_fp32_groups if stage == 2 else self._sharded.fp32_partitioned_groups_flat
        )
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
            from deepspeed.utils import safe_set_full_grad

            value = next(iter(self._trainables.values()))
            shape = getattr(value, "ds_shape", value.shape)
            safe_set_full_grad(value, torch.full(shape, torch.nan, device=value.device))  # the engine drops it
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
            own = self._trainables[name]
            shape = torch.Size() if key == "step" else getattr(own, "ds_shape", own.shape)
            if value.shape != shape:
                raise UserError(f"checkpoint: optimizer state {full} is {tuple(value.shape)}, not {tuple(shape)}")
        self._sharded.refresh_fp32_params()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if key != "step":
                self._set(self._trainables[name], key, value)
        for piece in self._pieces if tensors else []:
            self._state[piece]["step"].fill_(float(next(v for k, v in tensors.items() if k.endswith("/step"))))

    def _set(self, own: Any, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(own.device)
        if self.stage == 2:
            safe_set_full_optimizer_state(own, value, key)
            return
        size, rank = own.ds_tensor.numel(), torch.distributed.get_rank()  # the last piece is padded
        padded = nn.functional.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
        safe_set_local_optimizer_state(own, padded[size * rank : size * (rank + 1)], key)


def is_engine(wrapped: Any) -> bool:
    """Whether a wrapped model is DeepSpeed's engine."""
    return hasattr(wrapped, "set_gradient_accumulation_boundary")


def in_pieces(model: nn.Module) -> bool:
    """Whether a model's weights are cut by ZeRO-3."""
    return any(hasattr(value, "ds_id") for value in model.parameters())


def whole_trainables(model: nn.Module, loading: bool = False) -> contextlib.AbstractContextManager[Any]:
    """The trainables whole in every process; with `loading`, cut again from what the first one has then. Collective."""
    if not in_pieces(model):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    trainables = [value for value in model.parameters() if value.requires_grad]
    gathered: contextlib.AbstractContextManager[Any] = GatheredParameters(trainables, 0 if loading else None)
    return gathered
