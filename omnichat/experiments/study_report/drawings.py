"""The study's plots: alpha, curves, bars, experts heard. Means over seeds with intervals; dots are seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from omnichat.evaluation.seeds import SeedSummary
from omnichat.experiments.plots import COLOURS, MARKERS, Theme
from omnichat.experiments.study_report.optimum import Optimum
from omnichat.schema import SCENARIOS

Draw = Callable[[Theme], Figure]
Points = Sequence[tuple[float, SeedSummary]]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot."""

    label: str
    points: Points


@dataclass(frozen=True, slots=True)
class Level:
    """A value without an x."""

    label: str
    value: SeedSummary


def _margins(value: SeedSummary) -> tuple[float, float]:
    low, high = value.ci95 if value.ci95 is not None else (value.mean, value.mean)
    return max(value.mean - low, 0.0), max(high - value.mean, 0.0)


def _points(axis: Axes, line: Line, index: int, shift: float = 0.0, joined: bool = True, scale: float = 1.0) -> None:
    """Means with intervals, and the seeds as small dots; `scale` multiplies x, `shift` is added, so that lines part."""
    colour = COLOURS[index % len(COLOURS)]
    x = [place * scale + shift for place, _ in line.points]
    y = [value.mean for _, value in line.points]
    spread = np.array([_margins(value) for _, value in line.points]).T
    style = "-" if joined else "none"
    marker = MARKERS[index % len(MARKERS)]
    axis.errorbar(
        x,
        y,
        yerr=spread,
        fmt=marker,
        linestyle=style,
        color=colour,
        capsize=2.5,
        markersize=5,
        lw=1.3,
        label=line.label or "_mean",
    )
    for place, (_, value) in zip(x, line.points, strict=True):
        if len(value.values) > 1:
            axis.plot([place] * len(value.values), value.values, ".", color=colour, alpha=0.45, markersize=4, zorder=1)


def _finish(figure: Figure, axes: Sequence[Axes], columns: int = 3) -> None:
    handles: dict[str, Any] = {}  # artists, and containers of them
    for axis in axes:
        axis.grid(axis="y")
        axis.set_axisbelow(True)
        found = list(zip(*axis.get_legend_handles_labels(), strict=True))
        # the series first, then what belongs to one of them
        for handle, label in sorted(found, key=lambda pair: not isinstance(pair[0], ErrorbarContainer)):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles))
        )


def alpha_plot(
    lines: Sequence[Line],
    optimum: Optimum | None,
    picked: float | None,
    title: str,
    x_title: str,
    levels: Sequence[Level] = (),
) -> Draw:
    """Splits and outside sets against alpha; the dev fit with its band, its optimum's interval, and the arm picked."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.6, 3.7))
        axis = figure.subplots()
        for index, line in enumerate(lines):
            own_fit = index == 0 and optimum is not None
            _points(axis, line, index, shift=(index - (len(lines) - 1) / 2) * 0.008, joined=not own_fit)
        if optimum is not None:
            axis.plot(optimum.grid, optimum.fit, color=COLOURS[0], lw=1.4)
            axis.fill_between(optimum.grid, optimum.low, optimum.high, color=COLOURS[0], alpha=0.14, lw=0)
        for index, level in enumerate(levels):
            colour = COLOURS[(len(lines) + index) % len(COLOURS)]
            axis.axhline(level.value.mean, color=colour, linestyle="--", lw=1.1, label=level.label)
        if picked is not None:
            axis.axvline(picked, color=theme.ink, linestyle=":", lw=1.1)
        if optimum is not None:
            bottom, top = axis.get_ylim()
            place = bottom - 0.05 * (top - bottom)
            axis.plot(optimum.ci95, [place, place], color=theme.ink, lw=3, solid_capstyle="butt", alpha=0.5)
            axis.plot(
                [optimum.best], [place], "d", color=theme.ink, markersize=6, label="fitted optimum, 95 % interval"
            )
        axis.set_xlabel(x_title)
        axis.set_ylabel(title)
        _finish(figure, [axis])
        return figure

    return draw


def curve_plot(panels: Sequence[tuple[str, bool, Sequence[Line]]], title: str, levels: Sequence[Level] = ()) -> Draw:
    """One pair of axes a panel (x title, logarithmic x, lines)."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.6 if len(panels) == 1 else 7.6, 3.5))
        axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
        for axis, (x_title, logarithmic, lines) in zip(axes, panels, strict=True):
            values = sorted({x for line in lines for x, _ in line.points})
            step = (values[-1] - values[0]) / 90 if len(values) > 1 else 0.0
            for index, line in enumerate(lines):
                place = index - (len(lines) - 1) / 2
                if logarithmic:
                    _points(axis, line, index, scale=1.03**place)
                else:
                    _points(axis, line, index, shift=place * step)
            for index, level in enumerate(levels):
                colour = COLOURS[(len(lines) + index) % len(COLOURS)]
                axis.axhline(level.value.mean, color=colour, linestyle="--", lw=1.1, label=level.label)
            if logarithmic:
                axis.set_xscale("log")
            if len(values) <= 9:
                axis.set_xticks(values)
                axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
                axis.xaxis.set_minor_formatter(NullFormatter())
                axis.tick_params(axis="x", which="minor", length=0)
            axis.set_xlabel(x_title)
        axes[0].set_ylabel(title)
        _finish(figure, axes)
        return figure

    return draw


def short_number(value: float) -> str:
    """5000 -> 5K, 0.34 -> 0.34."""
    return f"{value / 1000:g}K" if value >= 1000 and value % 100 == 0 else f"{value:g}"


def bars_plot(
    rows: Sequence[tuple[str, SeedSummary, str]], title: str, chance: float | None, baseline: str | None
) -> Draw:
    """Horizontal bars (label, figure, words at the right end, such as parameters) with intervals and seeds as dots."""

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(6.6, 1.1 + 0.42 * len(rows)))
        axis = figure.subplots()
        for index, (label, value, words) in enumerate(rows):
            colour = COLOURS[1] if label == baseline else COLOURS[0]
            axis.barh(index, value.mean, height=0.62, color=colour, alpha=0.75)
            below, above = _margins(value)
            axis.errorbar(
                [value.mean], [index], xerr=[[below], [above]], fmt="none", ecolor=theme.ink, capsize=3, lw=1.1
            )
            if len(value.values) > 1:
                axis.plot(value.values, [index] * len(value.values), "o", color=theme.ink, alpha=0.5, markersize=3)
            axis.annotate(
                words, (1.01, index), xycoords=("axes fraction", "data"), va="center", fontsize=8, annotation_clip=False
            )
        if chance is not None:
            axis.axvline(chance, color=theme.ink, linestyle=":", lw=1)
            axis.annotate(
                "chance", (chance, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8
            )
        axis.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_xlabel(title)
        axis.grid(axis="x")
        axis.set_axisbelow(True)
        return figure

    return draw


def experts_plot(arms: Sequence[tuple[str, Mapping[str, Mapping[str, Sequence[float]]]]]) -> Draw:
    """Mean attention mass by scenario and expert, a pair of axes an arm; {scenario: {expert: one value a seed}}."""

    def draw(theme: Theme) -> Figure:
        experts = list(dict.fromkeys(e for _, mass in arms for shares in mass.values() for e in shares))
        figure = Figure(figsize=(6.6, 0.6 + 2.3 * len(arms)))
        axes = list(figure.subplots(len(arms), 1, squeeze=False)[:, 0])
        for axis, (label, mass) in zip(axes, arms, strict=True):
            scenarios = [name for name in SCENARIOS if name in mass]
            width = 0.8 / len(experts)
            for index, expert in enumerate(experts):
                place = np.arange(len(scenarios)) - 0.4 + width * (index + 0.5)
                seeds = [list(mass[scenario].get(expert, [0.0])) for scenario in scenarios]
                heights = [float(np.mean(values)) for values in seeds]
                axis.bar(place, heights, width * 0.92, color=COLOURS[index % len(COLOURS)], label=expert)
                for x, values in zip(place, seeds, strict=True):
                    if len(values) > 1:
                        axis.plot([x] * len(values), values, ".", color=theme.ink, alpha=0.6, markersize=4)
            own = len({e for shares in mass.values() for e in shares})
            axis.axhline(1 / own, color=theme.ink, linestyle=":", lw=1)
            axis.set_xticks(range(len(scenarios)), scenarios)
            axis.set_ylim(0, 1)
            axis.set_title(label)
            axis.set_ylabel("attention mass")
        _finish(figure, axes, columns=5)
        return figure

    return draw
