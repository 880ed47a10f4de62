"""What is measured while a run trains, besides its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(kw_only=True, slots=True)
class WatchConfig:
    """What is watched."""

    gradient_norms: bool = True  # of fusion and LoRA apart


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`grad_norm_<group>` of every named parameter group, before clipping."""
    squares: dict[str, float] = {}
    for group in optimizer.param_groups:
        found = [p.grad for p in group["params"] if p.grad is not None]
        if found:
            norm = float(torch.nn.utils.get_total_norm(found))
            squares[group["name"]] = squares.get(group["name"], 0.0) + norm**2
    return {f"grad_norm_{name}": value**0.5 for name, value in squares.items()}
