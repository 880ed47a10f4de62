"""Arms, runs and rows of the study, as data: what is asked for, before anything is made.

An arm is one row of a table or one point of a curve; with each of its seeds it is a run. A run is named by what sets
its result, so that two scripts that ask for the same run share its folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnichat.utils.errors import UserError, one_of

KINDS = ("table", "curve", "bars", "statistics", "attention")
OWN = ""  # name of the test set that is the run's own mixture's
Settings = dict[str, str]  # override's key, as Hydra takes it (also +key, ~key) -> value


@dataclass(frozen=True, slots=True)
class Arm:
    """One row.

    Attributes:
        label: of the row, unique in its script.
        settings: overrides on top of the preset's.
        keys: what sets the row apart, for the report.
        seeds: one run each; None = the script's.
        sets: corpora on which its runs are tested besides their own.
    """

    label: str
    settings: Settings
    keys: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One script: its arms, and what the report makes of them.

    Attributes:
        script: name, as in scripts/study_<script>.py.
        kind: one of KINDS.
        seeds: of every arm without its own.
        corpora: names of the preset's corpora that it is about.
        x: the key of an arm that is the curve's abscissa.
        baseline: label of the arm that others are tested against.
        pick_on: split on which a value is picked; None where nothing is. All runs are evaluated on it, too.
        metrics: main columns, of `omnichat.evaluation.score.METRICS`.
        note: a sentence for the reader.
    """

    script: str
    title: str
    kind: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    corpora: tuple[str, ...]
    x: str | None = None
    baseline: str | None = None
    pick_on: str | None = None
    metrics: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise one_of("kind", self.kind, KINDS)
        labels = [arm.label for arm in self.arms]
        if doubled := sorted({label for label in labels if labels.count(label) > 1}):
            raise UserError(f"study {self.script}: two arms are called {doubled[0]!r}")
        if self.baseline is not None and self.baseline not in labels:
            raise one_of(f"study {self.script}: baseline", self.baseline, labels)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits on which the runs are evaluated."""
        return ("test",) if self.pick_on in (None, "test") else ("test", str(self.pick_on))


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: the same for every script that asks for it, but for `evaluations`.

    Attributes:
        settings: all overrides that set its result, seed included.
        evaluations: (split, set) pairs; the set OWN is what its own mixture holds out.
    """

    name: str
    seed: int
    settings: Settings
    evaluations: frozenset[tuple[str, str]]

    @property
    def words(self) -> list[str]:
        """The settings as overrides, in their order."""
        return words_of(self.settings)


def words_of(settings: Settings) -> list[str]:
    """Overrides as they are typed."""
    return [key if key.startswith("~") else f"{key}={value}" for key, value in settings.items()]


def settings_of(words: Iterable[str]) -> Settings:
    """`KEY=VALUE` words as settings. Raises UserError for a word that is no override."""
    found: Settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals or key.startswith("~")) or not re.fullmatch(r"[~+]{0,2}[\w./@-]+", key):
            raise UserError(f"--set {word!r} is no override: write KEY=VALUE, e.g. loader.batch_tokens=512")
        found[key] = value
    return found


def merged(*layers: Mapping[str, str]) -> Settings:
    """Settings of which a later layer's win; `+key` and `key` are one key, and `~key` takes all below it away."""
    found: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            bare = key.lstrip("+~")
            for old in list(found):
                same = old.lstrip("+~") == bare
                below = key.startswith("~") and old.lstrip("+~").startswith(f"{bare}.")
                if same or below:
                    del found[old]
            found[key] = value
    return found


def run_name(settings: Settings, base: Settings, seed: int) -> str:
    """What is different from the preset's settings, for the eye, then the seed and a hash of all of them.

    The order in which settings were given does not matter.
    """
    shown = [settings.get("chat.input", "speech"), f"alpha{settings.get('mixture.alpha', '0')}"]
    for key, value in sorted(settings.items()):
        if base.get(key) != value and key not in ("chat.input", "mixture.alpha", "seed"):
            parts = key.lstrip("+~").split(".")
            if key.startswith("~"):
                shown.append(f"no-{parts[-1]}")
            else:
                shown.append(
                    f"with-{parts[2]}" if parts[1:2] == ["sources"] and parts[-1] == "path" else parts[-1] + value
                )
    slug = re.sub(r"[^a-zA-Z0-9_.+-]+", "_", "-".join(shown))[:60].strip("_")
    text = json.dumps(sorted((key.lstrip("+"), value) for key, value in (settings | {"seed": str(seed)}).items()))
    return f"{slug}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def specs_of(row: Row, arm: Arm, base: Settings, extra: Settings) -> list[RunSpec]:
    """The runs of an arm, one a seed.

    Args:
        base: the preset's settings.
        extra: the user's, which win over the arm's.
    """
    settings = merged(base, arm.settings, extra)
    seeds = row.seeds if arm.seeds is None else arm.seeds
    outside = [("test", name) for name in arm.sets]  # nothing is picked on a set that is not the run's own
    wanted = frozenset([*((split, OWN) for split in row.splits), *outside])
    return [
        RunSpec(run_name(settings, base, seed), seed, merged(settings, {"seed": str(seed)}), wanted) for seed in seeds
    ]


def all_specs(rows: Iterable[Row], base: Settings, extra: Settings) -> list[RunSpec]:
    """The runs of several scripts, each once, with all evaluations that any of them asks for, in order of first use."""
    found: dict[str, RunSpec] = {}
    for row in rows:
        for arm in row.arms:
            for spec in specs_of(row, arm, base, extra):
                older = found.get(spec.name)
                wanted = spec.evaluations | (older.evaluations if older is not None else frozenset())
                found[spec.name] = RunSpec(spec.name, spec.seed, spec.settings, wanted)
    return list(found.values())


def plan_json(
    row: Row, preset: str, base: Settings, extra: Settings, corpora: Mapping[str, Path], whole: int | None
) -> dict[str, Any]:
    """What the report reads: arms, their runs and the corpora, by folders relative to the study's.

    Args:
        whole: training dialogues of the synthetic corpus, which arms of all dialogues have; None while it is not there.
    """
    arms: list[dict[str, Any]] = []
    seeds: set[int] = set()
    for arm in row.arms:
        runs: list[dict[str, Any]] = [
            {"name": spec.name, "seed": spec.seed, "folder": f"runs/{spec.name}"}
            for spec in specs_of(row, arm, base, extra)
        ]
        keys = {key: whole if key == "dialogues" and value is None else value for key, value in arm.keys.items()}
        arms.append({"label": arm.label, "keys": keys, "runs": runs})
        seeds |= {run["seed"] for run in runs}
    return {
        "script": row.script,
        "title": row.title,
        "preset": preset,
        "seeds": sorted(seeds) or list(row.seeds),
        "kind": row.kind,
        "arms": arms,
        "corpora": {name: str(corpora[name]) for name in row.corpora},
        "sets": sorted({name for arm in row.arms for name in arm.sets}),
        "x": row.x,
        "baseline": row.baseline,
        "pick_on": row.pick_on,
        "report_on": "test",
        "metrics": list(row.metrics),
        "note": row.note,
    }
