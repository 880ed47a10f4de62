"""Runs as processes: the file that tells a process what to do, and several processes side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnichat.experiments.study.arms import OWN
from omnichat.experiments.study.work import TRAIN, Task
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, write_json_atomic

MODULE = "omnichat.study_job"  # what `python -m` runs on a job file
ASKED_TO_STOP = 128  # exit codes above it: it has saved itself and goes on at the next call


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does: train a run (if that is left) and evaluate it.

    Attributes:
        study: its folder. run: name. train: overrides of `omnichat train`; None = it is finished.
        evaluations: (split, set) pairs. evaluation: overrides of each. sets: name -> corpus folder.
        settings, config_hash, code: for the ledger. sources: name -> corpus folder.
    """

    study: str
    run: str
    train: list[str] | None
    evaluations: list[list[str]]
    evaluation: list[str]
    sets: dict[str, str]
    settings: list[str]
    config_hash: str | None
    code: dict[str, str | None]
    sources: dict[str, str]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.study) / "runs" / self.run

    @property
    def file(self) -> Path:
        """Where the job is written down."""
        return Path(self.study) / "jobs" / f"{self.run}.json"

    @property
    def log(self) -> Path:
        """What the process printed."""
        return Path(self.study) / "logs" / f"{self.run}.log"

    @classmethod
    def read(cls, path: Path) -> Job:
        """A job from its file. Raises UserError."""
        value = read_json(path)
        try:
            return cls(**value)
        except TypeError as error:
            raise UserError(f"{path}: not a job of a study: {error}") from None


def job_of(task: Task, study: Path, plumbing: Sequence[str], evaluation: Sequence[str], sets: dict[str, Path]) -> Job:
    """The job that does what is left of a run."""
    train = None
    if task.state == TRAIN:
        where = [f"runs={study / 'runs'}", f"name={task.spec.name}"]
        train = [*where, *task.spec.words, *plumbing, f"resume={'never' if task.again else 'auto'}"]
    return Job(
        study=str(study),
        run=task.spec.name,
        train=train,
        evaluations=[list(pair) for pair in task.evaluations],
        evaluation=list(evaluation),
        sets={name: str(sets[name]) for _, name in task.evaluations if name != OWN},
        settings=list(task.facts.settings),
        config_hash=task.facts.config_hash,
        code=dict(task.facts.code),
        sources={name: str(path) for name, path in task.composed.sources.items()},
    )


def write_job(job: Job) -> Path:
    """Write a job's file."""
    write_json_atomic(job.file, asdict(job))
    return job.file


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float


class Pool:
    """Several jobs at the same time on this machine, the cores divided among them.

    Args:
        workers: jobs at a time.
        on_start: told of each job as it begins.
        on_end: told (job, exit code, seconds) of each that has ended.
    """

    def __init__(
        self, workers: int, on_start: Callable[[Job], None], on_end: Callable[[Job, int, float], None]
    ) -> None:
        self.workers, self.on_start, self.on_end = workers, on_start, on_end
        self.running: list[_Running] = []
        self.stopping = False

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all of them in order; a job that fails does not stop the others. `stop` ends it early."""
        waiting = list(jobs)
        try:
            while self.running or (waiting and not self.stopping):
                while waiting and len(self.running) < self.workers and not self.stopping:
                    self._start(waiting.pop(0))
                self._collect()
        finally:
            for each in self.running:  # only if something went wrong here
                each.process.terminate()

    def stop(self) -> None:
        """Ask all running jobs to save themselves, and start no more."""
        self.stopping = True
        for each in self.running:
            each.process.send_signal(signal.SIGTERM)

    def _start(self, job: Job) -> None:
        path = write_job(job)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with open(job.log, "ab") as log:
            # A group of its own: Ctrl-C at the terminal reaches us alone, and we ask the jobs to stop.
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(path), str(os.getpid())],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        self.running.append(_Running(job, process, time.monotonic()))
        self.on_start(job)

    def _collect(self) -> None:
        for each in list(self.running):
            code = each.process.poll()
            if code is not None:
                self.running.remove(each)
                self.on_end(each.job, code, time.monotonic() - each.began)
        if self.running:
            time.sleep(0.1)


def last_line(log: Path) -> str:
    """The last line that a job printed: where it failed, the reason."""
    if not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].rpartition("\r")[2][-500:] if lines else ""


def as_words(values: dict[str, Any]) -> str:
    """Main figures in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())
