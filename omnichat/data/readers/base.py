"""The interface of every corpus reader: a corpus's own layout and quirks in, validated dialogues out.

A reader is a part: one .py here, one .yaml in configs/source/. Its quirks stay in it. Whatever it leaves out is told in
`issues`, with the reason; nothing is dropped in silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from omnichat.audio.io import audio_info
from omnichat.data.audit import read_recording
from omnichat.data.corpus import check_inside
from omnichat.schema import Dialogue, Style, Turn
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json


class Reader(ABC):
    """One corpus on disk.

    Attributes:
        name: of the corpus; it is the `source` of the dialogues.
        licence: of the corpus, as its publisher states it.
        kind: "real" or "synthetic".
        root: the folder that `Turn.audio` is relative to.
        issues: what the last pass of `dialogues()` found wrong, one line each, in the order of the corpus.
    """

    name: str
    licence: str
    kind: str

    def __init__(self, path: str) -> None:
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; path names the folder of the corpus")
        self.issues: list[str] = []

    @abstractmethod
    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in a fixed order; `issues` starts afresh with every pass.

        `Turn.audio` is relative to `root` (`read` knows how to get at it); a turn without a recording has None.

        Raises:
            UserError: an index file that is missing or cannot be parsed, named.
        """

    def read(self, turn: Turn) -> tuple[Tensor, int]:
        """Return the recording of a turn of this corpus: mono float32 [N] and its rate in Hz.

        Raises:
            BadAudio: it is missing, unreadable, empty, truncated or over-long.
        """
        if turn.audio is None:
            raise UserError(f"{self.root}: the turn {turn.text!r} has no recording")
        check_inside(turn.audio)
        return read_recording(self.root / turn.audio)

    def _header(self, relative: str) -> tuple[int, float] | None:
        """(rate in Hz, seconds) of a file below `root`; None, with an issue, where there is no readable audio."""
        try:
            rate, seconds = audio_info(self.root / relative)
        except UserError as error:
            self.issues.append(str(error))
            return None
        if seconds <= 0:
            self.issues.append(f"{self.root / relative}: holds no samples")
            return None
        return rate, seconds


class Issues:
    """Irregularities that may occur thousands of times: each kind is one line, with its count and first place."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, place: str) -> None:
        """Count one irregularity of a kind."""
        count, first = self._found.get(kind, (0, place))
        self._found[kind] = count + 1, first

    def lines(self) -> list[str]:
        """One line a kind, in the order in which the kinds were met."""
        return [
            f"{first}: {kind}" if count == 1 else f"{first}: {kind} (and {count - 1} times more)"
            for kind, (count, first) in self._found.items()
        ]


class UniqueIds:
    """Refuses an id that was given before, by the place of either."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def take(self, identity: str, place: str) -> str:
        """Return the id. Raises UserError if it has been taken."""
        if identity in self._places:
            raise UserError(f"{place}: the id {identity[:80]!r} was already given at {self._places[identity]}")
        self._places[identity] = place
        return identity


def varied(turns: Sequence[tuple[Any, Style]]) -> set[tuple[Any, Style]]:
    """Of (what is said and where, style) of turns: those that are variants of each other.

    Each is the only one of its style among the turns that say the same, and there is another such one: a group of
    variants tells by its styles alone which is which.
    """
    alone = [entry for entry, count in Counter(turns).items() if count == 1]
    said = Counter(what for what, _ in alone)
    return {(what, style) for what, style in alone if said[what] > 1}


def words_of(value: Any) -> str | None:
    """A text's words, white space folded; None where there are none, or it is no text that a file can hold."""
    if not isinstance(value, str):
        return None
    words = " ".join(value.split())
    try:
        words.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: bytes that were no UTF-8, or a cut escape of JSON
        return None
    return words or None


def card_facts(card: Path) -> tuple[dict[str, Any], str]:
    """A corpus's card.json and its licences in one line; ({}, "not stated") where there is none.

    Raises:
        UserError: a card that is no card.
    """
    if not card.is_file():
        return {}, "not stated"
    value = read_json(card)
    rows = value.get("licences") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{card}: not a data card: it has no list 'licences'")
    return value, "; ".join(f"{row.get('part')}: {row.get('licence')}" for row in rows) or "not stated"
