"""The interface of every corpus reader: a corpus's own layout and quirks in, validated dialogues out.

A reader is a part: one .py here, one .yaml in configs/source/. Its quirks stay in it. Whatever it leaves out is told in
`issues`, with the reason; nothing is dropped in silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from omnichat.audio.io import audio_info
from omnichat.data.audit import read_recording
from omnichat.schema import Dialogue, Turn
from omnichat.utils.errors import UserError


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
