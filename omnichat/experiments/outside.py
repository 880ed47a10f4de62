"""Figures on test sets from outside a run's mixture, apart from those of its own test set."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.experiments.runs import Run
from omnichat.experiments.tables import DASH, MAIN_COLUMNS, Cell, Table, column_title, figure_cell


def outside_table(runs: Sequence[Run]) -> Table | None:
    """One row for each set, split and run: the main figures on all its replies; None where no run has any."""
    found = {(row["set"], row["split"]) for run in runs for row in run.metrics if row.get("set") is not None}
    if not found:
        return None
    names = [metric for metric, scenario in MAIN_COLUMNS if scenario == "all"]
    names.insert(names.index("bleu"), "scene_hit")
    rows, shown = [], set()
    for name, split in sorted(found):
        tested = [run for run in runs if any((r.get("set"), r["split"]) == (name, split) for r in run.metrics)]
        for run in tested:
            cells = {m: figure_cell(tested, run, split, m, f"source:{name}", None) for m in names}
            shown |= {metric for metric, cell in cells.items() if cell.text != DASH}
            sizes = [r["n"] for r in run.metrics if (r.get("set"), r["split"], r["metric"]) == (name, split, "bleu")]
            size = f"{max(sizes)} replies" if sizes else ""
            rows.append(((Cell(name, size), Cell(split), Cell(run.name)), cells))
    kept = [name for name in names if name in shown]
    columns = ("Set", "Split", "Run", *(column_title(name, "all") for name in kept))
    body = tuple((*head, *(figures[name] for name in kept)) for head, figures in rows)
    return Table(columns, body, numeric=frozenset(range(3, len(columns))))
