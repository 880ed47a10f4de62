"""Dialogues of a corpus that can be had with a model: its history is taken over, its last heard turn is asked."""

from __future__ import annotations

from dataclasses import dataclass

from omnichat.audio.io import load_audio
from omnichat.data.corpus import AnyCorpus
from omnichat.data.parquet_corpus import open_corpus
from omnichat.model.pretrained.conversation import Said, Sound, sound_of
from omnichat.schema import SPLITS, Dialogue, Style, Turn
from omnichat.utils.errors import UserError

_LISTENER = "B"  # whom a model plays
_ORDER = ("test", "dev", "train")
assert set(_ORDER) == set(SPLITS)


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue to be had.

    Attributes:
        history: turns before the one that is asked. said: that turn.
        style, words: the reply that the corpus has.
    """

    history: tuple[Said, ...]
    said: Said
    style: Style
    words: str


class Examples:
    """The first dialogues of a corpus: of its test split, or where it has none, of dev or train.

    Args:
        path: corpus folder or Parquet export.
        most: dialogues.

    Raises:
        UserError: no corpus there, or none of the dialogues has a turn with a reply.
    """

    def __init__(self, path: str, most: int) -> None:
        self.corpus: AnyCorpus = open_corpus(path, "exists")
        split = next(split for split in _ORDER if self.corpus.count(split))
        self._found: list[tuple[Dialogue, int]] = []
        for number in range(self.corpus.count(split)):
            dialogue = self.corpus.get(split, number)
            heard = heard_turn(dialogue)
            if heard is not None:
                self._found.append((dialogue, heard))
            if len(self._found) == most:
                break
        if not self._found:
            raise UserError(f"examples={path}: no {split} dialogue in which {_LISTENER} answers")

    def titles(self) -> list[str]:
        """What each is about, on one line."""
        found = []
        for number, (dialogue, heard) in enumerate(self._found):
            turn = dialogue.turns[heard]
            style = turn.style.emotion or ""
            words = turn.text if len(turn.text) <= 60 else f"{turn.text[:57]}..."
            found.append(", ".join(part for part in (f"{number + 1}: {dialogue.scenario}", style, words) if part))
        return found

    def get(self, number: int) -> Example:
        """One of them, its recordings read.

        Raises:
            UserError: no such number, or a recording that cannot be read.
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._found):
            raise UserError(f"examples are numbered 1 to {len(self._found)}")
        dialogue, heard = self._found[number]
        history = tuple(self._said(turn) for turn in dialogue.turns[:heard])
        reply = dialogue.turns[heard + 1]
        return Example(history, self._said(dialogue.turns[heard]), reply.style, reply.text)

    def _said(self, turn: Turn) -> Said:
        if turn.speaker == _LISTENER:
            return Said("assistant", None, turn.text, turn.style)
        return Said("user", self._sound(turn), turn.text)

    def _sound(self, turn: Turn) -> Sound | None:
        if turn.audio is None:
            return None
        assert turn.sample_rate is not None
        return sound_of(load_audio(self.corpus.path_of(turn), turn.sample_rate), turn.sample_rate)


def heard_turn(dialogue: Dialogue) -> int | None:
    """Number of the last turn of the user that is answered; None where there is none."""
    speakers = [turn.speaker for turn in dialogue.turns]
    numbers = range(len(speakers) - 2, -1, -1)
    return next((n for n in numbers if speakers[n] != _LISTENER and speakers[n + 1] == _LISTENER), None)
