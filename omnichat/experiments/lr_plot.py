"""The picture of a learning-rate range test."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from omnichat.experiments.plots import COLOURS, LIGHT
from omnichat.utils.files import write_bytes_atomic


def plot_lr_find(result: dict[str, Any], path: Path) -> None:
    """Draw loss against the factor on the learning rates, with what it suggests, into a PNG file.

    Args:
        result: lr_find.json: points (factor, loss, smoothed), steepest, diverged, suggested, lr_fusion, lr_lora, which.
        path: of the picture.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    factors = [point["factor"] for point in result["points"]]
    axes.plot(factors, [point["loss"] for point in result["points"]], ".", color=COLOURS[0], alpha=0.35, label="loss")
    axes.plot(factors, [point["smoothed"] for point in result["points"]], color=COLOURS[0], label="smoothed")
    marks = (("steepest", "steepest descent", COLOURS[2], ":"), ("diverged", "diverged", COLOURS[5], "--"))
    for key, words, colour, dashes in marks:
        if result[key] is not None:
            axes.axvline(result[key], color=colour, linestyle=dashes, label=f"{words}: {result[key]:.3g}")
    if result["suggested"] is not None:
        axes.axvline(
            result["suggested"], color=COLOURS[1], linewidth=6, alpha=0.4, label=f"suggested: {result['suggested']:.3g}"
        )
    axes.set_xscale("log")
    axes.set_xlabel(_factor_of(result))
    axes.set_ylabel("training loss before the update")
    axes.grid(color=LIGHT.soft, linewidth=0.5)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_bytes_atomic(path, buffer.getvalue())


def _factor_of(result: dict[str, Any]) -> str:
    parts = ("fusion", "lora") if result["which"] == "both" else (result["which"],)
    return "factor on " + ", ".join(f"lr_{part} = {result[f'lr_{part}']:g}" for part in parts)
