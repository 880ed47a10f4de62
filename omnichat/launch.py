"""The driver of several processes: starts the workers, watches them, and speaks for them.

`omnichat train` or `evaluate` has composed and checked the config once. Here it is written to
runs/<name>/launch/resolved.yaml (evaluate: launch/evaluate/), whose hash every worker checks, and one torchrun is
started on it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from omnichat.config import TrainRun
from omnichat.run_folder import claim_run_folder
from omnichat.training.liveness import SETUP, alive, describe_hang, read_records, read_whole, where
from omnichat.training.processes import LaunchConfig, ProcessFailure
from omnichat.training.trainer import Stopped
from omnichat.training.zero import installed
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_bytes, write_text_atomic
from omnichat.utils.signals import answered

POLL_SEC = 0.3
GRACE_SEC = 10.0  # between a worker's end and that of the others, which wait for it, and then for torchrun to report
GOOD_ENDS = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes


@dataclass(frozen=True, slots=True)
class Verb:
    """Whose processes they are, and what is said of them when they end early."""

    name: str
    again: str  # what the same command does after a failure
    early: str  # said of a stop before there was anything to save


TRAIN = Verb(
    "train",
    "the same command continues from the last checkpoint",
    "stopped before the first step; nothing was saved",
)
EVALUATE = Verb(
    "evaluate", "the same command goes on from the replies decoded so far", "stopped before a reply was decoded"
)


def refuse_launcher(verb: Verb = TRAIN) -> None:
    """Raise UserError under torchrun or accelerate launch: the processes are ours to start, after Hydra, not before."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        raise UserError(
            f"omnichat {verb.name} starts its processes itself, but RANK is set: call it once, without torchrun or "
            f"accelerate launch, as `omnichat {verb.name} launch=ddp8 ...` (the files of configs/launch)"
        )


def check_launch(config: TrainRun) -> None:
    """Raise UserError for what this installation or this config cannot serve."""
    launch = config.launch
    if launch.strategy.startswith("zero"):
        _check_zero(config)
    if launch.count == 1 and launch.strategy != "ddp":
        raise UserError(f"launch.strategy={launch.strategy} shares a model between processes: launch.processes is 1")
    if config.trainer.micro_batches % launch.count:
        raise UserError(
            f"trainer.micro_batches={config.trainer.micro_batches} cannot be shared by {launch.count} processes; "
            f"make it a multiple of {launch.count}"
        )
    if launch.nodes > 1 and config.resume == "never":
        raise UserError("resume=never would move the run folder aside once a node; take another name=")


def _check_zero(config: TrainRun) -> None:
    """Raise UserError for what DeepSpeed's engine cannot do."""
    strategy = f"launch.strategy={config.launch.strategy}"
    if config.trainer.preflight:
        raise UserError(f"{strategy} cannot take a gradient back: set trainer.preflight=false")
    if config.launch.strategy == "zero3" and config.trainer.speed.compile:
        raise UserError(f"{strategy} gathers weights inside the layers: set trainer.speed.compile=false")
    if config.launch.strategy == "zero3" and config.llm.quantize is not None:
        raise UserError(f"{strategy} cannot cut quantised weights: set llm.quantize=null, or take zero2")
    if not installed():
        raise UserError(f"{strategy} needs deepspeed (pip install deepspeed); launch.strategy=fsdp2 needs nothing more")


def drive(config: TrainRun) -> None:
    """Run a checked config, whose name is resolved, in `launch.count` processes, this node's being ours.

    Raises:
        UserError: a worker met one; told once.
        Stopped: the run was asked to stop and has saved itself.
        ProcessFailure: a process died, hung or met an error.
    """
    folder = Path(config.runs) / config.name
    if config.resume == "never":
        claim_run_folder(folder, "never")
        config.resume = "auto"
    start(config, config.launch, folder / "launch", TRAIN)


def start(config: Any, how: LaunchConfig, launch: Path, verb: Verb) -> None:
    """Start the workers of a verb on its checked config, watch them, and raise what their end means; see `drive`.

    Args:
        config: of the verb; `omnichat.worker` knows its schema.
        how: many processes, and where.
        launch: folder of the config, of the workers' records and of their outcomes.
        verb: whose processes they are.
    """
    content = OmegaConf.to_yaml(OmegaConf.structured(config)).encode("utf-8")
    sha256 = sha256_bytes(content)
    write_text_atomic(launch / "resolved.yaml", content.decode("utf-8"))
    write_text_atomic(launch / "resolved.sha256", f"{sha256}  resolved.yaml\n")
    if how.nodes == 1:  # else a record may be another node's, of this very start; their times tell
        for old in [path for name in ("rank", "outcome", "failures") for path in launch.glob(f"{name}-*")]:
            old.unlink(missing_ok=True)
    _Driver(how, launch, sha256, verb).run()


class _Driver:
    """Starts one torchrun, passes signals on, ends what hangs, and says how it ended."""

    def __init__(self, launch: LaunchConfig, folder: Path, sha256: str, verb: Verb = TRAIN) -> None:
        self.launch, self.folder, self.sha256, self.verb = launch, folder, sha256, verb
        self.started, self.start = time.time(), uuid.uuid4().hex
        # Where this node's processes leave their last words when the disk is full.
        self.words = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.records: dict[int, dict[str, Any]] = {}  # rank -> the last one that could be read
        self.asked: signal.Signals | None = None
        self.passed_on = False
        self.dead: dict[int, float] = {}  # rank -> when it was first seen to have died without a word
        self.wrong: float | None = None  # when the first error of a worker was seen
        self.killed: set[int] = set()  # by us, so how they ended says nothing

    def run(self) -> None:
        with answered(self._ask):
            agent = subprocess.Popen(self._command(), env=self._environment(), start_new_session=True)
            try:
                hung = self._watch(agent)
            finally:
                self._end(agent)
        if hung is not None and not _errors(self._outcomes()):
            raise ProcessFailure(f"{hung}. All processes were ended; {self.verb.again}")
        self._conclude()

    def _command(self) -> list[str]:
        launch, where = self.launch, ["--standalone"]
        if launch.nodes > 1:
            where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={launch.rendezvous}", f"--rdzv-id={launch.rendezvous_id}"]
        torchrun = [f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.processes}", *where]
        # No options: torchrun's parser would take some for its own.
        us = [self.start, str(os.getpid()), str(self.words.port)]
        worker = [self.verb.name, str(self.folder / "resolved.yaml"), self.sha256, str(self.folder), *us]
        agent = [sys.executable, "-m", "omnichat.launch_agent", str(self._failures), str(self.words.port)]
        return [*agent, *torchrun, "-m", "omnichat.worker", *worker, *sys.argv[1:]]

    def _environment(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.launch.processes)
        # torchrun kills what has not ended so long after a SIGTERM: a step and a checkpoint must fit in.
        patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.launch.timeout_sec))}
        device = {"ACCELERATE_USE_CPU": "true"} if self.launch.cpu or not torch.cuda.is_available() else {}
        return {"OMP_NUM_THREADS": str(threads), **os.environ, **patience, **device}

    @property
    def _failures(self) -> Path:
        return self.folder / f"failures-{self.start}.json"

    def _watch(self, agent: subprocess.Popen[bytes]) -> str | None:
        """Return when the agent has ended or never will by itself; what is to be said of a process that hangs."""
        while agent.poll() is None:
            time.sleep(POLL_SEC)
            self.records |= read_records(self.folder, self.started)
            ended, now = self._outcomes(), time.time()
            self._pass_on(agent)
            if _errors(ended):
                self.wrong = self.wrong or now
            for record in self._here():
                if record["rank"] not in ended and not alive(record["pid"]):
                    self.dead.setdefault(record["rank"], now)
            gone = [*self.dead.values(), *([] if self.wrong is None else [self.wrong])]
            if gone and now - min(gone) > GRACE_SEC:
                return None  # the others wait for it in a collective call
            running = {r: record for r, record in self.records.items() if r not in ended and r not in self.dead}
            if not gone and (hung := describe_hang(running, self.launch.timeout_sec, now)) is not None:
                return hung
        return None

    def _ask(self, which: signal.Signals) -> None:
        self.asked = self.asked or which

    def _pass_on(self, agent: subprocess.Popen[bytes]) -> None:
        """Pass a signal on, once: workers that train agree on a step and save; before that there is nothing to save."""
        if self.asked is None or self.passed_on:
            return
        training = [record for record in self._here() if record["phase"] != SETUP]
        for record in training:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record["pid"], self.asked)
        if not training:
            agent.send_signal(signal.SIGTERM)
        self.passed_on = True

    def _here(self) -> list[dict[str, Any]]:
        """Records of the processes on this node."""
        return [record for record in self.records.values() if record["start"] == self.start]

    def _outcomes(self) -> dict[int, dict[str, Any]]:
        """Rank -> how it ended, of the processes that could say so in this start."""
        found = read_whole(sorted(self.folder.glob("outcome-*.json")))
        names = [f"outcome-{rank}.json" for rank in range(self.launch.count)]
        found += [json.loads(self.words.get(name)) for name in names if self.words.check([name])]
        return {outcome["rank"]: outcome for outcome in found if outcome["time"] >= self.started}

    def _end(self, agent: subprocess.Popen[bytes]) -> None:
        """Kill what is left of this node's workers, whose groups hold their own children, and then the agent."""
        if agent.poll() is not None:
            return
        self.records |= read_records(self.folder, self.started)
        for record in self._here():
            if alive(record["pid"]):
                self.killed.add(record["rank"])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record["pid"], signal.SIGKILL)
        if self.killed:
            print(file=sys.stderr)  # the progress bar of a killed one has not ended its line
        try:
            agent.wait(GRACE_SEC)  # it writes down who had died before
        except subprocess.TimeoutExpired:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()

    def _conclude(self) -> None:
        """Raise what the workers' end means."""
        outcomes, wrong = self._outcomes(), _errors(self._outcomes())
        stopped = [outcome for outcome in outcomes.values() if outcome["code"] > 128]
        dead = self._dead(outcomes)
        if self.asked is not None and not wrong and not stopped:
            raise Stopped(self.verb.early, None, self.asked)
        if dead:
            first = min(dead, key=lambda failure: self.dead.get(failure["rank"], math.inf))
            raise ProcessFailure(f"{self._describe_death(first)}. All processes were ended; {self.verb.again}")
        for outcome in wrong:
            if outcome["code"] == 2:
                raise UserError(outcome["message"])
        if wrong:
            print(wrong[0]["trace"], file=sys.stderr)
            raise ProcessFailure(f"rank {wrong[0]['rank']} failed: {wrong[0]['message']}")
        if stopped:
            raise Stopped(stopped[0]["message"], None, signal.Signals(stopped[0]["code"] - 128))
        if len(outcomes) < self.launch.processes:
            raise ProcessFailure(f"only {len(outcomes)} of {self.launch.processes} processes came to their end")

    def _dead(self, outcomes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
        """What torchrun says of processes that died of themselves, without a word, before any other met an error."""
        failures = read_json(self._failures) if self._failures.is_file() else []
        if self.words.check([self._failures.name]):
            failures = json.loads(self.words.get(self._failures.name))
        wrong = {outcome["rank"] for outcome in _errors(outcomes)}
        # torchrun ends the others after it has seen the first failure, and notes them later (in whole seconds).
        first = min((f["time"] for f in failures if f["rank"] in wrong), default=math.inf)
        silent = [f for f in failures if f["rank"] not in outcomes and f["rank"] not in self.killed]
        return [f for f in silent if f["exit"] != -signal.SIGTERM and f["time"] <= first] or ([] if wrong else silent)

    def _describe_death(self, failure: dict[str, Any]) -> str:
        record = self.records.get(failure["rank"])
        place = f", last seen {where(record, time.time())}" if record is not None else " before it had begun"
        code = failure["exit"]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"rank {failure['rank']} {how}{place}"


def _errors(outcomes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Outcomes that are neither an end nor a stop that was asked for, the first one first."""
    return sorted((o for o in outcomes.values() if o["code"] not in GOOD_ENDS), key=lambda o: o["time"])
