"""The data card of a corpus: counts, hours, balance of labels, checks, licences; as JSON and as readable Markdown."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from omnichat.data.card_plots import Plot, plots, section
from omnichat.schema import EMOTIONS, PITCHES, SCENARIOS, SPEEDS, SPLITS, Dialogue, Turn

PLOTS = "plots"  # folder of the charts, beside the card
STAND_IN_TITLE = "STAND-IN for DailyTalk"
STAND_IN_NOTE = (
    "This corpus was generated to take DailyTalk's place in a demonstration. It holds none of DailyTalk's words or"
    " recordings, and figures measured on it say nothing about DailyTalk."
)
_SECONDS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)
_WORDS = (0, 3, 6, 9, 12, 15, 18, 21, 25, 30, 40, 60)
_TURNS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 40)
_ORDER = {"pitch": PITCHES, "speed": SPEEDS, "emotion": EMOTIONS}


def distinct_turns(dialogues: Iterable[Dialogue]) -> Iterator[Turn]:
    """Yield the turns so that every recording comes once: the variants of a dialogue share their history's files.

    Turns without a recording all come.
    """
    seen: set[str] = set()
    for dialogue in dialogues:
        for turn in dialogue.turns:
            if turn.audio is not None:
                if turn.audio in seen:
                    continue
                seen.add(turn.audio)
            yield turn


def summarise(dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Count dialogues and their turns; recordings, hours and labels count every recording once.

    Returns:
        {"dialogues", "turns", "recordings", "hours", "labels": {"pitch": {value: count}, "speed": .., "emotion": ..}};
        values of a label come in the schema's order, absent ones are left out.
    """
    turns = list(distinct_turns(dialogues))
    labels: dict[str, dict[str, int]] = {}
    for attribute, order in _ORDER.items():
        counts = Counter(getattr(turn.style, attribute) for turn in turns)
        labels[attribute] = {value: counts[value] for value in order if counts[value]}
    return {
        "dialogues": len(dialogues),
        "turns": sum(len(dialogue.turns) for dialogue in dialogues),
        "recordings": sum(turn.audio is not None for turn in turns),
        "hours": round(sum(turn.seconds or 0.0 for turn in turns if turn.audio is not None) / 3600, 6),
        "labels": labels,
    }


def lengths(dialogues: Sequence[Dialogue]) -> dict[str, dict[str, int]]:
    """Histograms, counts by bin "low-high": seconds and words of a turn, turns of a dialogue; recordings count once."""
    turns = list(distinct_turns(dialogues))
    values: dict[str, tuple[list[float], tuple[float, ...]]] = {
        "Seconds of a turn": ([turn.seconds for turn in turns if turn.audio and turn.seconds], _SECONDS),
        "Words of a turn": ([len(turn.text.split()) for turn in turns], _WORDS),
        "Turns of a dialogue": ([len(dialogue.turns) for dialogue in dialogues], _TURNS),
    }
    return {title: _bins(found, edges) for title, (found, edges) in values.items()}


def _bins(values: Sequence[float], edges: Sequence[float]) -> dict[str, int]:
    """Counts in [edge, next edge), keyed "low-high"; what lies outside counts at the nearest end."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect.bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return {f"{low:g}-{high:g}": n for (low, high), n in zip(pairwise(edges), counts, strict=True)}


def build_card(
    dialogues: Sequence[Dialogue],
    *,
    name: str,
    kind: str,
    seed: int | None,
    checks: Mapping[str, Any],
    licences: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Return the machine-readable card; see `finish_corpus` for the arguments."""
    cells: dict[tuple[str, str], list[Dialogue]] = {}
    for dialogue in dialogues:
        cells.setdefault((dialogue.scenario, dialogue.split), []).append(dialogue)
    subsets = []
    for (scenario, split), members in sorted(cells.items(), key=lambda x: (x[0][0], SPLITS.index(x[0][1]))):
        counts = summarise(members)
        kept = {key: counts[key] for key in ("dialogues", "turns", "recordings", "hours")}
        subsets.append({"scenario": scenario, "split": split, **kept})
    rates = Counter(turn.sample_rate for turn in distinct_turns(dialogues) if turn.audio is not None)
    groups = {turn.variant_of for dialogue in dialogues for turn in dialogue.turns if turn.variant_of is not None}
    return {
        "name": name,
        "kind": kind,
        "stand_in": any(dialogue.stand_in for dialogue in dialogues),
        "seed": seed,
        "counts": summarise(dialogues),
        "variant_groups": len(groups),
        "sample_rates_hz": {str(rate): count for rate, count in sorted(rates.items(), key=lambda x: x[0] or 0)},
        "subsets": subsets,
        "labels_by_scenario": {
            scenario: summarise([d for d in dialogues if d.scenario == scenario])["labels"]
            for scenario in SCENARIOS
            if any(d.scenario == scenario for d in dialogues)
        },
        "lengths": lengths(dialogues),
        "checks": dict(checks),
        "licences": [dict(licence) for licence in licences],
        "notes": list(notes),
        "versions": dict(versions),
    }


def render_card(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown, a stand-in named as such in the title."""
    counts = card["counts"]
    title = f"{card['name']}: {STAND_IN_TITLE}" if card["stand_in"] else str(card["name"])
    lines = [f"# {title}", ""]
    if card["stand_in"]:
        lines += [f"> {STAND_IN_NOTE}", ""]
    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in card["sample_rates_hz"].items()) or "none"
    facts = {
        "kind": f"{card['kind']}, its place taken by generated dialogues" if card["stand_in"] else card["kind"],
        "dialogues": counts["dialogues"],
        "turns": counts["turns"],
        "recordings (each counted once)": counts["recordings"],
        "hours of recordings": f"{counts['hours']:.3f}",
        "groups of same words in several styles": card["variant_groups"],
        "recordings by sample rate": rates,
        "seed": "none" if card["seed"] is None else card["seed"],
    }
    lines += _table(("fact", "value"), facts.items())
    lines += ["## Scenarios and splits", ""]
    columns = ("scenario", "split", "dialogues", "turns", "recordings", "hours")
    lines += _table(columns, ([row[column] for column in columns] for row in card["subsets"]))
    found = plots(card)
    lines += _images(section(found, "amounts")) + _images(section(found, "lengths"))
    lines += ["## Balance of labels", "", "Every recording counts once.", ""]
    lines += _images(section(found, "labels"))
    balance = []
    for attribute, values in counts["labels"].items():
        total = sum(values.values())
        balance += [(attribute, value, count, f"{count / total:.1%}") for value, count in values.items()]
    lines += _table(("attribute", "value", "turns", "share"), balance)
    lines += ["## Checks", "", *_checks(card["checks"])]
    lines += _images(section(found, "measured")) + _images(section(found, "rejected"))
    lines += ["## Licences", ""]
    lines += _records(card["licences"])
    lines += ["## Versions", ""]
    lines += _table(("part", "version"), sorted(card["versions"].items()))
    if card["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in card["notes"]), ""]
    lines += [
        "## Files",
        "",
        "- `manifest.jsonl`: one dialogue a line",
        "- `card.json`: this card for programs",
        "- `card.html`: this card as a page, with dialogues to listen to",
        "- `plots/`: the charts of this card",
        "- `checksums.sha256`: of every other file; check with `sha256sum --check --quiet checksums.sha256`",
        "",
    ]
    return "\n".join(lines)


def _images(found: Sequence[Plot]) -> list[str]:
    """The charts as images, which pages that show Markdown set side by side where there is room."""
    return [*(f"![{plot.title}]({PLOTS}/{plot.name}.svg)" for plot in found), ""] if found else []


def _checks(checks: Mapping[str, Any]) -> list[str]:
    """Checks that are objects become rows of one table, the others a table of key and value."""
    plain = {key: value for key, value in checks.items() if not isinstance(value, Mapping)}
    nested = [
        {"check": key, **_without_histograms(value)} for key, value in checks.items() if isinstance(value, Mapping)
    ]
    lines = _records(nested) if nested else []
    if plain or not nested:
        lines += _table(("check", "value"), plain.items())
    return lines


def _without_histograms(value: Mapping[str, Any]) -> dict[str, Any]:
    """A check's entry as it fits into a table: its histograms are charts."""
    return {
        key: _without_histograms(inner) if isinstance(inner, Mapping) else inner
        for key, inner in value.items()
        if "histogram" not in str(key)
    }


def _records(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return _table(columns, ([row.get(column) for column in columns] for row in rows))


def _table(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    body = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    if not body:
        return ["none", ""]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body, ""]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        value = ", ".join(f"{key}: {_cell(inner)}" for key, inner in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(_cell(inner) for inner in value)
    elif isinstance(value, float):
        value = f"{value:.6g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
