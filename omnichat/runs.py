"""`omnichat runs`: what the runs below a folder are doing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omnichat.config import RunsRun
from omnichat.experiments.run_list import list_runs, table_rows

_COLOURS = {"running": "green", "finished": "cyan", "stopped": "yellow", "failed": "red", "dead": "red"}
_WIDE = 400  # columns of a pipe, where nothing is to be cut


def run(config: RunsRun) -> None:
    """Print the list, as a table or as JSON."""
    found = list_runs(
        Path(config.runs),
        state=config.state,
        name=config.name,
        metric=config.metric,
        moved_aside=config.all,
        dead_after_sec=config.dead_after_sec,
    )
    if config.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], indent=2, ensure_ascii=False))
        return
    titles, rows = table_rows(found, config.metric)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title not in ("run", "state", "input") else "left")
    for entry, cells in zip(found, rows, strict=True):
        table.add_row(
            *(Text(cell, style=_COLOURS.get(entry.state, "") if i == 1 else "") for i, cell in enumerate(cells))
        )
    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    console.print(table)
    for entry in found:
        for problem in entry.problems:
            console.print(f"{entry.name}: {problem}", markup=False, style="dim")
    if config.command:
        for entry in found:
            print(f"\n{entry.name}\n  {entry.command or '(unknown: no run.json)'}")
