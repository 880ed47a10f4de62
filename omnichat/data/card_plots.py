"""The charts of a data card: hours, turns, labels, lengths, what the checks measured and what they rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnichat.data import charts
from omnichat.schema import EMOTIONS, PITCHES, SCENARIOS, SPEEDS, SPLITS

AGAIN = "scripts written again: "  # how a plain entry of the checks counts a script that was rejected
_TITLES = {
    ("words", "dialogues"): "Word error rate of a dialogue",
    ("words", "turns"): "Word error rate of a turn",
    ("speakers", "within"): "Similarity of a turn to its own speaker",
    ("speakers", "between"): "Similarity of the two speakers",
}
_LABELS = {"emotion": (EMOTIONS, charts.EMOTIONS), "pitch": (PITCHES, charts.ORDER), "speed": (SPEEDS, charts.ORDER)}
_MOST_BARS = 12


@dataclass(frozen=True, slots=True)
class Plot:
    """One chart: name of its file without suffix, section of the page, title, SVG."""

    name: str
    section: str
    title: str
    svg: str


def plots(card: Mapping[str, Any]) -> list[Plot]:
    """Every chart for which a card has figures, in the order of the page."""
    found = [*_amounts(card), *_labels(card), *_lengths(card), *_measured(card["checks"]), *_rejected(card["checks"])]
    names: set[str] = set()
    unique = []
    for plot in found:
        name, number = plot.name, 2
        while name in names:
            name, number = f"{plot.name}-{number}", number + 1
        names.add(name)
        unique.append(Plot(name, plot.section, plot.title, plot.svg))
    return unique


def _amounts(card: Mapping[str, Any]) -> Iterator[Plot]:
    present = [scenario for scenario in SCENARIOS if any(row["scenario"] == scenario for row in card["subsets"])]
    for key, title, unit in (("hours", "Hours of recordings", " h"), ("turns", "Turns", "")):
        cells = {(row["scenario"], row["split"]): row[key] for row in card["subsets"]}
        rows = [(scenario, [cells.get((scenario, split), 0) for split in SPLITS]) for scenario in present]
        if any(sum(values) for _, values in rows):
            svg = charts.stacked_bars(title, rows, SPLITS, charts.SPLITS, unit)
            yield Plot(key, "amounts", title, svg)


def _labels(card: Mapping[str, Any]) -> Iterator[Plot]:
    for attribute, (order, colours) in _LABELS.items():
        rows = [
            (scenario, [labels[attribute].get(label, 0) for label in order])
            for scenario, labels in card["labels_by_scenario"].items()
            if labels[attribute]
        ]
        if rows:
            title = f"{attribute.capitalize()} of the turns"
            svg = charts.stacked_bars(title, rows, order, colours, shares=True)
            yield Plot(f"labels-{attribute}", "labels", title, svg)


def _lengths(card: Mapping[str, Any]) -> Iterator[Plot]:
    for title, counts in card["lengths"].items():
        if any(counts.values()):
            yield Plot(_file_name(title), "lengths", title, charts.histogram(title, counts))


def _measured(checks: Mapping[str, Any]) -> Iterator[Plot]:
    for check, value in checks.items():
        for path, counts in histograms(value):
            of = " ".join(
                part for part in re.split(r"[^A-Za-z0-9]+", path) if part not in ("", "measured", "histogram")
            )
            title = _TITLES.get((check, of), f"{check}: {of}" if of else check)
            yield Plot(_file_name(f"{check} {of}"), "measured", title, charts.histogram(title, counts))


def _rejected(checks: Mapping[str, Any]) -> Iterator[Plot]:
    takes, scripts = rejects(checks)
    for name, title, rows in (
        ("rejected", "Attempts rejected, by reason", takes),
        ("scripts-rejected", "Scripts written again, by reason", scripts),
    ):
        if rows:
            shown = rows[:_MOST_BARS]
            if rest := sum(count for _, count in rows[_MOST_BARS:]):
                shown = [*shown, (f"{len(rows) - _MOST_BARS} other reasons", rest)]
            yield Plot(name, "rejected", title, charts.bars(title, shown))


def histograms(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, int]]]:
    """(dotted path, counts by bin) of each histogram below a check's entry of a card: its key says so."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        place = f"{path}.{key}" if path else str(key)
        if "histogram" in str(key) and _is_counts(inner):
            yield place, {str(name): int(count) for name, count in inner.items()}
        else:
            yield from histograms(inner, place)


def rejects(checks: Mapping[str, Any]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """("check: reason", count) of rejected attempts, and (reason, count) of rejected scripts; the most first."""
    takes: list[tuple[str, int]] = []
    scripts: list[tuple[str, int]] = []
    for check, value in checks.items():
        if isinstance(value, Mapping):
            reasons = value.get("rejected")
            if isinstance(reasons, Mapping) and _is_counts(reasons):
                kind = scripts if check in ("scripts", "script") else takes
                kind += [(str(r) if kind is scripts else f"{check}: {r}", int(n)) for r, n in reasons.items() if n]
            skipped = value.get("dialogues skipped")
            if isinstance(skipped, int) and skipped:
                takes.append((check, skipped))
        elif check.startswith(AGAIN) and isinstance(value, int) and value:
            scripts.append((check.removeprefix(AGAIN), value))
    return sorted(takes, key=lambda row: -row[1]), sorted(scripts, key=lambda row: -row[1])


def figures(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that a check measured and that is no histogram."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if "histogram" not in str(key):
                yield from figures(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_counts(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in value.values())
    )


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "plot"


def section(found: Sequence[Plot], name: str) -> list[Plot]:
    """The charts of one section."""
    return [plot for plot in found if plot.section == name]
