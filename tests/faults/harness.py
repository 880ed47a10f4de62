"""A place for faults: one warm process that forks a child for every `omnichat` command, and what a run has left.

A start of Python with torch takes seconds, so this process imports everything once; it computes nothing itself, so that
a fork of it is as good as a fresh start. A child is a whole `omnichat` process: own session, exit code, output.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from omnichat import cli
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.training import checkpoint
from omnichat.training.checkpoint import FILES, checkpoints, verify
from omnichat.utils.files import read_json
from tests.faults import inject
from tests.helpers_core import make_corpus, step_figures

STEPS = 8
LIMIT_SEC = 900  # for one command; a child that takes longer has hung, and the fault has failed


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: exit code (minus the signal's number if one ended it) and all that it printed."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """Its error line, empty if there is none."""
        lines = [line for line in self.output.splitlines() if "error: " in line]
        return lines[-1] if lines else ""


@dataclass(slots=True)
class Place:
    """Folder, corpora and undisturbed runs of a campaign.

    Args:
        folder: of everything; made.
    """

    folder: Path
    corpora: dict[str, Corpus] = field(default_factory=dict)
    whole: dict[str, Path] = field(default_factory=dict)  # variant -> its run, never disturbed
    seconds: float = 0.0  # that the undisturbed run took
    writes: int = 0  # calls that change the disk in its checkpoint writes
    first_checkpoint: int = 0  # of those, in its first checkpoint

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.corpora["made"] = make_corpus(self.folder / "made", count=7, dev=4, seed=1)
        self.corpora["spoken"] = make_corpus(self.folder / "spoken", kind="real", count=5, dev=2, seed=2)

    def train(self, name: str, *more: str) -> list[str]:
        """The words of `omnichat train` for a run of this name."""
        sources = [f"+mixture.sources.{key}.path={corpus.root}" for key, corpus in self.corpora.items()]
        return [
            *("train", "experiment=none", f"name={name}", f"runs={self.folder}/runs", "llm=tiny", "experts=none"),
            *("+expert@experts.mert=mert_small", "experts.mert.dtype=float32", "fusion.width=16", *sources),
            *(f"cache.dir={self.folder}/cache", "mixture.alpha=0.4", "loader.batch_tokens=250", "loader.pool=8"),
            *("loader.workers=0", "trainer.precision=fp32", f"trainer.steps={STEPS}", "trainer.micro_batches=2"),
            *("trainer.checkpoint_every=2", "trainer.dev_every=4", "tracking.wandb=disabled"),
            *("trainer.watch.peak_tflops=0.1", *more),
        ]

    def evaluate(self, run: Path) -> list[str]:
        """The words of `omnichat evaluate` for a run."""
        quick = (
            "score.bertscore_model=null",
            "score.bootstrap_samples=100",
            "score.permutations=20",
            "audio_samples=1",
        )
        return ["evaluate", f"run={run}", "split=dev", "replies=all", "max_new_tokens=5", "batch_tokens=100", *quick]

    def run(self, name: str) -> Path:
        """The folder of a run of this name."""
        return self.folder / "runs" / name

    def baseline(self, variant: str = "plain", inject: Callable[[], None] | None = None, *more: str) -> Path:
        """The undisturbed run of a variant, trained when it is first asked for."""
        if variant not in self.whole:
            ended = self.command(self.train(f"whole-{variant}", *more), inject)
            assert ended.code == 0, ended.output[-3000:]
            self.whole[variant] = self.run(f"whole-{variant}")
        return self.whole[variant]

    def measure(self) -> None:
        """Train the undisturbed run, and count what faults choose from: its seconds and its writes."""
        counts = self.folder / "writes.json"
        start = time.monotonic()
        self.baseline("plain", lambda: _count_writes(counts))
        self.seconds = time.monotonic() - start
        self.writes, self.first_checkpoint = json.loads(counts.read_text())

    def evaluated(self) -> Path:
        """The undisturbed run with the predictions of its dev split."""
        run = self.baseline()
        if not (run / "metrics.json").is_file():
            ended = self.command(self.evaluate(run))
            assert ended.code == 0, ended.output[-3000:]
        return run

    def poison(self) -> str:
        """Hash of a recording that some steps of the undisturbed run hear and some do not."""
        dialogue = next(d for d in self.corpora["spoken"].dialogues if d.split == "train")
        sha256 = dialogue.turns[0].sha256
        assert sha256 is not None
        return sha256

    def other(self) -> Corpus:
        """A corpus of other dialogues than the synthetic one, in a folder of its own."""
        folder = self.folder / "other"
        return Corpus.load(folder) if folder.is_dir() else make_corpus(folder, count=7, dev=4, seed=9)

    def silent(self) -> None:
        """A copy of the synthetic corpus half of whose dialogues have lost their recordings, as folder `silent`."""
        made = self.corpora["made"]
        shutil.copytree(made.root, self.folder / "silent")
        dialogues = [
            replace(d, turns=tuple(replace(t, audio=None, sha256=None) for t in d.turns)) if number % 2 else d
            for number, d in enumerate(made.dialogues)
        ]
        finish_corpus(
            self.folder / "silent", dialogues, name="made", kind="synthetic", seed=0, checks={}, licences=[], notes=[],
            versions={},
        )  # fmt: skip

    def command(
        self, words: Sequence[str], inject: Callable[[], None] | None = None, kill_after_sec: float | None = None
    ) -> Ended:
        """See `command`."""
        return command(words, self.folder / "output.txt", inject, kill_after_sec)

    def copy(self, run: Path, name: str) -> Path:
        """A copy of a run folder under another name, to be hurt."""
        shutil.rmtree(self.run(name), ignore_errors=True)
        shutil.copytree(run, self.run(name))
        return self.run(name)


def _count_writes(path: Path) -> None:
    """In a child: write how many writes all checkpoints and the first one take."""
    names: list[str] = []
    first: list[int] = []
    inject.at_write(-1, inject.die, names)
    save = checkpoint.save_checkpoint

    def saved(*args: Any, **kwargs: Any) -> Path:
        result = save(*args, **kwargs)
        first.append(len(names))
        path.write_text(json.dumps([len(names), first[0]]))
        return result

    checkpoint.save_checkpoint = saved


def command(
    words: Sequence[str],
    output: Path,
    inject: Callable[[], None] | None = None,
    kill_after_sec: float | None = None,
    group: bool = True,
) -> Ended:
    """Run `omnichat <words>` in a child that first does `inject`; what it prints goes to the file `output`.

    Args:
        kill_after_sec: when to send it SIGKILL, None = never.
        group: whether its children are killed with it.
    """
    pid = os.fork()
    if pid == 0:
        _be_a_child(words, inject, output)
    return _wait(pid, output, kill_after_sec, group)


def _be_a_child(words: Sequence[str], inject: Callable[[], None] | None, output: Path) -> None:
    """Never returns. No clean-up of the parent's may run here: the child leaves by os._exit."""
    code = 70
    try:
        os.setsid()
        random.seed()  # uuid4 and temporary names draw from the system; this is for whoever does not
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if inject is not None:
            inject()
        code = cli.run(list(words))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, output: Path, kill_after_sec: float | None, group: bool) -> Ended:
    start = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        waited = time.monotonic() - start
        if waited > (kill_after_sec if kill_after_sec is not None else LIMIT_SEC):
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
            kill_after_sec = None
        time.sleep(0.005)
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    return Ended(os.waitstatus_to_exitcode(status), text)


def end_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the files of the last checkpoint, which must be whole: weights, moments, place in the data, best."""
    last = checkpoints(run / "checkpoints")[-1]
    verify(last)
    return {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in FILES}


def same_end(run: Path, whole: Path) -> None:
    """Raise AssertionError unless a run ended, to the bit, as the undisturbed one did."""
    names = [checkpoints(each / "checkpoints")[-1].name for each in (run, whole)]
    assert names[0] == names[1], f"ended at {names[0]}, the undisturbed run at {names[1]}"
    mine, theirs = end_hashes(run), end_hashes(whole)
    for name, value in theirs.items():
        assert mine[name] == value, f"{name} differs from the undisturbed run's"
    for event in ("step", "dev"):
        assert step_figures(run, event) == step_figures(whole, event), (
            f"figures of {event} differ from the undisturbed run's"
        )
    assert read_json(run / "run.json")["state"] == "finished"


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
