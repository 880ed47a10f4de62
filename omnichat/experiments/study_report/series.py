"""Which arms of a plan make a line: a number on the x axis, and a line for each value of what else varies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from omnichat.experiments.study_report.study import Arm, Plan

INPUT_NAMES = {"text": "gold text (T)", "asr": "ASR text", "speech_text": "speech + text (S+T)", "speech": "speech (S)"}
KEY_NAMES = {
    "alpha": "alpha, the share of real dialogues",
    "dialogues": "training dialogues",
    "n": "training dialogues",
    "scale": "training dialogues",
    "queries": "K, queries a window",
    "k": "K, queries a window",
    "window_sec": "L, window in seconds",
    "l": "L, window in seconds",
}
_LOG_FROM = 8  # the largest over the smallest x, from which the axis is logarithmic


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its label and its arms by ascending x."""

    label: str
    points: tuple[tuple[float, Arm], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: the key on x, its lines, and arms without that key, which are level lines."""

    x: str
    series: tuple[Series, ...]
    level: tuple[Arm, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether the values span so much that a logarithmic axis shows them better."""
        values = [x for line in self.series for x, _ in line.points]
        return min(values) > 0 and max(values) / min(values) >= _LOG_FROM

    @property
    def title(self) -> str:
        """The axis's title."""
        return KEY_NAMES.get(self.x.lower(), self.x.replace("_", " "))


def panels(plan: Plan) -> list[Panel]:
    """The plan's x, or each number that varies over its arms; panels with fewer than two x are left out."""
    keys = [plan.x] if plan.x is not None else [key for key in _varying(plan) if _numbers(plan, key) > 1]
    found = []
    for key in keys:
        panel = _panel(plan, key)
        if panel is not None:
            found.append(panel)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def place(arm: Arm, key: str) -> float | None:
    """Where an arm stands on the x axis; a size of null is the whole synthetic corpus, which data.json counts."""
    value = arm.keys.get(key)
    if value is not None and _is_number(value):
        return float(value)
    if key == "dialogues" and key in arm.keys:
        for run in arm.counted:
            parts = [source.get("splits", {}).get("train") or {} for source in run.sources if _synthetic(source)]
            if count := sum(part.get("dialogues", 0) for part in parts):
                return float(count)
    return None


def _synthetic(source: dict[str, Any]) -> bool:
    return source.get("kind") == "synthetic"


def _numbers(plan: Plan, key: str) -> int:
    return len({found for arm in plan.arms if (found := place(arm, key)) is not None})


def _named(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _varying(plan: Plan) -> list[str]:
    keys = dict.fromkeys(key for arm in plan.arms for key in arm.keys)
    return [key for key in keys if len({_named(arm.keys.get(key)) for arm in plan.arms}) > 1]


def _panel(plan: Plan, key: str) -> Panel | None:
    places = {arm.label: found for arm in plan.arms if (found := place(arm, key)) is not None}
    on_axis = [arm for arm in plan.arms if arm.label in places]
    others = [other for other in _varying(plan) if other != key and not _follows(on_axis, key, other)]
    lines: dict[str, dict[float, Arm]] = {}
    for arm in on_axis:
        label = ", ".join(_value(other, arm.keys.get(other)) for other in others)
        lines.setdefault(label, {}).setdefault(places[arm.label], arm)
    series = [Series(label, tuple(sorted(points.items(), key=lambda p: p[0]))) for label, points in lines.items()]
    series = [line for line in series if len(line.points) > 1]
    level = tuple(arm for arm in plan.arms if key not in arm.keys)
    return Panel(key, tuple(series), level if plan.x is not None else ()) if series else None


def _follows(arms: list[Arm], key: str, other: str) -> bool:
    """Whether `other` is settled by `key`, as the steps may be by the number of dialogues, or does not vary."""
    values: dict[str, set[str]] = {}
    for arm in arms:
        values.setdefault(_named(arm.keys.get(key)), set()).add(_named(arm.keys.get(other)))
    return all(len(found) == 1 for found in values.values())


def _value(key: str, value: Any) -> str:
    if key == "input":
        return INPUT_NAMES.get(str(value), str(value))
    return f"{key} {value:g}" if _is_number(value) else (str(value) if value is not None else f"no {key}")
