"""A test set from outside a run's mixture: one split of a corpus that the run never trained on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omnichat.data.card import summarise
from omnichat.data.corpus import MANIFEST, AnyCorpus
from omnichat.data.parquet import INDEX
from omnichat.data.parquet_corpus import open_corpus
from omnichat.schema import SPLITS, Dialogue, Turn
from omnichat.utils.errors import UserError
from omnichat.utils.packed import Recording


@dataclass(kw_only=True, slots=True)
class OutsideSet:
    """Where an outside test set is; its name is its key in `sets`."""

    path: str  # corpus folder or Parquet export

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("sets: path must name a corpus folder or a Parquet export")


def check_set_name(name: str) -> None:
    """Raise UserError for a name that cannot stand in a file's name or would be taken for something else."""
    if not re.fullmatch(r"[\w-]+", name) or name in (*SPLITS, "all"):
        raise UserError(
            f"sets.{name}: a set's name is made of letters, digits, _ and -, and is none of {', '.join(SPLITS)}, all"
        )


def open_outside_set(name: str, given: OutsideSet, split: str, limit: int | None) -> AnyCorpus:
    """One split of an outside set, at most its first `limit` dialogues.

    Raises:
        UserError: no corpus there, or none of its dialogues is of the split.
    """
    root = Path(given.path).expanduser()
    if root.is_dir() and not any((root / marker).is_file() for marker in (MANIFEST, INDEX)):
        raise UserError(
            f"sets.{name}.path={given.path}: no corpus folder; make one of a release first: "
            f"omnichat prepare source=... path={given.path} out=corpora/{name} source.split={split} (docs/TEST_SETS.md)"
        )
    corpus = open_corpus(root)
    dialogues = tuple(itertools.islice(corpus.iterate(split), limit))
    if not dialogues:
        counts = ", ".join(f"{count} of {other}" for other in SPLITS if (count := corpus.count(other)))
        raise UserError(f"sets.{name}.path={given.path}: it has no {split} dialogue ({counts}); choose split=")
    return HeldDialogues(corpus, split, dialogues)


class HeldDialogues:
    """An AnyCorpus of a few dialogues of one split of another corpus, held in memory.

    Args:
        inner: the whole corpus, which knows where the recordings are.
        split: of the dialogues.
        dialogues: in the order of the whole corpus.
    """

    streamed: ClassVar[bool] = False

    def __init__(self, inner: AnyCorpus, split: str, dialogues: Sequence[Dialogue]) -> None:
        self.inner, self.split, self.dialogues = inner, split, tuple(dialogues)
        self.name, self.root, self.kind, self.stand_in = inner.name, inner.root, inner.kind, inner.stand_in

    def fingerprint(self) -> str:
        """Of the whole corpus."""
        return self.inner.fingerprint()

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""
        return len(self.dialogues) if split == self.split else 0

    def get(self, split: str, number: int) -> Dialogue:
        """One dialogue of a split, by its number."""
        if not 0 <= number < self.count(split):
            raise IndexError(f"{self.root}: {self.count(split)} dialogues of {split} are held, not {number + 1}")
        return self.dialogues[number]

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue, or those of one split."""
        return iter(self.dialogues if split in (None, self.split) else ())

    def path_of(self, turn: Turn) -> Recording:
        """Where the recording of `turn` is."""
        return self.inner.path_of(turn)

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of what is held."""
        return summarise(list(self.iterate(split))) | {"kind": self.kind, "stand_in": self.stand_in}
