"""The study engine: corpora, features, runs, ledger; a second call does only what is missing.

<out>/<preset>/ledger.jsonl        every event (ledger.py)
<out>/<preset>/plans/SCRIPT.json   what stands behind a table (arms.plan_json)
<out>/<preset>/runs/NAME/          run folders, shared by the scripts
<out>/<preset>/jobs, logs          what each process was told, and what it printed
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omnichat.data.parquet_corpus import open_corpus
from omnichat.experiments.study.arms import OWN, Row, RunSpec, Settings, all_specs, merged, plan_json, words_of
from omnichat.experiments.study.jobs import ASKED_TO_STOP, Job, Pool, as_words, job_of
from omnichat.experiments.study.ledger import Ledger
from omnichat.experiments.study.presets import Preset
from omnichat.experiments.study.records import code_facts, is_corpus
from omnichat.experiments.study.show import dry_run_text, duration
from omnichat.experiments.study.slurm import Resources, submit
from omnichat.experiments.study.work import DONE, Compose, Task, estimate, refuse_changed, task_of
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic
from omnichat.utils.signals import answered

OMNICHAT = [sys.executable, "-m", "omnichat.cli"]
FAILED, STOPPED = 1, 130


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        out: folder of the studies. jobs: runs at a time. accept: words of `ledger.CHANGES`. remake: make changed runs
            anew. extra: further overrides of every run.
    """

    out: Path = Path("studies")
    jobs: int = 1
    accept: tuple[str, ...] = ()
    remake: bool = False
    extra: Settings = field(default_factory=dict)


class Study:
    """Some rows of the study at one size.

    Args:
        preset: the size.
        rows: what is asked for.
        options: of the command line.
        compose: resolves a run's overrides.
    """

    def __init__(self, preset: Preset, rows: Sequence[Row], options: Options, compose: Compose) -> None:
        self.preset, self.rows, self.options = preset, rows, options
        self.folder = options.out / preset.name
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        self.code = code_facts()
        self.specs = all_specs(rows, preset.base, options.extra)
        self.composed = {spec.name: compose(spec) for spec in self.specs}

    @property
    def sets(self) -> dict[str, Path]:
        """Corpora that runs may be tested on besides their own."""
        return {name: corpus.path for name, corpus in self.preset.corpora.items()}

    def tasks(self) -> tuple[list[Task], str]:
        """Every run with what is left of it, and on what the estimates rest."""
        evaluation = self.preset.evaluation
        found = [
            task_of(spec, self.composed[spec.name], self.ledger, self.code, evaluation, self.sets)
            for spec in self.specs
        ]
        return found, estimate(found, self.ledger, self.preset.pace)

    def dry_run(self) -> str:
        """What would be done, in words."""
        tasks, basis = self.tasks()
        return dry_run_text(self.preset, self.rows, tasks, basis, self.options.jobs, self.missing_corpora())

    def missing_corpora(self) -> dict[str, tuple[str, ...]]:
        """Name -> command of every corpus that is needed and not there."""
        needed = {name for row in self.rows for name in row.corpora}
        needed |= {name for spec in self.specs for _, name in spec.evaluations if name != OWN}
        paths = {path for composed in self.composed.values() for path in composed.sources.values()}
        return {
            name: corpus.command
            for name, corpus in self.preset.corpora.items()
            if (name in needed or corpus.path in paths) and not is_corpus(corpus.path)
        }

    def write_plans(self) -> None:
        """Write the plan of every row."""
        corpora = {name: Path(os.path.relpath(path, self.folder)) for name, path in self.sets.items()}
        path = self.preset.corpora["sharechatx"].path
        whole = open_corpus(path, verify="exists").count("train") if is_corpus(path) else None
        for row in self.rows:
            plan = plan_json(row, self.preset.name, self.preset.base, self.options.extra, corpora, whole)
            write_json_atomic(self.folder / "plans" / f"{row.script}.json", plan)

    def jobs(self, tasks: Sequence[Task]) -> list[Job]:
        """A job for every run that is not done."""
        plumbing = words_of(self.preset.plumbing)
        left = [task for task in tasks if task.state != DONE]
        return [job_of(task, self.folder, plumbing, self.preset.evaluation, self.sets) for task in left]

    def preparations(self, tasks: Sequence[Task]) -> list[list[str]]:
        """Commands before the runs: corpora that are missing, then the feature cache, once for each set of experts."""
        commands = [list(command) for command in self.missing_corpora().values()]
        groups: dict[tuple[str, ...], list[Task]] = {}
        for task in tasks:
            if task.state != DONE and task.composed.input in ("speech", "speech_text"):
                groups.setdefault(_experts(task.spec), []).append(task)
        for group in groups.values():
            commands.append(["cache", *words_of(self._cache_settings(group))])
        return commands

    def _cache_settings(self, group: Sequence[Task]) -> Settings:
        """One run's settings with the corpora of all of them."""
        paths: dict[str, str] = {}
        for task in group:
            paths |= {name: str(path) for name, path in task.composed.sources.items()}
            paths |= {name: str(self.sets[name]) for _, name in task.evaluations if name != OWN}
        base = {key: value for key, value in group[0].spec.settings.items() if "mixture.sources." not in key}
        known = {key.split(".")[2] for key in self.preset.base if key.startswith("mixture.sources.")}
        # The recipe names its own sources; what others bring is new to it.
        sources = {f"{'' if n in known else '+'}mixture.sources.{n}.path": path for n, path in sorted(paths.items())}
        unused = {f"~mixture.sources.{name}": "" for name in sorted(known - set(paths))}
        return merged(base, unused, sources)

    def run(self) -> int:
        """Do what is missing; returns 0, FAILED if any run failed, STOPPED if it was asked to stop.

        Raises:
            UserError: runs that were made of other things, a corpus that cannot be made, another study at work here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            tasks, _ = self.tasks()
            refuse_changed(tasks, self.options.accept, self.options.remake)  # before hours of work
            self.write_plans()
            for command in self.preparations(tasks):
                say(f"$ omnichat {' '.join(command)}")
                code = subprocess.run([*OMNICHAT, *command]).returncode
                if code != 0:
                    raise UserError(f"omnichat {command[0]} failed with exit code {code}; the same call continues")
            tasks, _ = self.tasks()  # anew: corpora were made
            self.write_plans()
            for line in refuse_changed(tasks, self.options.accept, self.options.remake):
                say(line)
            return _Progress(self, tasks).run()

    def submit(self, resources: Resources) -> dict[str, str]:
        """Hand what is missing to Slurm; returns name -> id of the Slurm job. Raises UserError as `run` does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            tasks, _ = self.tasks()
            for line in refuse_changed(tasks, self.options.accept, self.options.remake):
                say(line)
            self.write_plans()
            return submit(self.folder, self.jobs(tasks), self.preparations(tasks), resources)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another study is at work in this folder; wait for it") from None
            yield


class _Progress:
    """Runs the jobs of a study and says how far it is."""

    def __init__(self, study: Study, tasks: Sequence[Task]) -> None:
        self.study, self.tasks = study, {task.spec.name: task for task in tasks}
        self.jobs = study.jobs(tasks)
        self.ended: dict[str, int] = {}
        self.numbers = {job.run: number for number, job in enumerate(self.jobs, start=1)}
        self.began = time.monotonic()
        workers = max(1, min(study.options.jobs, len(self.jobs)))
        self.pool = Pool(workers, self._started, self._ended)

    def run(self) -> int:
        """Run them; returns the exit code."""
        done = sum(task.state == DONE for task in self.tasks.values())
        say(f"{len(self.tasks)} runs: {done} are done, {len(self.jobs)} to do, {self.pool.workers} at a time")
        with answered(self._stop):
            self.pool.run(self.jobs)
        failed = [name for name, code in self.ended.items() if code != 0 and code <= ASKED_TO_STOP]
        if self.pool.stopping:
            say("stopped; the same call goes on")
            return STOPPED
        for name in failed:
            event = self.study.ledger.last(name, "failed")
            say(f"failed: {name}: {event['error'] if event else 'unknown'} (log: {self._job(name).log})")
        return FAILED if any(self.ended.values()) else 0

    def _stop(self, which: signal.Signals) -> None:
        say(f"{which.name}: the runs save themselves; the same call goes on")
        self.pool.stop()

    def _job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.run == name)

    def _head(self, job: Job) -> str:
        return f"[{self.numbers[job.run]}/{len(self.jobs)}] {job.run}"

    def _started(self, job: Job) -> None:
        task = self.tasks[job.run]
        what = [f"train {task.composed.steps} steps"] if job.train is not None else []
        splits = " and ".join(f"{name}.{split}" if name else split for split, name in task.evaluations)
        what += [f"evaluate {splits}"] if splits else []
        say(f"{self._head(job)}: {', '.join(what)}; about {duration(task.seconds)}")

    def _ended(self, job: Job, code: int, seconds: float) -> None:
        self.ended[job.run] = code
        ledger = self.study.ledger
        ledger.read()
        if code < 0 and not self.pool.stopping:  # it was killed and could not tell the ledger itself
            facts = self.tasks[job.run].facts
            error = f"ended by {signal.Signals(-code).name}"
            ledger.append(job.run, "failed", facts, error=error, hours=round(seconds / 3600, 5))
        if code == 0:
            event = ledger.last(job.run, "evaluated")
            figures = {k: v for k, v in (event or {}).get("metrics", {}).items() if k.endswith("emotion_f1")}
            how = f"done in {duration(seconds)}; {as_words(figures)}"
        elif code > ASKED_TO_STOP or self.pool.stopping:
            how = "stopped, it goes on at the next call"
        else:
            event = ledger.last(job.run, "failed")
            how = f"FAILED: {event['error'] if event else f'exit code {code}'}"
        say(f"{self._head(job)}: {how}; {self._left()}")

    def _left(self) -> str:
        left = [job for job in self.jobs if job.run not in self.ended]
        expected = sum(self.tasks[job.run].seconds for job in self.jobs if job.run in self.ended)
        took = time.monotonic() - self.began
        pace = took / expected if expected > 0 else 1 / self.pool.workers
        seconds = pace * sum(self.tasks[job.run].seconds for job in left)
        return f"{len(left)} runs left, about {duration(seconds)}"


def _experts(spec: RunSpec) -> tuple[str, ...]:
    """What decides which features a run needs."""
    return tuple(word for word in spec.words if word.lstrip("+~").startswith(("experts", "cache.dtype", "experiment")))


def say(line: str) -> None:
    """One line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
