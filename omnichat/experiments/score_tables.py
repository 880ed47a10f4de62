"""What `omnichat score` writes: every figure of every system, paired tests, and tables of them for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omnichat.evaluation.bootstrap import Measure
from omnichat.evaluation.metrics import METRICS
from omnichat.evaluation.score import ScoreConfig, bertscore_of, compare_seeds, figures, measures
from omnichat.experiments.runs import Row
from omnichat.experiments.systems import System
from omnichat.experiments.tables import (
    DASH,
    Cell,
    Comparison,
    Table,
    comparisons,
    figure_text,
    interval_text,
    markdown_text,
    stands_apart,
    tests_table,
)
from omnichat.utils.progress import progress

METHOD = (
    "Intervals are 95 % bootstrap intervals over dialogues (expanded BCa); with several seeds, over seeds and "
    "dialogues and, behind them, for other seeds on these dialogues. **Bold**: the best, its interval apart from all "
    "others'. "
    "▲ better, ▼ worse than the baseline by the paired test: p below 0.05 after Holm's adjustment over the systems."
)


@dataclass(frozen=True, slots=True)
class Scores:
    """The rows of all systems, each with its "system", the tests against the baseline, and what to know about them."""

    split: str
    systems: tuple[System, ...]
    rows: tuple[Row, ...]
    tests: tuple[Comparison, ...]
    baseline: str | None
    notes: tuple[str, ...]

    def to_json(self, config: ScoreConfig) -> dict[str, Any]:
        """The content of score.json."""
        named = [
            {
                "name": system.name,
                "files": [str(seed.path) for seed in system.seeds],
                "replies": len(system.seeds[0].predictions),
            }
            for system in self.systems
        ]
        tests = [{**asdict(test), "ci95": list(test.ci95)} for test in self.tests]
        return {
            "split": self.split,
            "baseline": self.baseline,
            "systems": named,
            "rows": list(self.rows),
            "tests": [{"system": test.pop("run"), **test} for test in tests],
            "notes": list(self.notes),
            "settings": asdict(config),
        }


def score_systems(
    systems: Sequence[System], split: str, baseline: str | None, config: ScoreConfig, notes: Sequence[str] = ()
) -> Scores:
    """Score systems on the same replies, and test each against the baseline; see `figures` and `compare_seeds`.

    Raises:
        UserError: the BERTScore model cannot be loaded.
    """
    bertscore = bertscore_of(config)
    found: dict[str, list[dict[str, Measure]]] = {}
    rows: list[Row] = []
    with progress(sum(len(system.seeds) for system in systems) + len(systems), "score", unit="file") as bar:
        for system in systems:
            found[system.name] = []
            for seed in system.seeds:
                found[system.name].append(measures(seed.predictions, bertscore, seed.extra))
                bar.update()
        for system in systems:
            replies = [seed.predictions for seed in system.seeds]
            mine = figures(replies, found[system.name], config, bertscore)
            rows += [{"system": system.name, "split": split} | row for row in mine]
            bar.update()
    tested: list[tuple[str, Row]] = []
    if baseline is not None:
        for system in systems:
            if system.name != baseline:
                replies = [seed.predictions for seed in system.seeds]
                tests = compare_seeds(replies, found[system.name], found[baseline], config)
                tested += [(system.name, test) for test in tests]
    return Scores(split, tuple(systems), tuple(rows), tuple(comparisons(tested)), baseline, tuple(notes))


def scenarios(scores: Scores) -> list[str]:
    """The subsets that have figures, in their order."""
    return list(dict.fromkeys(row["scenario"] for row in scores.rows))


def figures_table(scores: Scores, scenario: str) -> Table:
    """One subset: a metric a row, a system a column, with n, intervals and marks."""
    by_key = {(row["metric"], row["system"]): row for row in scores.rows if row["scenario"] == scenario}
    tests = {(test.metric, test.run): test for test in scores.tests if test.scenario == scenario}
    names = [system.name for system in scores.systems]
    lines = []
    for metric, info in METRICS.items():
        found = {name: by_key[metric, name] for name in names if (metric, name) in by_key}
        if not found:
            continue
        counts = list(dict.fromkeys(str(row["n"]) for row in found.values()))
        cells = [Cell(info.title), Cell("/".join(counts))]
        for name in names:
            row = found.get(name)
            if row is None:
                cells.append(Cell(DASH))
                continue
            others = [other for key, other in found.items() if key != name]
            test = tests.get((metric, name))
            cells.append(
                Cell(
                    figure_text(metric, row["value"]),
                    interval_text(metric, row),
                    _over_seeds(metric, row),
                    best=stands_apart(row, others, info.better),
                    mark=test.mark if test is not None else None,
                )
            )
        lines.append(tuple(cells))
    titles = [_title(scores, name) for name in names]
    return Table(("Metric", "n", *titles), tuple(lines), numeric=frozenset(range(1, len(titles) + 2)))


def markdown(scores: Scores) -> str:
    """The content of score.md."""
    parts = [f"# Scores of {len(scores.systems)} systems on {scores.split}\n", METHOD + "\n"]
    if scores.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in scores.notes) + "\n")
    for scenario in scenarios(scores):
        parts += [f"## {markdown_text(heading(scenario))}\n", figures_table(scores, scenario).markdown()]
    if scores.tests:
        parts += [f"## Paired tests against {markdown_text(str(scores.baseline))}\n"]
        parts.append(tests_table(scores.tests).markdown())
    parts.append("## What the metrics are\n")
    used = [metric for metric in METRICS if any(row["metric"] == metric for row in scores.rows)]
    for metric in used:
        notes = dict.fromkeys(r["note"] for r in scores.rows if r["metric"] == metric and _states(r))
        told = f" ({markdown_text('; '.join(notes))})" if notes else ""
        parts.append(f"- {METRICS[metric].title}: {METRICS[metric].meaning}{told}")
    parts.append("\n## Where the replies come from\n")
    for system in scores.systems:
        parts += [f"- {markdown_text(system.name)}: {markdown_text(str(seed.path))}" for seed in system.seeds]
    return "\n".join(parts) + "\n"


def plain(table: Table) -> str:
    """A table for the terminal, its columns aligned; `*` is the best, apart from all others."""

    def shown(cell: Cell) -> str:
        sign = ("*" if cell.best else "") + {"better": "▲", "worse": "▼", None: ""}[cell.mark]
        return " ".join(part for part in (cell.text + sign, cell.small) if part)

    grid = [list(table.columns), *([shown(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in grid) for column in range(len(table.columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in grid
    )


def heading(scenario: str) -> str:
    """A subset's name for people: "all replies", "scenario audio", "source X", "gender: female"."""
    if scenario == "all":
        return "All replies"
    kind, _, rest = scenario.partition(":")
    if kind == "attribute":
        name, _, value = rest.partition("=")
        return f"Attribute {name}: {value}" if value else f"Attribute {name}: all replies that state it"
    return f"Source {rest}" if kind == "source" else f"Scenario {scenario}"


def _over_seeds(metric: str, row: Mapping[str, Any]) -> str:
    if row.get("ci95_seeds") is None:
        return ""
    low, high = (figure_text(metric, bound) for bound in row["ci95_seeds"])
    return f"{row['seeds']} seeds [{low}, {high}]"


def _title(scores: Scores, name: str) -> str:
    seeds = next(len(system.seeds) for system in scores.systems if system.name == name)
    marks = [f"{seeds} seeds"] if seeds > 1 else []
    marks += ["baseline"] if name == scores.baseline else []
    return f"{name} ({', '.join(marks)})" if marks else name


def _states(row: Mapping[str, Any]) -> bool:
    """Whether a row's note is its library's label, and not of a shuffle or of one subset."""
    return bool(row.get("note")) and not re.search(r"shuffles|one dialogue", row["note"])
