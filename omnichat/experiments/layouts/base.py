"""What every layout of replies offers: predictions of one or more systems from a path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from omnichat.evaluation.predictions import Prediction


class Layout(ABC):
    """How a file of replies, or a folder of them, is read."""

    folders: ClassVar[bool] = False  # whether a path names a folder and not a file

    def __init__(self) -> None:
        self.notes: list[str] = []  # what a reader of the scores should know, added to by `read`

    @abstractmethod
    def read(self, path: Path) -> dict[str, tuple[Prediction, ...]]:
        """Return the replies at `path` by system; the name is "" where they are of one system that has no name there.

        Raises:
            UserError: `FILE:LINE: reason` of the first line that cannot be read, or of an id that is there twice.
        """
