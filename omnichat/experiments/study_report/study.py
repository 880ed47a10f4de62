"""A study folder, read: plans (which runs stand behind which row), the ledger, the runs as far as they are there.

<study>/plans/<script>.json   arms (rows), each with its keys and its run folders, one a seed
<study>/ledger.jsonl          an event a line: a run was started, finished, failed or evaluated
<study>/runs/<name>/          ordinary run folders; several plans may name one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnichat.evaluation.predictions import read_predictions
from omnichat.evaluation.score import ScoreConfig, score
from omnichat.experiments.runs import Row, Run, load_run
from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl, read_json

KINDS = ("table", "curve", "bars", "statistics", "attention")
SCRIPTS = ("corpora", "dailytalk", "sharechatx", "alpha", "scale", "fusion", "windows", "experts", "overlap")
DONE, FAILED, MISSING, RUNNING, UNSCORED = "done", "failed", "missing", "unfinished", "not evaluated"


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One seed of an arm: its state in plain words, why (an error), and the run, where its folder can be read."""

    name: str
    seed: int | None
    folder: Path
    state: str
    why: str = ""
    run: Run | None = None

    @property
    def counted(self) -> Run | None:
        """The run, where its figures count."""
        return self.run if self.state == DONE else None


@dataclass(frozen=True, slots=True)
class Arm:
    """One row: its label, what sets it apart, and its runs."""

    label: str
    keys: Row
    runs: tuple[ArmRun, ...]

    @property
    def counted(self) -> list[Run]:
        """The runs whose figures count, one a seed."""
        return [found for run in self.runs if (found := run.counted) is not None]

    @property
    def state(self) -> str:
        """What a row without a figure says: the gravest state of its runs."""
        states = [run.state for run in self.runs]
        return next((s for s in (FAILED, MISSING, RUNNING, UNSCORED) if s in states), DONE if states else MISSING)


@dataclass(frozen=True, slots=True)
class Plan:
    """One script's table or figure.

    Attributes:
        corpora: name -> folder.
        x: the key of the arms that stands on the x axis.
        baseline: label of the arm that the others are tested against.
        pick_on, report_on: the split on which a value is chosen, and the one that the tables show.
        metrics: columns; none = whatever there is.
        sets: test sets from outside that belong to it; None = every one that its runs have figures on.
    """

    script: str
    title: str
    kind: str
    arms: tuple[Arm, ...]
    corpora: dict[str, Path]
    seeds: tuple[int, ...]
    x: str | None
    baseline: str | None
    pick_on: str
    report_on: str
    metrics: tuple[str, ...]
    note: str
    sets: tuple[str, ...] | None

    @property
    def against(self) -> Arm | None:
        """The arm that the others are tested against."""
        return next((arm for arm in self.arms if arm.label == self.baseline), None)

    @property
    def runs(self) -> list[Run]:
        """Every run of the plan whose figures count, once."""
        found = {run.folder: run for arm in self.arms for run in arm.counted}
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Study:
    """A whole study. `unreadable`: one line for each run folder that cannot be read."""

    folder: Path
    preset: str
    plans: tuple[Plan, ...]
    ledger: tuple[Row, ...]
    unreadable: tuple[str, ...]


def read_study(folder: Path) -> Study:
    """Read a study folder.

    Raises:
        UserError: no such folder, no plan in it, a plan or ledger that is damaged; one line with the file (and line).
    """
    if not folder.is_dir():
        raise UserError(f"study: {folder} is not a folder")
    paths = sorted((folder / "plans").glob("*.json"))
    if not paths:
        raise UserError(f"study: {folder}/plans holds no plan (*.json): run a script of the study first")
    ledger = _read_ledger(folder / "ledger.jsonl")
    last = {str(row.get("run")): row for row in ledger}
    cache: dict[Path, Run | UserError] = {}
    plans = [_read_plan(path, folder, last, cache) for path in paths]
    order = {name: number for number, name in enumerate(SCRIPTS)}
    plans.sort(key=lambda plan: (order.get(plan.script, len(order)), plan.script))
    presets = dict.fromkeys(str(read_json(path).get("preset", "")) for path in paths)
    broken = {where: found for where, found in cache.items() if isinstance(found, UserError)}
    unreadable = [str(found) for where, found in broken.items() if (where / "config.yaml").is_file()]
    return Study(folder, ", ".join(p for p in presets if p) or folder.name, tuple(plans), ledger, tuple(unreadable))


def _read_ledger(path: Path) -> tuple[Row, ...]:
    return tuple(row for _, row in iterate_jsonl(path)) if path.is_file() else ()


def _read_plan(path: Path, root: Path, last: Mapping[str, Row], cache: dict[Path, Run | UserError]) -> Plan:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    kind = _field(path, value, "kind", str, "table")
    if kind not in KINDS:
        raise one_of(f"{path}: kind", kind, KINDS)
    for key, fallback in (("pick_on", "dev"), ("report_on", "test")):
        if _field(path, value, key, str, fallback) not in SPLITS:
            raise one_of(f"{path}: {key}", value[key], SPLITS)
    arms = [_read_arm(path, n, raw, root, last, cache) for n, raw in enumerate(_field(path, value, "arms", list, []))]
    labels = [arm.label for arm in arms]
    if doubled := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{path}: two arms have the label {doubled[0]!r}")
    baseline = _field(path, value, "baseline", str, None)
    if baseline is not None and baseline not in labels:
        raise one_of(f"{path}: baseline", baseline, labels)
    script = _field(path, value, "script", str, path.stem)
    return Plan(
        script=script,
        title=_field(path, value, "title", str, script),
        kind=kind,
        arms=tuple(arms),
        corpora={str(name): root / str(where) for name, where in _field(path, value, "corpora", dict, {}).items()},
        seeds=tuple(_field(path, value, "seeds", list, [])),
        x=_field(path, value, "x", str, None),
        baseline=baseline,
        pick_on=_field(path, value, "pick_on", str, "dev"),
        report_on=_field(path, value, "report_on", str, "test"),
        metrics=tuple(str(metric) for metric in _field(path, value, "metrics", list, [])),
        note=_field(path, value, "note", str, ""),
        sets=tuple(map(str, _field(path, value, "sets", list, []))) if value.get("sets") is not None else None,
    )


def _field(path: Path, value: Row, key: str, kind: type, fallback: Any) -> Any:
    """A field of a plan; absent or null gives the fallback."""
    found = value.get(key)
    if found is None:
        return fallback
    if not isinstance(found, kind):
        raise UserError(f"{path}: {key} must be a JSON {kind.__name__}, got {type(found).__name__}")
    return found


def _read_arm(
    path: Path, number: int, raw: Any, root: Path, last: Mapping[str, Row], cache: dict[Path, Run | UserError]
) -> Arm:
    if not isinstance(raw, dict) or not isinstance(raw.get("label"), str):
        raise UserError(f"{path}: arms[{number}] must be an object with a label")
    runs = []
    for entry in _field(path, raw, "runs", list, []):
        if not isinstance(entry, dict) or not isinstance(entry.get("folder"), str):
            raise UserError(f"{path}: arms[{number}] ({raw['label']}): each run states its folder")
        folder = root / entry["folder"]
        name = str(entry.get("name", folder.name))
        if folder not in cache:
            cache[folder] = _load(folder)
        runs.append(_state(name, entry.get("seed"), folder, last.get(name), cache[folder]))
    return Arm(raw["label"], _field(path, raw, "keys", dict, {}), tuple(runs))


def _load(folder: Path) -> Run | UserError:
    try:
        run = load_run(folder)
        return replace(run, metrics=(*run.metrics, *_outside_rows(run)))
    except UserError as error:
        return error  # one broken folder must not hide the others: the report names it


def _outside_rows(run: Run) -> list[Row]:
    """Figures on outside sets of which there are only predictions, predictions/<set>.<split>.jsonl."""
    known = {row.get("set") for row in run.metrics}
    known |= {str(row["scenario"]).removeprefix("source:") for row in run.metrics}
    rows: list[Row] = []
    for path in sorted((run.folder / "predictions").glob("*.*.jsonl")):
        name, _, split = path.stem.rpartition(".")
        if split in SPLITS and name not in known and not name.startswith("."):
            found = score(read_predictions(path), ScoreConfig(bertscore_model=None))
            rows += [row | {"set": name} for row in found if row["split"] == split]
    return rows


def _state(name: str, seed: int | None, folder: Path, event: Row | None, found: Run | UserError) -> ArmRun:
    """What the ledger and the folder together say of a run; the folder counts where they differ, but for a failure."""
    said = str((event or {}).get("event", ""))
    error = str((event or {}).get("error") or "")
    here = ArmRun(name, seed, folder, MISSING, error)
    if isinstance(found, UserError):
        if said == "failed":
            return replace(here, state=FAILED)
        if (folder / "config.yaml").is_file():
            return replace(here, state=FAILED, why=str(found))
        return replace(here, state=RUNNING if said == "started" else MISSING)
    here = replace(here, run=found)
    if found.state == "failed":
        return replace(here, state=FAILED, why=error or str(found.info.get("error", "")))
    if found.state not in ("finished", "unknown"):
        return replace(here, state=FAILED if said == "failed" else RUNNING)
    if found.metrics:
        # a failure after that was another evaluation's, which the report tells beside the figures that there are
        return replace(here, state=DONE, why=error if said == "failed" else "")
    return replace(here, state=FAILED if said == "failed" else UNSCORED)
