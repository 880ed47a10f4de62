"""Settings of a trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from omnichat.training.loss import LossConfig
from omnichat.training.optim import OptimConfig
from omnichat.training.speed import SpeedConfig
from omnichat.training.watch import WatchConfig
from omnichat.utils.errors import UserError, one_of

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Length, precision and rhythm of a run."""

    steps: int | None = 200  # optimiser steps; null = as many as mixture.one_pass_of takes
    micro_batches: int = 1  # batches of loader.batch_tokens whose gradients make a step, over all processes together
    precision: str = "auto"  # auto (bf16 where the hardware multiplies it natively) | bf16 | fp32
    log_every: int = 1  # steps between rows of log.jsonl
    dev_every: int = 50  # steps between dev losses; 0 = at the end only
    checkpoint_every: int = 50  # steps between checkpoints; the last step always has one
    keep_last: int = 2  # checkpoints kept, besides the one with the best dev loss
    calibration_clips: int = 128  # recordings whose features set the fusion's standardisation; 0 = leave it out
    preflight: bool = True  # run the largest batches once before the first step: out of memory at once or not at all
    max_skips: int = 5  # steps in a row that may be skipped for a loss or gradient that is not finite
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("micro_batches", 1),
            ("log_every", 1),
            ("dev_every", 0),
            ("checkpoint_every", 1),
            ("keep_last", 1),
            ("calibration_clips", 0),
            ("max_skips", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"trainer.{name} must be at least {least}, got {value}")
        if self.precision not in PRECISIONS:
            raise one_of("trainer.precision", self.precision, PRECISIONS)


def resolve_precision(precision: str) -> str:
    """Turn "auto" into bf16 or fp32: bf16 where this machine's matrix units take it."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"
