"""One run of a study in one process: train what is left of it, evaluate it, write the events into the ledger.

    python -m omnichat.study_job studies/demo/jobs/NAME.json [process id of the study]

The study starts it; a Slurm job may as well. Training and evaluation are the verbs, called one after the other, so that
what they import is loaded once.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnichat.cli import run as run_verb
from omnichat.experiments.study.arms import OWN
from omnichat.experiments.study.jobs import ASKED_TO_STOP, Job, last_line
from omnichat.experiments.study.ledger import Facts, Ledger
from omnichat.experiments.study.records import check_corpora, data_fingerprints
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

MAIN_METRICS = (
    "emotion_f1",
    "emotion_f1_variants",
    "style_sensitivity",
    "scene_hit",
    "bleu",
    "rouge_l",
    "bertscore_f1",
)
_LOCK_WAIT_SEC = 180.0  # for a process of a killed study that still saves itself


def main(arguments: list[str]) -> int:
    """Do the job of a file; returns the exit code of the verb that failed, else 0."""
    if len(arguments) not in (1, 2):
        print("usage: python -m omnichat.study_job JOB.json [process id of the study]", file=sys.stderr)
        return 2
    try:
        job = Job.read(Path(arguments[0]))
        if len(arguments) == 2:
            _end_with(int(arguments[1]))
        with _alone(job):
            return _do(job)
    except UserError as error:
        print(f"study_job: error: {error}", file=sys.stderr)
        return 2


def _do(job: Job) -> int:
    ledger = Ledger(Path(job.study) / "ledger.jsonl")
    sources = {name: Path(path) for name, path in job.sources.items()}
    if job.train is not None:
        facts = _facts(job, sources)
        ledger.append(job.run, "started", facts)
        code = _verb(ledger, job, facts, ["train", *job.train], lambda: check_corpora(sources))
        if code != 0:
            return code
        info = read_json(job.folder / "run.json")
        ledger.append(job.run, "finished", facts, hours=round(info["wall_seconds"] / 3600, 5))
    for split in dict.fromkeys(split for split, _ in job.evaluations):
        names = [name for each, name in job.evaluations if each == split]
        code = _evaluate(ledger, job, split, names, sources)
        if code != 0:
            return code
    return 0


def _evaluate(ledger: Ledger, job: Job, split: str, names: list[str], sources: dict[str, Path]) -> int:
    """One evaluation of a split: its own test set, others, or both at once."""
    sets = {name: Path(job.sets[name]) for name in names if name != OWN}
    words = [f"run={job.folder}", f"split={split}", *job.evaluation]
    words += [f"+sets.{name}.path={path}" for name, path in sets.items()]
    words += [] if OWN in names else ["own=false"]
    began = time.monotonic()
    facts = _facts(job, sources if OWN in names else sets)
    code = _verb(ledger, job, facts, ["evaluate", *words], lambda: check_corpora(sets))
    hours = round((time.monotonic() - began) / 3600 / len(names), 5)
    for name in names if code == 0 else ():
        about = {"split": split, "set": name, "evaluation": job.evaluation}
        facts = _facts(job, sources if name == OWN else {name: sets[name]})
        ledger.append(job.run, "evaluated", facts, metrics=_metrics(job.folder, split, name), hours=hours, **about)
    return code


def _verb(ledger: Ledger, job: Job, facts: Facts, words: list[str], check: Any) -> int:
    """Run a verb; a failure goes into the ledger, with its last words."""
    print(f"$ omnichat {' '.join(words)}", flush=True)
    began, error = time.monotonic(), None
    try:
        check()
        code = run_verb(words)
    except UserError as wrong:
        code, error = 2, str(wrong)
    except Exception as wrong:  # a mistake of ours must not stop the other runs: it is told, and the code says so
        traceback.print_exc()
        code, error = 1, f"{type(wrong).__name__}: {wrong}"
    sys.stdout.flush()
    sys.stderr.flush()
    if 0 < code <= ASKED_TO_STOP:
        error = error or last_line(job.log) or f"exit code {code}"
        hours = round((time.monotonic() - began) / 3600, 5)
        ledger.append(job.run, "failed", facts, error=error, hours=hours)
    return code


def _facts(job: Job, data: dict[str, Path]) -> Facts:
    return Facts(tuple(job.settings), job.config_hash, data_fingerprints(data), job.code)


def _metrics(folder: Path, split: str, name: str) -> dict[str, float]:
    """Main figures of an evaluation: "test/emotion_f1", of another set "second.test/emotion_f1"."""
    found = {}
    for row in read_json(folder / "metrics.json"):
        own = row.get("set", OWN) == name and row["scenario"] == ("all" if name == OWN else f"source:{name}")
        if own and row["split"] == split and row["metric"] in MAIN_METRICS:
            where = split if name == OWN else f"{name}.{split}"
            found[f"{where}/{row['metric']}"] = round(float(row["value"]), 6)
    return found


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Hold the run: one process at a time may make it. Raises UserError when another does not let go of it."""
    path = Path(job.study) / "jobs" / f".{job.run}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        until = time.monotonic() + _LOCK_WAIT_SEC
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"{job.run}: another process is making this run") from None
                time.sleep(0.5)
        yield


def _end_with(parent: int) -> None:
    """When the study is killed and cannot ask us to, save and stop, so that the next call finds nobody at work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
