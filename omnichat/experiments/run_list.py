"""A list of runs: what each is doing, how far it is, how well it does, and the command that made it.

Reads only small files and the lines of log.jsonl that it needs: a folder of hundreds of runs is listed at once. A run
that another process is writing, or that is damaged, is listed as far as it can be read.
"""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from omnichat.experiments.runs import is_moved_aside, setting
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json

STATES = ("running", "finished", "stopped", "failed", "dead", "unknown")


@dataclass(slots=True)
class RunSummary:
    """One line of the list.

    Attributes:
        state: one of STATES. dead: it says that it runs, but has written nothing for long.
        step, steps: optimiser steps done and asked; None where unknown.
        best_dev, best_step: the lowest dev loss and its step.
        metric: the figure that was asked for besides.
        wall_sec: training time of all its sessions; age_sec: since it last wrote something.
        requeue: it was stopped by SIGTERM and asks to be started again.
        command: that made it.
        problems: what could not be read.
    """

    name: str
    folder: str
    state: str = "unknown"
    step: int | None = None
    steps: int | None = None
    best_dev: float | None = None
    best_step: int | None = None
    metric: float | None = None
    input: str | None = None
    alpha: float | None = None
    seed: int | None = None
    wall_sec: float | None = None
    age_sec: float | None = None
    requeue: bool = False
    command: str | None = None
    problems: list[str] = field(default_factory=list)


def find_runs(root: Path, moved_aside: bool = False) -> list[Path]:
    """Every run folder at or below `root`, by name; those that `resume=never` moved aside only if asked.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        raise UserError(f"runs={root}: no such folder")
    found: list[Path] = []
    for place, folders, files in os.walk(root):
        path = Path(place)
        if not moved_aside and is_moved_aside(path):
            folders.clear()
        elif "config.yaml" in files:
            found.append(path)
            folders.clear()  # what wandb keeps in a run folder is no run
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def list_runs(
    root: Path,
    *,
    state: str | None = None,
    name: str = "*",
    metric: str | None = None,
    moved_aside: bool = False,
    dead_after_sec: float = 900.0,
) -> list[RunSummary]:
    """The runs at or below `root`, the one that wrote last first.

    Args:
        root: folder.
        state: only these; None = all.
        name: pattern of the path below `root` or of the folder's own name, as a shell's.
        metric: another figure: `dev/loss_style` or `step/mfu` of the log (the last one), or one of metrics.json as
            `test/bleu`.
        moved_aside: also runs that `resume=never` moved aside.
        dead_after_sec: how long a running run may be silent.

    Raises:
        UserError: no such folder or state, or no run has the metric.
    """
    if state is not None and state not in STATES:
        raise one_of("state", state, STATES)
    runs, known = [], set[str]()
    for folder in find_runs(root, moved_aside):
        relative = str(folder.relative_to(root)) if folder != root else folder.name
        if fnmatch.fnmatch(relative, name) or fnmatch.fnmatch(folder.name, name):
            run, figures = summarise(folder, relative, dead_after_sec)
            if metric is not None:
                run.metric = figures.get(metric)
            known |= set(figures)
            runs.append(run)
    if metric is not None and runs and metric not in known:
        raise one_of("metric", metric, sorted(known))
    chosen = [run for run in runs if state is None or run.state == state]
    return sorted(chosen, key=lambda run: (run.age_sec is None, run.age_sec or 0.0, run.name))


def summarise(folder: Path, name: str, dead_after_sec: float) -> tuple[RunSummary, dict[str, float]]:
    """One run's line, and every figure that `metric` can name."""
    run = RunSummary(name, str(folder))
    config = _read(run, folder / "config.yaml")
    info = _read(run, folder / "run.json")
    dev, last, resumed = _read_log(run, folder / "log.jsonl")
    run.state = info.get("state", "unknown") if info.get("state") in STATES else "unknown"
    run.step = max((row["step"] for row in (*dev, last, resumed) if isinstance(row.get("step"), int)), default=None)
    run.steps = info.get("steps", setting(config, "trainer.steps"))
    losses = [(row["loss"], row["step"]) for row in dev if isinstance(row.get("loss"), int | float)]
    run.best_dev, run.best_step = min(losses, default=(None, None))
    run.input, run.seed = setting(config, "chat.input"), setting(config, "seed")
    run.alpha = setting(config, "mixture.alpha")
    run.command = info.get("command")
    run.requeue = (folder / "REQUEUE").exists()
    _times(run, folder, info, dead_after_sec)
    figures = {
        f"{kind}/{key}": float(value)
        for kind, row in (("dev", dev[-1] if dev else {}), ("step", last))
        for key, value in row.items()
        if isinstance(value, int | float) and key != "step"
    }
    for row in _read(run, folder / "metrics.json", []) if (folder / "metrics.json").is_file() else []:
        if isinstance(row, dict) and row.get("scenario") == "all" and isinstance(row.get("value"), int | float):
            figures[f"{row.get('split')}/{row.get('metric')}"] = float(row["value"])
    return run, figures


def _times(run: RunSummary, folder: Path, info: dict[str, Any], dead_after_sec: float) -> None:
    """Wall time, age, and whether a running run is dead."""
    written = [path.stat().st_mtime for n in ("log.jsonl", "run.json", "config.yaml") if (path := folder / n).is_file()]
    run.age_sec = max(0.0, time.time() - max(written)) if written else None
    run.wall_sec = info.get("wall_seconds")
    if run.state == "running" and run.age_sec is not None:
        if run.wall_sec is not None:  # run.json is written at both ends only
            run.wall_sec += max(written) - (folder / "run.json").stat().st_mtime
        if run.age_sec > dead_after_sec:
            run.state = "dead"


def _read(run: RunSummary, path: Path, otherwise: Any = None) -> Any:
    """A JSON or YAML file; `otherwise` (an empty dict) with a problem noted where it is missing or damaged."""
    empty = {} if otherwise is None else otherwise
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" else read_json(path)
    except (UserError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        run.problems.append(f"{path.name}: {str(error).splitlines()[0]}")
        return empty
    if not isinstance(value, type(empty)):
        run.problems.append(f"{path.name}: expected {type(empty).__name__}, got {type(value).__name__}")
        return empty
    return value


def _read_log(run: RunSummary, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """(dev rows by step, the last step row, the last resume row); only these lines are parsed.

    What was logged above the step of a later resume belongs to a branch that the run has left.
    """
    dev: dict[int, dict[str, Any]] = {}
    last, resumed = b"{}", dict[str, Any]()
    if not path.is_file():
        return [], {}, {}
    try:
        with open(path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break  # what is being written now, or half a line of a killed writer
                if line.startswith(b'{"event": "dev"'):
                    row = json.loads(line)
                    dev[row["step"]] = row
                elif line.startswith(b'{"event": "step"'):
                    last = line
                elif line.startswith(b'{"event": "resume"'):
                    resumed = json.loads(line)
                    dev = {step: row for step, row in dev.items() if step <= resumed["step"]}
                    last = last if json.loads(last).get("step", 0) <= resumed["step"] else b"{}"
        return [dev[step] for step in sorted(dev)], json.loads(last), resumed
    except (ValueError, KeyError, TypeError) as error:
        run.problems.append(f"{path.name}: a damaged row: {error}")
        return [], {}, {}


def duration(seconds: float | None) -> str:
    """Two units of a time span: 3d4h, 2h05, 7m12, 41s."""
    if seconds is None:
        return "–"
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 60}m{whole % 60:02d}" if whole >= 60 else f"{whole}s"


def table_rows(runs: Sequence[RunSummary], metric: str | None) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of the list in words."""
    titles = ["run", "state", "step", "best dev loss", *([metric] if metric else []), "input", "alpha", "wall", "age"]
    rows = []
    for run in runs:
        best = "–" if run.best_dev is None else f"{run.best_dev:.4f} @ {run.best_step}"
        cells = [
            run.name,
            f"{run.state}{', requeue' if run.requeue else ''}",
            f"{_or_dash(run.step)}/{_or_dash(run.steps)}",
            best,
            *([_or_dash(run.metric)] if metric else []),
            _or_dash(run.input),
            _or_dash(run.alpha),
            duration(run.wall_sec),
            duration(run.age_sec),
        ]
        rows.append(cells)
    return titles, rows


def _or_dash(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
