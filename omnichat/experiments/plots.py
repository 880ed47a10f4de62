"""Figures of the report: each drawn twice, for a light and for a dark page, as SVG without any outside reference."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from omnichat.evaluation.predictions import Prediction
from omnichat.evaluation.style import UNPARSED, predicted_emotion
from omnichat.experiments.runs import Row, Run
from omnichat.schema import EMOTIONS, PITCHES, SCENARIOS, SPEEDS

# Okabe and Ito's colours, which people with colour-blindness can tell apart
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A800")
MARKERS = "osD^vPX*"


@dataclass(frozen=True, slots=True)
class Theme:
    """Ink, soft lines and paper of a page, and the two colours through which a heat map leaves the paper."""

    ink: str
    soft: str
    paper: str
    ramp: tuple[str, str]


LIGHT = Theme("#1d2127", "#d5d9de", "#ffffff", ("#5aa9d6", "#00507d"))
DARK = Theme("#e4e7eb", "#3c434c", "#181b20", ("#2f7fb0", "#c9e8fb"))
Draw = Callable[[Theme], Figure]


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure as two data URIs, with its words for people who cannot see it."""

    light: str
    dark: str
    alt: str
    caption: str


def picture(draw: Draw, alt: str, caption: str) -> Picture:
    """Draw a figure for both themes."""
    return Picture(_svg(draw, LIGHT), _svg(draw, DARK), alt, caption)


def theme_settings(theme: Theme) -> dict[str, Any]:
    """Matplotlib's settings for a theme; it types them by one literal a name, hence Any."""
    return {
        "svg.hashsalt": "omnichat",  # equal input gives an equal file
        "text.parse_math": False,  # a run may have a $ in its name
        "font.size": 9,
        "axes.edgecolor": theme.soft,
        "axes.labelcolor": theme.ink,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": theme.soft,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def _svg(draw: Draw, theme: Theme) -> str:
    settings: Any = theme_settings(theme)
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        draw(theme).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def loss_curves(runs: Sequence[Run]) -> Draw:
    """Training loss (faint: each step; firm: moving average) and dev loss (markers): objective, style tag, words."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(9.6, 3.0))
        axes = figure.subplots(1, 3, sharex=True)
        parts = (("loss", "Objective, as weighted"), ("loss_style", "Style tag"), ("loss_words", "Words"))
        for axis, (key, title) in zip(axes, parts, strict=True):
            for index, run in enumerate(runs):
                colour = COLOURS[index % len(COLOURS)]
                x, y = _series(run.steps, key)
                axis.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
                axis.plot(x, _smooth(y), color=colour, linewidth=1.5, linestyle=_line(index), label=run.name)
                # The dev loss is the plain mean over tokens: beside a weighted objective it would mislead.
                dev_x, dev_y = ([], []) if key == "loss" else _series(run.dev, key)
                marker = MARKERS[index % len(MARKERS)]
                axis.plot(dev_x, dev_y, marker, color=colour, markersize=5, markeredgecolor=theme.paper)
            axis.set_title(title)
            axis.set_xlabel("optimiser step")
            axis.grid(axis="y")
        axes[0].set_ylabel("loss (nats per token)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
        return figure

    return draw


def alpha_realised(runs: Sequence[Run]) -> Draw:
    """The realised share of real dialogues over training with its interval, and the asked share as a dotted line."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(9.6, 2.7))
        axis = figure.subplots()
        for index, run in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            x, y = _series(run.steps, "alpha_realised")
            axis.plot(x, y, color=colour, linewidth=1.5, linestyle=_line(index), label=run.name)
            bands = [(row["step"], *row["alpha_ci95"]) for row in run.steps if _is_pair(row.get("alpha_ci95"))]
            if bands:
                places, lows, highs = (list(column) for column in zip(*bands, strict=True))
                axis.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
            asked_x, asked = _series(run.steps, "alpha_target")
            if len(set(asked)) > 1:  # a curriculum
                axis.plot(asked_x, asked, color=colour, linestyle=":", linewidth=1.2)
            elif run.alpha is not None:
                axis.axhline(run.alpha, color=colour, linestyle=":", linewidth=1.2)
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("optimiser step")
        axis.set_ylabel("share of real dialogues")
        axis.grid(axis="y")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
        return figure

    return draw


def alpha_curve(points: Sequence[tuple[str, float, Row]], title: str) -> Draw:
    """A metric against alpha with its intervals; `points` are (run, alpha, metrics row)."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(5.6, 2.9))
        axis = figure.subplots()
        for index, (name, alpha, row) in enumerate(points):
            low, high = row["ci95"] if _is_pair(row.get("ci95")) else (row["value"], row["value"])
            spread = [[max(row["value"] - low, 0.0)], [max(high - row["value"], 0.0)]]
            colour = COLOURS[index % len(COLOURS)]
            axis.errorbar([alpha], [row["value"]], yerr=spread, fmt="o", color=colour, capsize=3, label=name)
        axis.set_xlabel("alpha (share of real dialogues)")
        axis.set_ylabel(title)
        axis.set_xlim(-0.05, 1.05)
        axis.grid(axis="y")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return figure

    return draw


def corpus_labels(sources: Sequence[Row], split: str = "train") -> Draw:
    """Shares of pitch, speed and emotion labels in the turns of each source, as stacked bars."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(9.6, 0.8 + 0.42 * len(sources)))
        axes = figure.subplots(1, 3, sharey=True, width_ratios=[1, 1, 1.6])
        for axis, (attribute, labels) in zip(
            axes, (("pitch", PITCHES), ("speed", SPEEDS), ("emotion", EMOTIONS)), strict=True
        ):
            left = np.zeros(len(sources))
            counts = [source_labels(source, attribute, split) for source in sources]
            totals = np.array([max(1, sum(count.values())) for count in counts])
            for index, label in enumerate(labels):
                share = np.array([count.get(label, 0) for count in counts]) / totals
                axis.barh(range(len(sources)), share, left=left, color=COLOURS[index], label=label, height=0.62)
                left += share
            axis.set_title(attribute)
            axis.set_xlim(0, 1)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axis.set_yticks(range(len(sources)), [str(source["name"]) for source in sources])
            axis.invert_yaxis()
            axis.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.12 - 0.3 / len(sources)),
                ncols=4,
                fontsize=7.5,
                handlelength=1,
                columnspacing=1,
            )
        return figure

    return draw


def source_labels(source: Row, attribute: str, split: str) -> dict[str, int]:
    """Return label counts of one split of a source in data.json; empty where they are not stated."""
    part = source.get("splits", {}).get(split) or {}
    return dict((part.get("labels") or {}).get(attribute) or {})


def reply_labels(runs: Sequence[Run], split: str) -> Draw:
    """How often each emotion is the reference's, and how often each run gives it."""

    def draw(theme: Theme) -> Figure:
        names = [*EMOTIONS, UNPARSED]
        figure = Figure(figsize=(9.6, 2.9))
        axis = figure.subplots()
        reference = [p.reference.style.emotion for p in runs[0].predictions[split] if p.reference.style]
        series = [("reference", theme.ink, [reference.count(name) for name in names])]
        for index, run in enumerate(runs):
            got = [predicted_emotion(p) for p in run.predictions[split]]
            series.append((run.name, COLOURS[index % len(COLOURS)], [got.count(name) for name in names]))
        width = 0.8 / len(series)
        for index, (label, colour, counts) in enumerate(series):
            place = np.arange(len(names)) - 0.4 + width * (index + 0.5)
            share = np.array(counts) / max(1, sum(counts))
            hatch = "///" if index > len(COLOURS) else None  # after the reference and one round of colours
            axis.bar(
                place, share, width * 0.92, color=colour, label=label, hatch=hatch, edgecolor=theme.paper, linewidth=0
            )
        axis.set_xticks(range(len(names)), names)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_ylabel("share of replies")
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(series)))
        return figure

    return draw


def confusions(runs: Sequence[Run], split: str) -> Draw:
    """Confusion matrix of the reply's emotion for each run: rows reference, columns predicted, counts in the cells."""
    names = [*EMOTIONS, UNPARSED]

    def one(axis: Axes, run: Run, theme: Theme) -> None:
        pairs = [
            (p.reference.style.emotion, predicted_emotion(p))
            for p in run.predictions[split]
            if p.reference.style is not None and p.reference.style.emotion is not None
        ]
        counts = confusion_matrix([a for a, _ in pairs], [b for _, b in pairs], labels=names)[: len(EMOTIONS)]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap=_ramp(theme), vmin=0, vmax=1, aspect="auto")
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = theme.paper if share[row, column] > (0.45 if theme is LIGHT else 0.6) else theme.ink
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7.5, color=colour)
        axis.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(len(EMOTIONS)), EMOTIONS, fontsize=8)
        axis.set_title(run.name)
        axis.set_xlabel("predicted")

    def draw(theme: Theme) -> Figure:
        columns = min(3, len(runs))
        lines = math.ceil(len(runs) / columns)
        figure = Figure(figsize=(3.2 * columns, 3.1 * lines))
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axis in axes.flat[len(runs) :]:
            axis.set_visible(False)
        for axis, run in zip(axes.flat[: len(runs)], runs, strict=True):
            one(axis, run, theme)
        for axis in axes[:, 0]:
            axis.set_ylabel("reference")
        return figure

    return draw


def heat_map(prediction: Prediction) -> Draw:
    """Attention mass of each expert (rows) in each window (columns) of the heard turn, over seconds."""
    assert prediction.attention is not None and prediction.experts is not None and prediction.window_sec is not None
    mass = np.array(prediction.attention, dtype=np.float64).T
    experts, window_sec = prediction.experts, prediction.window_sec

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.4, 0.85 + 0.34 * len(experts)))
        axis = figure.subplots()
        end_sec = mass.shape[1] * window_sec
        extent = (0.0, end_sec, len(experts) - 0.5, -0.5)
        image = axis.imshow(mass, cmap=_ramp(theme), vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="none")
        axis.set_yticks(range(len(experts)), experts)
        axis.set_xlabel(f"seconds of the heard turn (windows of {window_sec:.2f} s)")
        figure.colorbar(image, ax=axis, fraction=0.035, pad=0.015, ticks=[0, 0.5, 1])
        return figure

    return draw


def expert_bars(run_name: str, mass: dict[str, dict[str, float]]) -> Draw:
    """Mean attention mass of each expert, one group of bars a scenario; `mass`: {scenario: {expert: share}}."""

    def draw(theme: Theme) -> Figure:
        scenarios = [name for name in SCENARIOS if name in mass]
        experts = list(dict.fromkeys(expert for shares in mass.values() for expert in shares))
        figure = Figure(figsize=(4.8, 2.7))
        axis = figure.subplots()
        width = 0.8 / len(experts)
        for index, expert in enumerate(experts):
            place = np.arange(len(scenarios)) - 0.4 + width * (index + 0.5)
            heights = [mass[scenario].get(expert, 0.0) for scenario in scenarios]
            axis.bar(place, heights, width * 0.92, color=COLOURS[index % len(COLOURS)], label=expert)
        axis.axhline(1 / len(experts), color=theme.ink, linestyle=":", linewidth=1)
        axis.set_xticks(range(len(scenarios)), scenarios)
        axis.set_ylim(0, 1)
        axis.set_title(run_name)
        axis.set_ylabel("attention mass")
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(experts)))
        return figure

    return draw


def expert_mass(predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
    """Return {scenario: {expert: mean attention mass}}: windows are averaged in a turn, then turns in a scenario."""
    found: dict[str, dict[str, list[float]]] = {}
    for p in predictions:
        if p.attention and p.experts:
            means = np.array(p.attention, dtype=np.float64).mean(axis=0)
            for expert, value in zip(p.experts, means, strict=True):
                found.setdefault(p.scenario, {}).setdefault(expert, []).append(float(value))
    return {
        scenario: {expert: float(np.mean(values)) for expert, values in shares.items()}
        for scenario, shares in found.items()
    }


def _series(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    kept = [(int(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return [step for step, _ in kept], [value for _, value in kept]


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average over about a twentieth of the run; the window shrinks at the ends."""
    half = max(1, len(values) // 40)
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def _line(index: int) -> str:
    """Line style of the run at `index`: the colours begin anew after a round."""
    return ("-", "--", ":")[index // len(COLOURS) % 3]


def _ramp(theme: Theme) -> LinearSegmentedColormap:
    """More mass is further from the paper: darker on a light page, brighter on a dark one."""
    return LinearSegmentedColormap.from_list("mass", [theme.paper, *theme.ramp])


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, int | float) for x in value)
