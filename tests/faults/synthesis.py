"""Faults of the factory: a corpus that is made while its making is killed and its work damaged, byte for byte.

Each kind hurts real `omnichat synthesize` processes with the packaged voice and checks, lets the same command finish,
and compares every file with a corpus that was never hurt.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.faults import inject
from tests.faults.harness import Ended, command, files_of

Kind = Callable[["Factory", random.Random, str], None]
SMALL = (
    "dialogues.emotion={train: 1, dev: 0, test: 1}",
    "dialogues.audio={train: 1, dev: 0, test: 0}",
    "dialogues.music={train: 0, dev: 0, test: 0}",
    "variants_per_dialogue=2",
)


@dataclass(slots=True)
class Factory:
    """Folder and undisturbed corpus of a campaign.

    Attributes:
        folder: of everything; made. seconds: what the undisturbed corpus took.
        writes: calls that change the disk while it is made by one process.
    """

    folder: Path
    whole: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    writes: int = 0

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)

    def words(self, name: str, *more: str) -> list[str]:
        """The words of `omnichat synthesize` for a corpus of this name: three short dialogues."""
        return ["synthesize", "corpus=smoke", f"out={self.folder / name}", "name=hurt", "workers=1", *SMALL, *more]

    def run(
        self,
        words: Sequence[str],
        inject: Callable[[], None] | None = None,
        kill_after_sec: float | None = None,
        group: bool = True,
    ) -> Ended:
        """Run `omnichat <words>` in a child; see `harness.command`."""
        return command(words, self.folder / "output.txt", inject, kill_after_sec, group)

    def measure(self) -> None:
        """Make the undisturbed corpus, and count what faults choose from."""
        counts = self.folder / "writes.txt"

        class Counted(list[str]):
            def append(self, name: str) -> None:
                super().append(name)
                counts.write_text(str(len(self)))

        start = time.monotonic()
        ended = self.run(self.words("whole"), lambda: inject.at_any_write(-1, inject.die, Counted()))
        assert ended.code == 0, ended.output[-3000:]
        self.seconds = time.monotonic() - start
        self.writes = int(counts.read_text())
        self.whole = files_of(self.folder / "whole")

    def finish(self, name: str, *more: str) -> str:
        """Let the undisturbed command make the corpus; raise AssertionError unless every byte is the undisturbed one's.

        Returns:
            What the command printed.
        """
        ended = self.run(self.words(name, *more))
        assert ended.code == 0, ended.output[-3000:]
        assert files_of(self.folder / name) == self.whole, f"{name} differs from the undisturbed corpus"
        assert not list(self.folder.glob(f".{name}.*")), "working files are left"
        return ended.output


def kill_any_time(factory: Factory, rng: random.Random, name: str) -> None:
    """SIGKILL to all processes of a run at a random moment."""
    workers = f"workers={rng.choice((1, 2))}"
    factory.run(factory.words(name, workers), kill_after_sec=rng.uniform(0.05, 1.0) * factory.seconds)
    factory.finish(name, workers)


def kill_parent(factory: Factory, rng: random.Random, name: str) -> None:
    """SIGKILL to the parent alone: its workers must leave too, and disturb nothing."""
    factory.run(factory.words(name, "workers=2"), kill_after_sec=rng.uniform(0.3, 1.0) * factory.seconds, group=False)
    factory.finish(name, "workers=2")


def kill_at_write(factory: Factory, rng: random.Random, name: str) -> None:
    """SIGKILL before a random call that changes the disk."""
    number = rng.randrange(factory.writes)
    ended = factory.run(factory.words(name), lambda: inject.at_any_write(number, inject.die))
    assert ended.code == -9, f"write {number} of {factory.writes} was never reached: {ended.output[-500:]}"
    factory.finish(name)


def disk_full(factory: Factory, rng: random.Random, name: str) -> None:
    """A full disk at a random call: one line, nothing lost, and it goes on when there is room."""
    number = rng.randrange(factory.writes)
    ended = factory.run(factory.words(name), lambda: inject.at_any_write(number, inject.fill))
    assert ended.code in (0, 2), ended.output[-2000:]  # 0: the write that failed was a tidying up
    assert "Traceback" not in ended.output, ended.output[-2000:]
    if ended.code == 0:
        shutil.rmtree(factory.folder / name)
    factory.finish(name)


def damage_work(factory: Factory, rng: random.Random, name: str) -> None:
    """A bit flipped, or a file cut, in what a stopped run had finished: noticed, made again, never in the corpus."""
    until = rng.choice(("scripts", "speech", "checks", "scenes"))
    ended = factory.run(factory.words(name, f"until={until}"))
    assert ended.code == 0, ended.output[-2000:]
    files = sorted(p for p in (factory.folder / f".{name}.work").rglob("*") if p.is_file())
    for path in rng.sample(files, min(3, len(files))):
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5 and content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(content))
        else:
            path.write_bytes(bytes(content[: rng.randrange(len(content) + 1)]))
    factory.finish(name)


KINDS: dict[Kind, int] = {kill_any_time: 8, kill_parent: 4, kill_at_write: 8, disk_full: 4, damage_work: 6}
