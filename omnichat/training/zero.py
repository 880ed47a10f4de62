"""DeepSpeed's ZeRO-2: an engine that keeps AdamW's state and gradients in a piece per process, and all weights in each.

The engine is started on the processes that accelerate has begun. accelerate's own wrapper of it steps inside
`backward`, where a loss that is not finite could no longer be refused, and does not count processes without a GPU.
Weights keep their types; the gradient is summed and the update made in float32, as under DDP.
"""

from __future__ import annotations

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


def engine_config(clip_norm: float, autocast: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # only to be stated: batches are ours, and weighted by their tokens
        "gradient_accumulation_steps": 1,  # losses are divided before backward; `no_sync` marks the last micro-batch
        "gradient_clipping": clip_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        # The engine would switch autocast off; no module's gradient is reduced in bfloat16.
        "torch_autocast": {"enabled": autocast, "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }


class ZeroOptimizer:
    """AdamW in pieces, of which each process steps its own.

    Args:
        model: whose trainables it steps.
        optim: of the groups, and of the gradient's clipping.
        device: of this process.
        autocast: whether the forward pass runs in bfloat16.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, device: torch.device, autocast: bool) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, optim),
            config=engine_config(optim.clip_norm, autocast),
            dist_init_required=False,
        )
        self.engine.set_gradient_accumulation_boundary(True)
        self._trainables = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._sharded = self.engine.optimizer
        self._state = self._sharded.optimizer.state
        self._pieces = self._sharded.single_partition_of_fp32_groups
        for piece in self._pieces:  # there before the first step, so that a checkpoint can be put into it
            moments = {key: torch.zeros_like(piece) for key in MOMENTS if key != "step"}
            self._state[piece] = {"step": torch.tensor(0.0), **moments}
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
            safe_set_full_grad(value, torch.full_like(value, torch.nan))  # the engine drops it
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
        from deepspeed.utils import safe_set_full_optimizer_state

        wanted = {f"{name}/{key}" for name in self._trainables for key in MOMENTS}
        if tensors and (other := sorted(wanted ^ set(tensors))):
            raise UserError(f"checkpoint: optimizer state of other tensors than this model trains, e.g. {other[0]}")
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            shape = torch.Size() if key == "step" else self._trainables[name].shape
            if value.shape != shape:
                raise UserError(f"checkpoint: optimizer state {full} is {tuple(value.shape)}, not {tuple(shape)}")
        self._sharded.refresh_fp32_params()
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if key != "step":
                own = self._trainables[name]
                safe_set_full_optimizer_state(own, value.to(own.device), key)
        for piece in self._pieces if tensors else []:
            self._state[piece]["step"].fill_(float(next(v for k, v in tensors.items() if k.endswith("/step"))))


def is_engine(wrapped: Any) -> bool:
    """Whether a wrapped model is DeepSpeed's engine."""
    return hasattr(wrapped, "set_gradient_accumulation_boundary")
