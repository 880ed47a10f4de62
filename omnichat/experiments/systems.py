"""The systems that `omnichat score` compares: their replies from files and run folders, checked against each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from omnichat.evaluation.predictions import Prediction, looks_like_prediction, read_predictions
from omnichat.evaluation.score import Extra
from omnichat.evaluation.sidecars import sidecars
from omnichat.experiments.layouts.base import Layout
from omnichat.experiments.layouts.own import OmniChatPredictions
from omnichat.experiments.runs import Run, is_moved_aside, load_runs, seed_groups
from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl

ON_MISSING = ("error", "common")
Given = str | Sequence[str] | Mapping[str, str | Sequence[str]]
_NAMED = 3  # ids that a message names


@dataclass(kw_only=True, slots=True)
class SystemsConfig:
    """Which systems are scored, and on what.

    Attributes:
        predictions: a path, a list of paths, or {name: path or list of paths}; see `read_systems`.
        baseline: system that the others are tested against; None leaves the paired tests out.
        split: which replies count.
        on_missing: what to do where a system lacks replies that others have; see `align`.
        out: folder of score.json and score.md; None = the folder "score" beside the first path.
    """

    predictions: Any = None
    baseline: str | None = None
    split: str = "test"
    on_missing: str = "error"
    out: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("split", SPLITS), ("on_missing", ON_MISSING)):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)


@dataclass(frozen=True, slots=True)
class Seed:
    """One seed's replies to one split, where they come from, and more numbers a reply (metric -> key -> number)."""

    path: Path
    predictions: tuple[Prediction, ...]
    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class System:
    """A system: its replies, once or with several seeds."""

    name: str
    seeds: tuple[Seed, ...]


def read_systems(
    given: Given, split: str, layout: Layout, layouts: Mapping[str, Layout]
) -> tuple[tuple[System, ...], list[str]]:
    """Return the systems that `given` names, and notes on what was read.

    Args:
        given: a path, a list of paths (each a system; run folders of one recipe with several seeds are one system), or
            {name: path or list of paths} (a list: the seeds of that system). A path is a file, a run folder, a folder
            of run folders, or whatever folder the layout reads.
        split: which replies count; a run folder's file is predictions/<split>.jsonl.
        layout: how files are read that are not of ours; our own files and run folders are known as such.
        layouts: other layouts, by the name of their system in `given`.

    Raises:
        UserError: a path that is not there, a name twice, no replies of the split, or see `Layout.read`.
    """
    if isinstance(given, Mapping):
        if wrong := [name for name in layouts if name not in given]:
            raise one_of("layouts", wrong[0], given)
        systems: list[System] = []
        for name, paths in given.items():
            listed = [paths] if isinstance(paths, str) else paths
            systems += _named(name, _read(map(Path, listed), split, layouts.get(name, layout)))
    else:
        if layouts:
            raise UserError("layouts goes by the names of systems: give predictions={NAME: PATH, ...}")
        systems = _unnamed(_read(map(Path, [given] if isinstance(given, str) else given), split, layout))
    names = [system.name for system in systems]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"predictions: two systems are called {twice[0]!r}; name them: predictions={{NAME: PATH, ...}}")
    return tuple(systems), [note for one in (layout, *layouts.values()) for note in one.notes]


def align(systems: Sequence[System], first: str, on_missing: str) -> tuple[tuple[System, ...], list[str]]:
    """Return the systems on one set of replies, in one order, and notes on what was left out.

    Args:
        systems: as `read_systems` gives them.
        first: system whose references the others must have.
        on_missing: what to do where a system or a seed lacks replies that others have: "error", or "common", which
            keeps the replies that all have.

    Raises:
        UserError: missing replies, no reply that all have, or other references than `first` has; one line.
    """
    keyed = {(s.name, seed.path): {p.key: p for p in seed.predictions} for s in systems for seed in s.seeds}
    everything = list(dict.fromkeys(key for replies in keyed.values() for key in replies))
    common = [key for key in everything if all(key in replies for replies in keyed.values())]
    lacking = []
    for (name, path), replies in keyed.items():
        if missing := [key for key in everything if key not in replies]:
            lacking.append(f"{_who(systems, name, path)} lacks {len(missing)} of {len(everything)} ({_some(missing)})")
    notes = []
    if lacking:
        told = "; ".join(lacking[:_NAMED]) + (f"; and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else "")
        if not common:
            raise UserError(f"predictions: no reply is there in every system: {told}")
        if on_missing == "error":
            raise UserError(f"predictions: {told}; on_missing=common scores the {len(common)} replies that all have")
        notes.append(f"{len(common)} replies are scored that all have: {told}")
    reference = next(keyed[s.name, s.seeds[0].path] for s in systems if s.name == first)
    for (name, path), replies in keyed.items():
        if other := [key for key in common if replies[key].reference != reference[key].reference]:
            words = [repr(p[other[0]].reference.text[:40]) for p in (replies, reference)]
            same = "its style differs" if words[0] == words[1] else f"{words[0]} and not {words[1]}"
            raise UserError(
                f"predictions: {_who(systems, name, path)} has other references than {first!r} for {len(other)} of "
                f"{len(common)} replies (first {other[0]}: {same}); score both against one, e.g. with layout=jsonl "
                f"layout.references={next(s.seeds[0].path for s in systems if s.name == first)}"
            )
    aligned = []
    for system in systems:
        seeds = []
        for seed in system.seeds:
            replies = keyed[system.name, seed.path]
            seeds.append(replace(seed, predictions=tuple(replies[key] for key in common)))
        aligned.append(System(system.name, tuple(seeds)))
    return tuple(aligned), notes


@dataclass(frozen=True, slots=True)
class _Found:
    """One seed's replies as a path gave them: what the path is called, the system's name in the file, the run."""

    called: str
    inner: str
    seed: Seed
    run: Run | None = None


def _named(name: str, found: Sequence[_Found]) -> list[System]:
    """One entry of the mapping: a system with its seeds, or several systems where the files name them."""
    inner = list(dict.fromkeys(one.inner for one in found))
    return [
        System(f"{name}/{one}" if one else name, tuple(other.seed for other in found if other.inner == one))
        for one in inner
    ]


def _unnamed(found: Sequence[_Found]) -> list[System]:
    """Systems by the names in the files, of the files, or of the runs; runs of one recipe are one system."""
    of_run = {one.run.name: one for one in found if one.run is not None}
    groups = seed_groups([one.run for one in found if one.run is not None])
    group_of = {run.name: group for group in groups for run in group}
    systems = []
    for one in found:
        if one.run is None:
            systems.append(System(one.inner or one.called, (one.seed,)))
        elif one.run is group_of[one.run.name][0]:
            names = [run.name for run in group_of[one.run.name]]
            systems.append(System(_recipe_name(names), tuple(of_run[name].seed for name in names)))
    return systems


def _recipe_name(names: Sequence[str]) -> str:
    """What the names of a recipe's runs have in common: `words-seed0` and `words-seed1` are `words`."""
    if len(names) == 1:
        return names[0]
    columns = zip(*names, strict=False)  # names differ in length: the shortest ends it
    shared = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, columns))
    return re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", shared) or names[0]


def _read(paths: Iterable[Path], split: str, layout: Layout) -> list[_Found]:
    """The replies at some paths, in order."""
    found: list[_Found] = []
    runs: list[Path] = []
    for path in paths:
        if path.is_file():
            called = path.parent.parent.name if path.parent.name == "predictions" else path.stem
            inside = _read_file(path, layout)
            found += [_Found(called, inner, _seed(path, split, rows)) for inner, rows in inside.items()]
        elif not path.is_dir():
            raise UserError(f"predictions: {path}: no such file or folder")
        elif (path / "config.yaml").is_file():
            runs.append(path)
        elif layout.folders:
            inside = layout.read(path)
            found += [_Found(path.name, inner, _seed(path, split, rows)) for inner, rows in inside.items()]
        else:
            below = sorted(config.parent for config in path.glob("*/config.yaml"))
            evaluated = [p for p in below if not is_moved_aside(p) and (p / "predictions" / f"{split}.jsonl").is_file()]
            if not evaluated:
                raise UserError(f"predictions: {path}: holds no run folder with predictions/{split}.jsonl")
            runs += evaluated
    for run in load_runs(runs) if runs else ():
        file = run.folder / "predictions" / f"{split}.jsonl"
        if split not in run.predictions:
            raise UserError(
                f"predictions: {file}: no such file; make it: omnichat evaluate run={run.folder} split={split}"
            )
        found.append(_Found(run.name, "", _seed(file, split, run.predictions[split]), run))
    return found


def _read_file(path: Path, layout: Layout) -> dict[str, tuple[Prediction, ...]]:
    if layout.folders:
        raise UserError(f"predictions: {path}: this layout reads a folder")
    if not isinstance(layout, OmniChatPredictions):
        first = next(iterate_jsonl(path), (0, {}))[1]
        if looks_like_prediction(first):  # ours, beside files of other systems
            return {"": read_predictions(path)}
    return layout.read(path)


def _seed(path: Path, split: str, predictions: Sequence[Prediction]) -> Seed:
    kept = tuple(p for p in predictions if p.split == split)
    if not kept:
        held = sorted({p.split for p in predictions})
        raise UserError(f"{path}: holds no {split} replies, but {', '.join(held)}: give split={held[0]}")
    return Seed(path, kept, sidecars(path, predictions) if path.is_file() else {})


def _who(systems: Sequence[System], name: str, path: Path) -> str:
    several = any(system.name == name and len(system.seeds) > 1 for system in systems)
    return f"{name!r} ({path})" if several else repr(name)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
