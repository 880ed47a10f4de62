"""Recordings that cannot be used: listed with the reason, counted, and the dialogues that need them left out.

A recording is bad if its file is missing or is not what the manifest states, cannot be read, holds no samples or NaN,
or gives an expert features that are not finite. Nothing is remembered about it but the list, for people: the next run
tries again, so that a file that was put back is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.data.card import summarise
from omnichat.data.corpus import AnyCorpus
from omnichat.schema import SPLITS, Dialogue, Turn
from omnichat.utils.errors import UserError
from omnichat.utils.files import iterate_jsonl, write_text_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.packed import Recording

log = get_logger(__name__)
_NAMED = 20  # dialogues left out that the log names


@dataclass(frozen=True, slots=True)
class BadRecording:
    """A line of the list: the file, the manifest's SHA-256 of it, why it cannot be used."""

    path: str
    sha256: str | None
    reason: str


@dataclass(slots=True)
class Quarantine:
    """The bad recordings that a run has met.

    Args:
        file: the list, one JSON object a line; shared by the runs of a cache.
        max_bad: share of the recordings that may be bad.
    """

    file: Path
    max_bad: float
    found: dict[str, BadRecording] = field(default_factory=dict)

    def take(self, path: Recording, sha256: str | None, error: UserError) -> None:
        """Note a bad recording."""
        if str(path) not in self.found:
            log.warning("left out: %s", error)
            self.found[str(path)] = BadRecording(str(path), sha256, str(error))

    def hashes(self) -> set[str]:
        """SHA-256 of the bad recordings, where the manifest states it."""
        return {bad.sha256 for bad in self.found.values() if bad.sha256 is not None}

    def listed(self) -> list[BadRecording]:
        """What the file lists now."""
        if not self.file.is_file():
            return []
        return [BadRecording(**value) for _, value in iterate_jsonl(self.file)]

    def write(self, tried: Iterable[Recording] = ()) -> None:
        """Bring the list up to date; `tried` are recordings of which it is now known whether they are bad."""
        known = {str(path) for path in tried}
        older = {bad.path: bad for bad in self.listed() if bad.path not in known}
        new = older | self.found
        if new or self.file.is_file():
            lines = [json.dumps(asdict(new[path]), ensure_ascii=False) for path in sorted(new)]
            write_text_atomic(self.file, "".join(line + "\n" for line in lines))

    def check(self, total: int) -> None:
        """Raise UserError if more than `max_bad` of `total` recordings are bad."""
        count = len(self.found)
        if count > self.max_bad * total:
            first = next(iter(self.found.values()))
            raise UserError(
                f"{count} of {total} recordings cannot be used, more than cache.max_bad={self.max_bad} allows; "
                f"{self.file} lists them; the first: {first.reason}"
            )

    def without_bad(self, corpus: AnyCorpus) -> AnyCorpus:
        """The corpus without the dialogues that need a bad recording. Raises UserError if none remain."""
        if not self.found:
            return corpus
        hashes = self.hashes()

        def spoilt(dialogue: Dialogue) -> bool:
            return any(
                turn.audio is not None and (turn.sha256 in hashes or str(corpus.path_of(turn)) in self.found)
                for turn in dialogue.turns
            )

        out = {split: [n for n, dialogue in enumerate(corpus.iterate(split)) if spoilt(dialogue)] for split in SPLITS}
        if not any(out.values()):
            return corpus
        names = [corpus.get(split, number).id for split in SPLITS for number in out[split]]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        log.warning("%s: %d dialogues left out: %s%s", corpus.root, len(names), ", ".join(names[:_NAMED]), more)
        if len(names) == sum(corpus.count(split) for split in SPLITS):
            raise UserError(f"{corpus.root}: every dialogue needs a recording that cannot be used; see {self.file}")
        return ReducedCorpus(corpus, out, names)


class ReducedCorpus:
    """An AnyCorpus without some of its dialogues.

    Args:
        inner: the whole corpus.
        out: split -> numbers of the dialogues to leave out, ascending.
        names: their ids.
    """

    def __init__(self, inner: AnyCorpus, out: dict[str, list[int]], names: list[str]) -> None:
        self.inner, self.names = inner, names
        # Number n of what is kept lies behind all that is left out with number - rank <= n.
        self._shift = {split: np.array(out[split], dtype=np.int64) - np.arange(len(out[split])) for split in SPLITS}
        self.streamed, self.name, self.root = inner.streamed, inner.name, inner.root
        self.kind, self.stand_in = inner.kind, inner.stand_in

    def fingerprint(self) -> str:
        """Of the whole corpus and of what was left out: a run is not continued with a file put back unawares."""
        return hashlib.sha256("\n".join([self.inner.fingerprint(), *self.names]).encode()).hexdigest()

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""
        return self.inner.count(split) - len(self._shift[split])

    def get(self, split: str, number: int) -> Dialogue:
        """One dialogue of a split, by its number among those kept."""
        if not 0 <= number < self.count(split):
            raise IndexError(f"{self.root}: the split {split} has {self.count(split)} dialogues, not {number + 1}")
        return self.inner.get(split, number + int(np.searchsorted(self._shift[split], number, side="right")))

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue kept, in the order of the whole corpus."""
        gone = set(self.names)
        return (dialogue for dialogue in self.inner.iterate(split) if dialogue.id not in gone)

    def path_of(self, turn: Turn) -> Recording:
        """Where the recording of `turn` is."""
        return self.inner.path_of(turn)

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of what is kept."""
        return summarise(list(self.iterate(split))) | {"kind": self.kind, "stand_in": self.stand_in}


def left_out(corpus: AnyCorpus) -> int:
    """How many dialogues of a corpus were left out, for their headers and, later, for what was read."""
    return len(corpus.names) + left_out(corpus.inner) if isinstance(corpus, ReducedCorpus) else 0
