"""What is left to do for each run of a study, and how long it may take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from omnichat.experiments.study.arms import OWN, RunSpec
from omnichat.experiments.study.ledger import Facts, Ledger, changes
from omnichat.experiments.study.presets import Pace
from omnichat.experiments.study.records import data_fingerprints
from omnichat.training.identity import result_settings
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes

DONE, EVALUATE, TRAIN = "done", "evaluate", "train"


@dataclass(frozen=True, slots=True)
class Composed:
    """What a run's overrides come to.

    Attributes:
        config_hash: of all resolved settings that set the result.
        sources: name -> corpus folder. input: what the model gets of the user's turns. steps: of the optimiser.
    """

    config_hash: str
    sources: Mapping[str, Path]
    input: str
    steps: int | None


def settings_hash(plain: dict[str, Any]) -> str:
    """SHA-256 of what sets a run's result in its resolved config."""
    return sha256_bytes(json.dumps(result_settings(plain), sort_keys=True).encode())


Compose = Callable[[RunSpec], Composed]


@dataclass(slots=True)
class Task:
    """A run and what is left of it.

    Attributes:
        state: DONE, EVALUATE or TRAIN. evaluations: (split, set) pairs that are missing.
        changed: how the run that is there differs from what is asked for, see `ledger.changes`.
        again: begin anew and move what is there aside.
        seconds: how long the rest may take, alone on its share of the machine.
    """

    spec: RunSpec
    composed: Composed
    facts: Facts
    state: str
    evaluations: tuple[tuple[str, str], ...]
    changed: dict[str, str] = field(default_factory=dict)
    again: bool = False
    seconds: float = 0.0


def task_of(
    spec: RunSpec,
    composed: Composed,
    ledger: Ledger,
    code: Mapping[str, str | None],
    evaluation: Sequence[str],
    sets: Mapping[str, Path],
) -> Task:
    """What a run still needs, by the ledger.

    Args:
        evaluation: overrides of every evaluation.
        sets: name -> folder of the corpora that runs are tested on besides their own.
    """
    facts = Facts(tuple(spec.words), composed.config_hash, data_fingerprints(composed.sources), code)
    task = Task(spec, composed, facts, TRAIN, tuple(sorted(spec.evaluations)))
    begun = ledger.last(spec.name, "started", "finished")
    if begun is None:
        return task
    task.changed = changes(begun, facts)
    if begun["event"] == "finished":
        prints = data_fingerprints(sets)
        missing = [
            (split, name)
            for split, name in sorted(spec.evaluations)
            if not _evaluated(ledger, spec.name, split, name, list(evaluation), prints)
        ]
        task.state, task.evaluations = (EVALUATE if missing else DONE), tuple(missing)
    return task


def _evaluated(
    ledger: Ledger, run: str, split: str, name: str, evaluation: list[str], prints: Mapping[str, str]
) -> bool:
    event = ledger.evaluated(run, split, name, evaluation)
    return event is not None and (name == OWN or event["data"].get(name) == prints.get(name))


def refuse_changed(tasks: Sequence[Task], accept: Sequence[str], remake: bool) -> list[str]:
    """Lines about runs that were made of something else; with `remake` they are begun anew.

    Raises:
        UserError: there are changes that are neither accepted nor to be made anew.
    """
    lines, refused = [], set()
    for task in tasks:
        open_ = {word: how for word, how in task.changed.items() if word not in accept}
        for word, how in task.changed.items():
            lines.append(f"{task.spec.name}: {word} changed: {how}{'' if word in open_ else ' (accepted)'}")
        if open_ and remake:
            task.again, task.state, task.evaluations = True, TRAIN, tuple(sorted(task.spec.evaluations))
        elif open_:
            refused |= set(open_)
    if refused:
        words = " ".join(sorted(refused))
        first = next(line for line in lines if not line.endswith("(accepted)"))
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(
            f"{first}{more}; runs made of different things do not belong in one table: --remake makes these runs anew, "
            f"--accept {words} takes them as they are"
        )
    return lines


def estimate(tasks: Sequence[Task], ledger: Ledger, pace: Pace) -> str:
    """Set `seconds` of every task; returns on what the figures rest."""
    per_step, evaluations = _measured(ledger)
    for task in tasks:
        seconds = 0.0
        if task.state == TRAIN:
            step, steps = per_step.get(task.composed.input), task.composed.steps or 0
            usual = "text" if task.composed.input in ("text", "asr") else "speech"
            # What the ledger says of a step holds its share of a run's start and end.
            seconds += steps * step if step else pace.beside_sec + steps * pace.step_sec[usual]
        elif task.state == EVALUATE:
            seconds += pace.beside_sec
        once = median(evaluations) if evaluations else pace.evaluation_sec
        task.seconds = seconds + once * len(task.evaluations)
    if per_step:
        return f"measured here: the ledger's finished runs ({', '.join(sorted(per_step))})"
    return f"the preset's figures ({pace.measured})"


def _measured(ledger: Ledger) -> tuple[dict[str, float], list[float]]:
    """Seconds a step by input, seconds of each evaluation, of what this study has done so far."""
    steps: dict[str, list[float]] = {}
    evaluations = []
    for event in ledger.events:
        hours = event.get("hours")
        if not isinstance(hours, int | float):
            continue
        words = dict(word.partition("=")[::2] for word in event.get("settings", ()))
        if event["event"] == "finished" and words.get("trainer.steps", "").isdigit():
            count = max(1, int(words["trainer.steps"]))
            steps.setdefault(words.get("chat.input", "speech"), []).append(3600 * hours / count)
        elif event["event"] == "evaluated":
            evaluations.append(3600 * hours)
    return {name: median(found) for name, found in steps.items()}, evaluations
