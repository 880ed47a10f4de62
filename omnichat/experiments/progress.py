"""How a run's sample replies changed while it trained, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from omnichat.experiments.runs import Row, Run
from omnichat.experiments.tables import Cell, Table
from omnichat.utils.files import read_jsonl

SHOWN_STEPS = 4  # the first, the last, and as many between them as fit


def reply_progress(runs: Sequence[Run]) -> list[tuple[str, Table]]:
    """(run, table of its sample replies over steps) of every run that kept some (trainer.watch.samples_every)."""
    return [(run.name, table) for run in runs if (table := _table(run)) is not None]


def _table(run: Run) -> Table | None:
    files = sorted((run.folder / "samples").glob("step-*.jsonl"))
    if not files:
        return None
    count = min(SHOWN_STEPS, len(files))
    shown = sorted({round(i * (len(files) - 1) / max(1, count - 1)) for i in range(count)})
    taken = [{row["id"]: row for row in read_jsonl(files[i])} for i in shown]
    steps = [int(files[i].stem.removeprefix("step-")) for i in shown]
    rows = []
    for name, last in taken[-1].items():
        heard = Cell(last["heard"], small=name)
        reference = Cell(last["reference"], small=_style(last["reference_style"]))
        rows.append((heard, reference, *(_reply(found.get(name)) for found in taken)))
    return Table(("Heard", "Reference", *(f"Step {step}" for step in steps)), tuple(rows))


def _reply(row: Row | None) -> Cell:
    if row is None:
        return Cell("–")
    return Cell(row["reply"], small=_style(row["style"]) if row["style"] is not None else "no style could be read")


def _style(style: Row) -> str:
    return ", ".join(str(style[name]) for name in ("pitch", "speed", "emotion") if style.get(name) is not None)
