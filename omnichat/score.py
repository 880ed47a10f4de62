"""`omnichat score`: predictions files of one or more systems -> every metric again, with intervals and paired tests."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from omnichat.config import ScoreRun
from omnichat.experiments.layouts.base import Layout
from omnichat.experiments.score_tables import Scores, figures_table, markdown, plain, scenarios, score_systems
from omnichat.experiments.systems import Given, align, read_systems
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import check_writable, write_json_atomic, write_text_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part

log = get_logger(__name__)


def run(config: ScoreRun) -> None:
    """Read the systems, hold them to the same replies and references, score them, write score.json and score.md."""
    given = _given(config.predictions)
    layout = build_part(config.layout or {}, "layout", Layout)
    layouts = {name: build_part(node, f"layouts.{name}", Layout) for name, node in config.layouts.items()}
    out = Path(config.out) if config.out is not None else _beside(given)
    check_writable(out, "out")
    systems, notes = read_systems(given, config.split, layout, layouts)
    names = [system.name for system in systems]
    if config.baseline is not None and config.baseline not in names:
        raise one_of("baseline", config.baseline, names)
    systems, left_out = align(systems, config.baseline or names[0], config.on_missing)
    for note in (*notes, *left_out):
        log.warning("%s", note)
    scores = score_systems(systems, config.split, config.baseline, config.score, (*notes, *left_out))
    write_json_atomic(out / "score.json", scores.to_json(config.score))
    write_text_atomic(out / "score.md", markdown(scores))
    print(plain(figures_table(scores, "all")))
    if more := len(scenarios(scores)) - 1:
        print(f"and {more} subsets (scenarios, sources, attributes): {out / 'score.md'}")
    print(f"scores: {out / 'score.json'}\ntables: {out / 'score.md'}\nnext: {_next(config, scores)}")


def _given(value: Any) -> Given:
    """The setting `predictions`, checked: a path, a list of them, or names of systems with one or a list."""
    if isinstance(value, dict) and value and all(_paths(paths) for paths in value.values()):
        return {str(name): paths for name, paths in value.items()}
    if isinstance(value, dict) or not _paths(value):
        raise UserError(
            "predictions must be a path, a list of paths, or names with one or more paths each: "
            "predictions=runs/demo, predictions=[a.jsonl,b.jsonl] or predictions={ours: runs/a, theirs: b.jsonl}"
        )
    paths: Given = value
    return paths


def _paths(value: Any) -> bool:
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and all(map(_is_path, value))))


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _beside(given: Given) -> Path:
    """The folder `score` beside the first path."""
    first: Any = next(iter(given.values())) if isinstance(given, dict) else given
    path = Path(first if isinstance(first, str) else first[0])
    return path / "score" if path.is_dir() and not (path / "config.yaml").is_file() else path.parent / "score"


def _next(config: ScoreRun, scores: Scores) -> str:
    """The same with paired tests, or beside another system, or the page of the runs, or the other split."""
    again = ["omnichat", "score", *sys.argv[1:]]
    names = [system.name for system in scores.systems]
    finer = shlex.join([*again, "score.bootstrap_samples=10000"])
    if len(names) == 1:
        if "layout=" in " ".join(again):  # the second system's files may be of another
            return finer
        both = f"predictions={{{names[0]}: {scores.systems[0].seeds[0].path}, other: FILE}}"
        return shlex.join(["omnichat", "score", both, f"baseline={names[0]}"])
    if scores.baseline is None:
        return shlex.join([*again, f"baseline={names[0]}"])
    folders = {seed.path.parent.parent for system in scores.systems for seed in system.seeds}
    if all((folder / "config.yaml").is_file() for folder in folders):
        return shlex.join(["omnichat", "report", f"runs=[{','.join(map(str, sorted(folders)))}]"])
    return finer
