"""One parameter budget for all fusions, so that an ablation compares designs and not sizes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from omnichat.fusion.base import Fusion
from omnichat.utils.errors import UserError

TOLERANCE = 0.02
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_WIDEST = 2**16
_AROUND = 32  # coarse sizes below and above the best that are tried where one step of the fine size is too much


def parse_budget(budget: str | int | float) -> int:
    """Turn "8M", "750K" or a whole number into a number of parameters. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", str(budget).strip().upper())
    count = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count < 1:
        raise UserError(f"fusion.budget={budget!r} must be a number of parameters such as 8M, 750K or 2000000")
    return count


def count_parameters(cls: type[Fusion], settings: Mapping[str, Any]) -> int:
    """Parameters of `cls(**settings)`, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in cls(**settings).parameters())


def fit_budget(cls: type[Fusion], settings: Mapping[str, Any], budget: str | int | float) -> dict[str, Any]:
    """Return `settings` with the class's two knobs turned so that it has `budget` parameters within 2 %.

    Args:
        cls: a fusion; its `knobs` say which sizes may change.
        settings: all other constructor arguments (those of the knobs are ignored).
        budget: see `parse_budget`.

    Raises:
        UserError: no size fits; names the smallest possible count.
    """
    target, knobs = parse_budget(budget), cls.knobs
    step = settings.get(knobs.step, _default(cls, knobs.step)) if knobs.step is not None else 1

    def count(coarse: int, fine: int) -> int:
        return count_parameters(cls, {**settings, knobs.coarse: coarse, knobs.fine: fine})

    def nearest_fine(coarse: int) -> tuple[int, int]:
        """How far from the target the best fine size comes, and that size."""
        below = max(1, _last(lambda fine: count(coarse, fine) <= target, _WIDEST * 16))
        return min((abs(count(coarse, fine) - target), fine) for fine in (below, below + 1))

    smallest = count(step, 1)
    if smallest > target * (1 + TOLERANCE):
        raise UserError(f"fusion.budget={budget!r} is too small for {cls.__name__}: it takes {smallest} at least")
    widest = max(1, _last(lambda n: count(n * step, max(1, round(knobs.ratio * n * step))) <= target, _WIDEST // step))
    tried: list[tuple[int, int, int]] = []  # (parameters off the target, coarse, fine)
    around = range(max(1, widest - _AROUND), widest + _AROUND + 1)
    for units in sorted(around, key=lambda units: abs(units - widest)):
        coarse = units * step
        off, fine = nearest_fine(coarse)
        tried.append((off, coarse, fine))
        if off <= TOLERANCE * target:
            return {**settings, knobs.coarse: coarse, knobs.fine: fine}
    _, coarse, fine = min(tried)
    got = count(coarse, fine)
    raise UserError(f"fusion.budget={budget!r}: {cls.__name__} comes no nearer than {got} parameters")


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest n in [0, most] for which `holds(n)`, where it holds up to some n and never beyond; 0: for none."""
    high = 1
    while high < most and holds(high):
        high *= 2
    low, high = 0, min(high, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _default(cls: type[Fusion], name: str) -> int:
    return int(inspect.signature(cls).parameters[name].default)
