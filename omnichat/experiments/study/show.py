"""What a dry run prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omnichat.data.parquet_corpus import open_corpus
from omnichat.experiments.study.arms import OWN, Row
from omnichat.experiments.study.presets import Preset
from omnichat.experiments.study.records import is_corpus
from omnichat.experiments.study.work import DONE, Task


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def dry_run_text(
    preset: Preset,
    rows: Sequence[Row],
    tasks: Sequence[Task],
    basis: str,
    jobs: int,
    missing: Mapping[str, tuple[str, ...]],
) -> str:
    """Corpora, scripts, runs with their data and steps, hours.

    Args:
        basis: on what the estimates rest. jobs: runs at a time.
        missing: name -> command of the corpora that are to be made.
    """
    lines = [f"preset {preset.name}", "", "corpora"]
    for name, corpus in preset.corpora.items():
        state = _counts(corpus.path) if is_corpus(corpus.path) else "not there"
        how = f"   $ omnichat {' '.join(missing[name])}" if name in missing else ""
        lines.append(f"  {name:<12} {corpus.path!s:<36} {state}{how}")
    lines += ["", "scripts"]
    for row in rows:
        runs = sum(len(row.seeds if arm.seeds is None else arm.seeds) for arm in row.arms)
        lines.append(f"  {row.script:<12} {len(row.arms):>3} arms, {runs:>3} runs   {row.title}")
    lines += ["", f"runs ({len(tasks)}, those that several scripts share counted once)"]
    width = max((len(task.spec.name) for task in tasks), default=0)
    for task in tasks:
        lines.append(f"  {task.spec.name:<{width}}  {_what(task)}")
    lines.append("")
    total = sum(task.seconds for task in tasks)
    left = sum(task.state != DONE for task in tasks)
    lines.append(f"{left} of {len(tasks)} runs to do: about {duration(total)} of runs, by {basis}")
    lines.append(f"with --jobs {jobs}: about {duration(total / jobs)}, corpora and features not counted")
    return "\n".join(lines)


def _what(task: Task) -> str:
    """State, steps, data and hours of one run."""
    sources = " + ".join(task.composed.sources)
    tests = " ".join(f"{name}.{split}" if name != OWN else split for split, name in task.evaluations)
    changed = f"   CHANGED: {', '.join(task.changed)}" if task.changed else ""
    if task.state == DONE:
        return f"done{changed}"
    return f"{task.state:<8} {task.composed.steps} steps  {sources}  tests: {tests}  {duration(task.seconds)}{changed}"


def _counts(path: object) -> str:
    corpus = open_corpus(str(path), verify="exists")
    return " / ".join(str(corpus.count(split)) for split in ("train", "dev", "test")) + " dialogues (train/dev/test)"
