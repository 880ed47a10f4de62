"""AdamW with one learning rate for the fusion and one for LoRA, and the schedule as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay."""

    lr_fusion: float = 5e-4  # peak learning rate of fusion and projection
    lr_lora: float = 3e-4  # peak learning rate of LoRA
    weight_decay: float = 0.01  # on matrices only
    beta1: float = 0.9
    beta2: float = 0.98
    warmup_steps: int = 10
    final_ratio: float = 0.05  # last learning rate / peak
    clip_norm: float = 1.0  # of the gradient over all trainables

    def __post_init__(self) -> None:
        for name in ("lr_fusion", "lr_lora", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"trainer.optim.{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "final_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"trainer.optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.warmup_steps < 0 or not 0 <= self.weight_decay < math.inf:
            raise UserError("trainer.optim.warmup_steps and trainer.optim.weight_decay must not be negative")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainables: groups named fusion and lora, each with and without weight decay."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "fusion" if ".fusion." in f".{name}" else "lora"
            groups.setdefault((part, parameter.dim() >= 2), []).append(parameter)
    listed = [
        {
            "params": parameters,
            "name": part,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "lr": config.lr_fusion if part == "fusion" else config.lr_lora,
        }
        for (part, is_matrix), parameters in sorted(groups.items(), key=lambda pair: pair[0])
    ]
    return torch.optim.AdamW(listed, betas=(config.beta1, config.beta2))


def schedule(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor on the peak learning rate at step 0, 1, ...: linear warm-up, then cosine to `final_ratio` at the last."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step + 1 - config.warmup_steps) / span)
    return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, config: OptimConfig) -> None:
    """Set each group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = factor * (config.lr_fusion if group["name"] == "fusion" else config.lr_lora)
