"""Run folders: read what training and evaluation left behind, and say in one line what is wrong with a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from omnichat.evaluation.predictions import Prediction, read_predictions
from omnichat.evaluation.score import ScoreConfig, extra_rows
from omnichat.evaluation.sidecars import sidecars
from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl, read_json

Row = dict[str, Any]
_NOT_RECIPE = ("name", "runs", "seed", "resume", "tracking", "cache")  # these do not change what is trained


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder.

    Attributes:
        config: the resolved configuration (nested dicts).
        info: run.json: state, experts, parameters, hardware, versions, wall time; empty where the file is absent.
        data: data.json: alpha and the sources with their sizes; empty where the file is absent.
        steps, dev: rows of log.jsonl by ascending step; where a resumed run wrote a step twice, the last one.
        events: the other rows of log.jsonl (resume, skip, end), in order.
        predictions: replies to the run's own dialogues by split.
        metrics: rows of metrics.json, and those of a judge's grades and of spoken replies beside the predictions.
        problems: what is missing, in plain words.
        outside: test set from outside -> split -> replies.
    """

    name: str
    folder: Path
    config: Row
    info: Row
    data: Row
    steps: tuple[Row, ...]
    dev: tuple[Row, ...]
    events: tuple[Row, ...]
    predictions: dict[str, tuple[Prediction, ...]]
    metrics: tuple[Row, ...]
    problems: tuple[str, ...]
    outside: dict[str, dict[str, tuple[Prediction, ...]]] = field(default_factory=dict)

    @property
    def alpha(self) -> float | None:
        """The asked share of real training dialogues."""
        value = self.data["alpha"] if "alpha" in self.data else setting(self.config, "mixture.alpha")
        return None if value is None else float(value)

    @property
    def input(self) -> str | None:
        """What the model was given: speech, text, asr or speech_text."""
        return setting(self.config, "chat.input")

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return setting(self.config, "seed")

    @property
    def last_step(self) -> int | None:
        """The last optimiser step in the log."""
        return int(self.steps[-1]["step"]) if self.steps else None

    @property
    def state(self) -> str:
        """running, finished, failed, or unknown."""
        return str(self.info.get("state", "unknown"))

    @property
    def random_experts(self) -> tuple[str, ...]:
        """Names of the experts that have random weights."""
        return tuple(str(e["name"]) for e in self.info.get("experts", ()) if e.get("random"))

    @property
    def sources(self) -> tuple[Row, ...]:
        """The corpora of the mixture as data.json describes them."""
        return tuple(self.data.get("sources", ()))

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Names of the sources, trained on or tested on, that stand in for a real corpus."""
        names = {str(source["name"]) for source in self.sources if source.get("stand_in")}
        tested = [self.predictions, *self.outside.values()]
        names |= {p.source for splits in tested for part in splits.values() for p in part if p.stand_in}
        return tuple(sorted(names))

    def metric(self, split: str, metric: str, scenario: str = "all") -> Row | None:
        """Return a row of metrics.json, or None."""
        for row in self.metrics:
            if (row["split"], row["scenario"], row["metric"]) == (split, scenario, metric):
                return row
        return None


def setting(config: Row, path: str) -> Any:
    """Return the value at a dotted path of nested dicts, None where the path ends early."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def is_moved_aside(folder: Path) -> bool:
    """Whether `resume=never` moved this run aside for a newer one of its name (name.old1, name.old2, ...)."""
    return re.fullmatch(r".+\.old\d+", folder.name) is not None


def load_run(folder: Path) -> Run:
    """Read one run folder.

    A folder of a run that is still training is read as far as it goes; what is missing is listed in `problems`.

    Raises:
        UserError: no such folder, no config.yaml in it, or a file that cannot be read; one line, naming file and line.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder (it has no config.yaml)")
    problems: list[str] = []

    def optional(name: str, meaning: str, kind: type) -> Any:
        if not (folder / name).is_file():
            problems.append(f"no {name}: {meaning}")
            return kind()
        value = read_json(folder / name)
        if not isinstance(value, kind):
            raise UserError(f"{folder / name}: expected a JSON {kind.__name__}, got {type(value).__name__}")
        return value

    config = _read_config(folder / "config.yaml")
    info = optional("run.json", "state, hardware and versions are unknown", dict)
    data = optional("data.json", "the training data is unknown", dict)
    metrics = optional("metrics.json", "it has not been evaluated", list)
    _check_metrics(folder / "metrics.json", metrics)
    for number, source in enumerate(data.get("sources", ())):
        if not isinstance(source, dict) or "name" not in source:
            raise UserError(f"{folder / 'data.json'}: sources[{number}] lacks the field 'name'")
    predictions = {}
    for split in SPLITS:
        path = folder / "predictions" / f"{split}.jsonl"
        if path.is_file():
            predictions[split] = read_predictions(path)
            metrics += extra_rows(predictions[split], sidecars(path, predictions[split]), ScoreConfig())
    outside: dict[str, dict[str, tuple[Prediction, ...]]] = {}
    for path in sorted((folder / "predictions").glob("[!.]*.*.jsonl")):
        name, split = path.name.split(".")[:2]
        if path.name == f"{name}.{split}.jsonl" and split in SPLITS:
            outside.setdefault(name, {})[split] = read_predictions(path)
    if not predictions and not outside:
        problems.append("no predictions: samples and paired tests leave it out")
    steps, dev, events = _read_log(folder / "log.jsonl", problems)
    name = str(setting(config, "name") or folder.name)
    return Run(
        name, folder, config, info, data, steps, dev, events, predictions, tuple(metrics), tuple(problems), outside
    )


def load_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders; two runs of one name are told apart by their folders' names.

    Raises:
        UserError: no folder, the same folder twice, or see `load_run`.
    """
    if not folders:
        raise UserError("name at least one run folder")
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if resolved.count(folder.resolve()) > 1:
            raise UserError(f"{folder}: the run folder is named twice")
    runs = [load_run(folder) for folder in folders]
    names = [run.name for run in runs]
    unique: list[Run] = []
    for run in runs:
        name = run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder.name})"
        if name in [other.name for other in unique]:
            name = f"{run.name} ({run.folder})"
        fields = {field: getattr(run, field) for field in Run.__dataclass_fields__}
        unique.append(Run(**(fields | {"name": name})))
    return tuple(unique)


def find_run(runs: Sequence[Run], name: str) -> Run:
    """Return the run called `name` (or whose folder is). Raises UserError that lists the names."""
    for run in runs:
        if name in (run.name, run.folder.name):
            return run
    raise one_of("baseline", name, [run.name for run in runs])


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs grouped by configuration without name and seed: a group is one recipe with several seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        recipe = {key: value for key, value in run.config.items() if key not in _NOT_RECIPE}
        groups.setdefault(json.dumps(recipe, sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def _read_config(path: Path) -> Row:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping, got {type(value).__name__}")
    return value


def _check_metrics(path: Path, rows: list[Any]) -> None:
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not a JSON object")
        if missing := [key for key in ("split", "scenario", "metric", "value", "n") if key not in row]:
            raise UserError(f"{path}: row {number} lacks the field {missing[0]!r}")
        if not isinstance(row["value"], int | float):
            raise UserError(f"{path}: row {number}: value must be a number, got {row['value']!r}")


def _read_log(path: Path, problems: list[str]) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]:
    if not path.is_file():
        problems.append("no log.jsonl: its training curves are unknown")
        return (), (), ()
    steps: dict[int, Row] = {}
    dev: dict[int, Row] = {}
    events: list[Row] = []
    for number, row in iterate_jsonl(path):
        kind = row.get("event")
        if kind in ("step", "dev"):
            if not isinstance(row.get("step"), int):
                raise UserError(f"{path}:{number}: a {kind} row needs an integer step")
            (steps if kind == "step" else dev)[row["step"]] = row
        else:
            events.append(row)
    return tuple(steps[key] for key in sorted(steps)), tuple(dev[key] for key in sorted(dev)), tuple(events)
