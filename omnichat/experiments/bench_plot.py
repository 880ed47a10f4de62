"""The picture of a bench: ratios of the variants, where a step's time goes, and growth."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from omnichat.experiments.bench_table import point_peak
from omnichat.experiments.plots import COLOURS
from omnichat.utils.files import write_bytes_atomic

_SETTINGS: Any = {"font.size": 8.5, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#d5d9de"}


def draw_bench(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture as PNG."""
    with matplotlib.rc_context({**_SETTINGS, "figure.constrained_layout.use": True}):
        figure = Figure(figsize=(12.0, 7.2), dpi=110)
        grid = figure.subplots(2, 3)
        ratios(grid[0][0], result["variants"])
        shares(grid[0][1], result["profile"])
        turns(grid[0][2], result["growth"]["turns"])
        batch_tokens(grid[1][0], grid[1][1], result["growth"]["batch_tokens"])
        dialogues(grid[1][2], result["growth"]["dialogues"])
        machine = result["machine"]
        figure.suptitle(
            f"omnichat bench: {machine['gpu'] or machine['processor']}, {machine['torch_threads']} threads, "
            f"{result['precision']}"
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes_atomic(path, buffer.getvalue())


def ratios(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Supervised turns/s of everything on over each variant's; bars from lowest to highest round, ticks at targets."""
    shown = [row for row in rows if "reference_over_it" in row][::-1]
    for place, row in enumerate(shown):
        found = row["reference_over_it"]
        span = [[found["median"] - found["min"]], [found["max"] - found["median"]]]
        axes.barh(place, found["median"], color=COLOURS[0], height=0.62, xerr=span, ecolor="#1d2127", capsize=2)
        if "target" in row:
            axes.plot([row["target"]] * 2, [place - 0.42, place + 0.42], color=COLOURS[5], linewidth=2)
    axes.axvline(1, color="#1d2127", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row["variant"] for row in shown])
    axes.set_title("Everything on / variant, supervised turns/s (orange: target)")


def shares(axes: Axes, used: Mapping[str, Any]) -> None:
    """Where a step's time goes, by stage and by kind of operator."""
    bars = [("stages", used["stages"]), ("operators", used["kernels"])]
    for place, (_, parts) in enumerate(bars):
        left = 0.0
        for index, (name, share) in enumerate(parts.items()):
            axes.barh(place, share, left=left, color=COLOURS[index % len(COLOURS)], height=0.5)
            if share > 0.04:
                axes.text(left + share / 2, place, name.replace(" ", "\n"), ha="center", va="center", fontsize=6.5)
            left += share
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_xlim(0, 1)
    axes.set_title(f"Share of a step; LoRA-MFU {used['lora_mfu']['median']:.1%}")


def turns(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Supervised turns/s over turns a dialogue, both ways."""
    for index, way in enumerate(dict.fromkeys(point["way"] for point in points)):
        own = [point for point in points if point["way"] == way]
        _line(axes, own, "turns", "turns", index, way.replace("_", " "))
    _log_axis(axes, "turns a dialogue", [point["turns"] for point in points])
    axes.set_title("Supervised turns/s")
    if points:
        axes.legend(frameon=False)


def batch_tokens(speed: Axes, memory: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Tokens/s and peak memory over tokens a batch."""
    _line(speed, points, "batch_tokens", "tokens", 0, "")
    speed.set_title("Tokens/s")
    peaks = [(point["batch_tokens"], point_peak(point["passes"])) for point in points]
    measured = [(tokens, peak / 1e6) for tokens, peak in peaks if peak is not None]
    memory.plot([tokens for tokens, _ in measured], [peak for _, peak in measured], color=COLOURS[1], marker="o")
    memory.set_title("Peak memory of a pass above the model's, MB")
    for axes in (speed, memory):
        _log_axis(axes, "tokens a batch", [point["batch_tokens"] for point in points])
        axes.set_ylim(bottom=0)


def dialogues(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Seconds until the first batch, and memory, over dialogues of the corpus."""
    x = [point["dialogues"] for point in points]
    axes.plot(x, [point["start_seconds"] for point in points], color=COLOURS[2], marker="o", label="seconds to start")
    axes.plot(x, [max(point["bytes"], 0) / 1e6 for point in points], color=COLOURS[3], marker="s", label="MB")
    axes.set_title("Dialogues of a corpus")
    if points:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False)


def _line(axes: Axes, points: Sequence[Mapping[str, Any]], x: str, what: str, index: int, label: str) -> None:
    rates = [[one[what] / one["seconds"] for one in point["passes"]] for point in points]
    middle = [median(found) for found in rates]
    span = [[m - min(found) for m, found in zip(middle, rates, strict=True)]]
    span.append([max(found) - m for m, found in zip(middle, rates, strict=True)])
    axes.errorbar(
        [point[x] for point in points], middle, yerr=span if points else None, color=COLOURS[index], marker="os"[index],
        capsize=2, label=label,
    )  # fmt: skip


def _log_axis(axes: Axes, label: str, values: Sequence[int]) -> None:
    axes.set_xlabel(label)
    if values:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(set(values)), [str(value) for value in sorted(set(values))])
