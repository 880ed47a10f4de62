"""Learning-rate range test (Smith 2017, Cyclical Learning Rates, section 3.3): the rates grow from step to step by one
factor, and the loss tells from where on they help and from where on they harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from omnichat.data.batching import Place
from omnichat.training.optim import OptimConfig
from omnichat.training.trainer import Trainer
from omnichat.utils.errors import UserError, one_of

WHICH = ("both", "fusion", "lora")
DECADE_BELOW = 10.0  # Smith's and fast.ai's custom: what diverges at r is trained at r / 10


@dataclass(kw_only=True, slots=True)
class LrFindConfig:
    """The sweep. Factors are multiples of trainer.optim.lr_fusion and lr_lora."""

    which: str = "both"  # rates that are swept: both | fusion | lora; the other part then stays as it is
    lowest: float = 0.01  # first factor
    highest: float = 100.0  # last factor
    steps: int = 60  # from the first to the last
    smoothing: float = 0.8  # share of the past in the smoothed loss
    diverged: float = 1.5  # the sweep ends when the smoothed loss is so many times its lowest value

    def __post_init__(self) -> None:
        if self.which not in WHICH:
            raise one_of("lr_find.which", self.which, WHICH)
        if not 0 < self.lowest < self.highest < math.inf:
            raise UserError(f"lr_find.lowest={self.lowest} must be positive and below lr_find.highest={self.highest}")
        if self.steps < 10:
            raise UserError(f"lr_find.steps must be at least 10, got {self.steps}")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"lr_find.smoothing must lie in [0, 1), got {self.smoothing}")
        if not 1 < self.diverged < math.inf:
            raise UserError(f"lr_find.diverged must be above 1, got {self.diverged}")


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the sweep: factor on the rates, the loss before the update, and the smoothed loss."""

    step: int
    factor: float
    loss: float
    smoothed: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What a sweep says.

    Attributes:
        steepest: factor where the smoothed loss falls fastest per decade; None if it never falls.
        diverged: factor at which it diverged; None if it did not.
        suggested: the factor to take: the lower of `steepest` and a decade below `diverged`; None without either.
    """

    points: tuple[Point, ...]
    steepest: float | None
    diverged: float | None
    suggested: float | None

    def rates(self, optim: OptimConfig, which: str) -> dict[str, float]:
        """Config key -> suggested rate, two digits, of the parts that were swept."""
        if self.suggested is None:
            return {}
        parts = ("fusion", "lora") if which == "both" else (which,)
        return {f"trainer.optim.lr_{p}": float(f"{self.suggested * getattr(optim, f'lr_{p}'):.1e}") for p in parts}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def sweep(trainer: Trainer, config: LrFindConfig, on_point: Callable[[Point], Any] = lambda point: None) -> Finding:
    """Train through the sweep; the model is spoilt afterwards.

    Args:
        trainer: fresh; its own steps, skips and clipping are used, its schedule is not, and it saves nothing.
        config: the sweep.
        on_point: called after every step.
    """
    held = [f"lr_{part}" for part in ("fusion", "lora") if config.which not in (part, "both")]
    optim = replace(trainer.stepper.optim)  # no gradient is switched off: peft switches all of LoRA's on again
    for name in held:
        setattr(optim, name, 0.0)
    trainer.stepper.optim = optim
    trainer.stepper.factor_at = lambda step: factor_at(step, config)
    points: list[Point] = []
    diverged, average, lowest = None, 0.0, math.inf
    for step, micro in enumerate(islice(_micro_batches(trainer), config.steps)):
        row = trainer.stepper.take(step, micro)
        if row is None or not math.isfinite(row["loss"]):
            diverged = factor_at(step, config)
            break
        average = config.smoothing * average + (1 - config.smoothing) * row["loss"]
        smoothed = average / (1 - config.smoothing ** (step + 1))  # the average starts from 0: corrected as Adam's is
        points.append(Point(step, factor_at(step, config), row["loss"], smoothed))
        on_point(points[-1])
        lowest = min(lowest, smoothed)
        if smoothed > config.diverged * lowest:
            diverged = points[-1].factor
            break
    return conclude(points, diverged)


def factor_at(step: int, config: LrFindConfig) -> float:
    """Factor of a step: exponential from the lowest to the highest."""
    return config.lowest * (config.highest / config.lowest) ** (step / (config.steps - 1))


def conclude(points: list[Point], diverged: float | None) -> Finding:
    """Read the suggestion off a sweep."""
    bottom = min(range(len(points)), key=lambda i: points[i].smoothed, default=0)
    slopes = {}
    for i in range(1, min(bottom + 1, len(points) - 1)):
        decades = math.log10(points[i + 1].factor / points[i - 1].factor)
        slopes[i] = (points[i + 1].smoothed - points[i - 1].smoothed) / decades
    best = min(slopes, key=lambda i: slopes[i], default=None)
    steepest = points[best].factor if best is not None and slopes[best] < 0 else None
    below = diverged / DECADE_BELOW if diverged is not None else None
    suggested = min((factor for factor in (steepest, below) if factor is not None), default=None)
    return Finding(tuple(points), steepest, diverged, suggested)


def _micro_batches(trainer: Trainer) -> Iterator[list[Any]]:
    """The micro-batches of step after step, from the beginning of the stream."""
    batches = trainer.data.batches(Place(), trainer.processes.index, trainer.processes.count)
    share = trainer.config.micro_batches // trainer.processes.count
    while micro := [batch.to(trainer.accelerator.device) for batch in islice(batches, share)]:
        yield micro
