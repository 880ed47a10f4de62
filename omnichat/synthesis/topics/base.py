"""The interface of a source of topics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class TopicSource(ABC):
    """Topics for dialogues, each of which belongs to one split."""

    @abstractmethod
    def topics(self, split: str) -> Sequence[str]:
        """The topics of a split, in a fixed order, without repeats; no other split has one of them, whatever its case.

        Raises:
            UserError: the source has none for this split.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON facts for the data card: name, licence, what decides the splits, a hash of the topics."""


def same_topic(topic: str) -> str:
    """The form in which two topics that differ in case or spaces only are equal."""
    return " ".join(topic.split()).casefold()
