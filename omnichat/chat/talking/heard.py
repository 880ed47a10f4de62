"""How a recording was heard, as a picture: its waveform over bands of the experts' attention, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from omnichat.chat.base import HeardWindows
from omnichat.model.pretrained.conversation import Sound

WIDTH, WAVE_HEIGHT, GAP, BAND_HEIGHT = 600, 36, 4, 60  # of the drawing, which is stretched to the page
HEIGHT = WAVE_HEIGHT + GAP + BAND_HEIGHT
MAX_WINDOWS = 240  # drawn; of more, neighbours are averaged
_PEAKS = 300  # of the waveform
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)  # between two marks of the time axis, seconds
_LAST_MARK = 92  # percent of the width
_MARKS = 6  # of the time axis, at most


@dataclass(frozen=True, slots=True)
class Band:
    """One expert: the path of its band, its share of all attention, in how many windows it has the most."""

    name: str
    path: str
    share: float
    leads: int


@dataclass(frozen=True, slots=True)
class Window:
    """One window: where it is drawn, and what it is called."""

    x: float
    width: float
    title: str


@dataclass(frozen=True, slots=True)
class HeardView:
    """The picture.

    Attributes:
        wave: path of the waveform. bands: from the bottom up, in the order of the experts; none where the fusion tells
            no attention. windows: in order. marks: (percent of the width, label) of the time axis.
        summary: the picture in words.
    """

    wave: str
    bands: tuple[Band, ...]
    windows: tuple[Window, ...]
    marks: tuple[tuple[float, str], ...]
    summary: str


def heard_view(heard: HeardWindows, sound: Sound) -> HeardView:
    """Draw what a model heard of a recording."""
    seconds = sound.seconds
    edges, rows = _merged(heard, seconds)
    bands = _bands(heard.experts, edges, rows, seconds) if rows else ()
    windows = tuple(
        Window(
            _x(start, seconds), _x(stop - start, seconds), _title(start, stop, heard.experts, rows[n] if rows else ())
        )
        for n, (start, stop) in enumerate(edges)
    )
    return HeardView(wave_path(sound.wave_N), bands, windows, marks(seconds), _summary(heard, bands, seconds))


def wave_path(wave_N: Tensor) -> str:
    """The waveform as a closed path: its highest and lowest sample in each of a few hundred stretches."""
    samples = np.asarray(wave_N, dtype=np.float32)
    count = min(_PEAKS, len(samples))
    starts = np.arange(count) * len(samples) // count
    high, low = np.maximum.reduceat(samples, starts), np.minimum.reduceat(samples, starts)
    loudest = max(float(np.abs(samples).max()), 1e-9)
    middle, scale = WAVE_HEIGHT / 2, (WAVE_HEIGHT / 2 - 1) / loudest
    step = WIDTH / count
    above = [(n * step + step / 2, middle - float(value) * scale) for n, value in enumerate(high)]
    below = [(n * step + step / 2, middle - float(value) * scale) for n, value in enumerate(low)]
    return _closed([*above, *reversed(below)])


def marks(seconds: float) -> tuple[tuple[float, str], ...]:
    """(percent of the width, label) of the marks of a time axis from 0 to `seconds`; none so late that it juts out."""
    step = next((step for step in _STEPS if seconds / step <= _MARKS), seconds / _MARKS)
    count = int(seconds / step + 1e-6) + 1
    places = [(round(100 * n * step / seconds, 2), f"{round(n * step, 1):g} s") for n in range(count)]
    return tuple(place for place in places if place[0] <= _LAST_MARK)


def _merged(heard: HeardWindows, seconds: float) -> tuple[list[tuple[float, float]], list[tuple[float, ...]]]:
    """(start and end of each drawn window in seconds, its attention or nothing)."""
    count = len(heard.attention) or max(1, int(np.ceil(seconds / heard.window_sec - 1e-6)))
    group = -(-count // MAX_WINDOWS)
    edges, rows = [], []
    for first in range(0, count, group):
        last = min(first + group, count)
        start, stop = first * heard.window_sec, last * heard.window_sec
        if start >= seconds:
            break  # an expert's frames may reach over the end
        edges.append((start, seconds if last == count else min(stop, seconds)))
        if heard.attention:
            part = heard.attention[first:last]
            rows.append(tuple(float(np.mean([row[expert] for row in part])) for expert in range(len(heard.experts))))
    return edges, rows


def _bands(
    experts: Sequence[str],
    edges: Sequence[tuple[float, float]],
    rows: Sequence[tuple[float, ...]],
    seconds: float,
) -> tuple[Band, ...]:
    weights = np.array([stop - start for start, stop in edges])
    share = np.average(np.array(rows), axis=0, weights=weights)
    leads = np.argmax(np.array(rows), axis=1)
    bands = []
    below = np.zeros(len(rows))
    for expert, name in enumerate(experts):
        above = below + np.array([row[expert] for row in rows])
        path = _closed([*_stairs(edges, above, seconds), *reversed(_stairs(edges, below, seconds))])
        bands.append(Band(name, path, float(share[expert]), int((leads == expert).sum())))
        below = above
    return tuple(bands)


def _stairs(edges: Sequence[tuple[float, float]], levels: np.ndarray, seconds: float) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for (start, stop), level in zip(edges, levels, strict=True):
        y = HEIGHT - BAND_HEIGHT * min(float(level), 1.0)
        points += [(_x(start, seconds), y), (_x(stop, seconds), y)]
    return points


def _x(at: float, seconds: float) -> float:
    return round(WIDTH * at / seconds, 2)


def _closed(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"


def _title(start: float, stop: float, experts: Sequence[str], row: Sequence[float]) -> str:
    shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in zip(experts, row, strict=True)) if row else ""
    return f"{start:.2f} to {stop:.2f} s" + (f": {shares}" if shares else "")


def _summary(heard: HeardWindows, bands: Sequence[Band], seconds: float) -> str:
    count = len(heard.attention)
    if not bands:
        return f"{seconds:.1f} s, heard in windows of {heard.window_sec:.2f} s; this fusion tells no attention"
    shares = "; ".join(f"{band.name} {100 * band.share:.0f} %, most in {band.leads}" for band in bands)
    return f"attention in {count} windows of {heard.window_sec:.2f} s: {shares}"
