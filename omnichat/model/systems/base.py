"""What every baseline is given and gives back.

A request holds only what its system may see: a system that hears is not handed the words of the user's turns, one that
reads is not handed their recordings. So none can answer from what it should not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from omnichat.data.corpus import AnyCorpus
from omnichat.schema import Dialogue, Style, Turn
from omnichat.text.style_format import format_reply
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.packed import Recording

USER, PLAYED = "A", "B"
SEES = ("words", "audio", "style")  # of the user's turns
RATE_HZ = 16_000
NO_STYLE = Style()


@dataclass(frozen=True, slots=True)
class SeenTurn:
    """One turn as a system sees it; None where it must not see, or where the corpus has nothing.

    `sha256` is of the recording's file. The model's own earlier turns always have words and style: all systems answer
    from the gold history, as a trained run does.
    """

    speaker: str
    text: str | None = None
    style: Style = NO_STYLE
    audio: Recording | None = None
    seconds: float = 0.0
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A reply to be made: the turns before it, the last of which is the user's."""

    id: str
    turns: tuple[SeenTurn, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange that shows what is asked: a user's turn and the reply to it, style and words in one text."""

    heard: SeenTurn
    reply: str


@dataclass(frozen=True, slots=True)
class Instructions:
    """What stands before every request: the system message and the examples."""

    system: str = ""
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadTurn:
    """One turn as a language model reads it: the words (of a transcript, maybe), and the style where it is shown."""

    speaker: str
    text: str
    style: Style = NO_STYLE


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns to be answered by a language model, after its instructions."""

    turns: tuple[ReadTurn, ...]
    system: str = ""
    examples: tuple[tuple[ReadTurn, str], ...] = ()


class Answerer(ABC):
    """A language model that answers conversations in words."""

    @abstractmethod
    def load(self) -> None:
        """Load the weights. Raises UserError where there are none; called once, before the first answer."""

    @abstractmethod
    def answer(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        """The raw answers to a batch, greedy; a batch gives what its conversations give one by one (in float32)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What sets the answers, as JSON: weights, precision, template. Called after `load`."""


class System(ABC):
    """A baseline. Its constructor checks its settings and loads nothing.

    Attributes:
        name: for the run's name.
        input: what a prediction says the system was given, one of `evaluation.predictions.INPUTS`.
        sees: which of SEES the requests hold of the user's turns.
        tagged: whether its language model reads, before each of the user's turns, how it was spoken.
        learns: whether `study` needs turns of the training split.
    """

    name: str
    input: ClassVar[str]
    sees: tuple[str, ...]
    tagged: bool = False
    learns: bool = False

    @abstractmethod
    def load(self) -> None:
        """Load all weights. Raises UserError."""

    def instruct(self, instructions: Instructions) -> None:
        """Take what stands before every request; called once, before the first reply."""
        self.instructions = instructions

    def study(self, turns: Iterable[SeenTurn]) -> None:
        """Learn from labelled user's turns of the training split, where `learns` says so."""
        raise AssertionError(f"{type(self).__name__} learns nothing")

    def prepare(self, requests: Sequence[Request]) -> None:  # noqa: B027
        """Do once for all requests what is better not done reply by reply, such as recognising speech."""

    @abstractmethod
    def reply(self, requests: Sequence[Request], max_new_tokens: int) -> list[str]:
        """The raw replies to a batch, style and words in one text. A batch gives what single requests give."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What sets the replies, as JSON, for run.json and for the key of replies that are kept. Called after `load`
        and `study`."""

    def warnings(self) -> list[str]:
        """What a reader of the figures must know, in plain words, such as that an oracle was used."""
        return []


def requests_of(
    dialogue: Dialogue, corpus: AnyCorpus, sees: Sequence[str], replies: str, missing_audio: str
) -> list[tuple[int, Request]]:
    """(index of the reply's turn, request) of the replies of speaker B to something that A said.

    Of several turns in a row by one speaker, the first of B is the reply, as in training.

    Args:
        sees: which of SEES the user's turns show.
        replies: last | all.
        missing_audio: what a system that hears gets of a turn without recording: words | error.

    Raises:
        UserError: missing_audio=error, and a recording is missing.
    """
    starts = [
        number
        for number, turn in enumerate(dialogue.turns)
        if turn.speaker == PLAYED and number > 0 and dialogue.turns[number - 1].speaker == USER
    ]
    wanted = starts[-1:] if replies == "last" else starts
    if not wanted:
        return []
    seen = [
        seen_turn(turn, corpus, sees, missing_audio, f"dialogue {dialogue.id!r} turn {number}")
        for number, turn in enumerate(dialogue.turns[: wanted[-1]])
    ]
    return [(number, Request(f"{dialogue.id}#{number}", tuple(seen[:number]))) for number in wanted]


def seen_turn(turn: Turn, corpus: AnyCorpus, sees: Sequence[str], missing_audio: str, where: str) -> SeenTurn:
    """What a system that sees `sees` is shown of a turn; all of the model's own."""
    if turn.speaker == PLAYED:
        return SeenTurn(turn.speaker, turn.text, turn.style)
    hears = "audio" in sees
    if hears and turn.audio is None and missing_audio == "error":
        raise UserError(f"missing_audio=error: {where} has no recording")
    recording = corpus.path_of(turn) if hears and turn.audio is not None else None
    shown = SeenTurn(
        turn.speaker,
        turn.text if "words" in sees or recording is None else None,
        turn.style if "style" in sees else Style(),
    )
    if recording is None:
        return shown
    sha256 = turn.sha256 or sha256_bytes(recording.read_bytes())
    return replace(shown, audio=recording, seconds=turn.seconds or 0.0, sha256=sha256)


def messages_of(turns: Sequence[ReadTurn]) -> list[tuple[str, str]]:
    """(speaker, text) of each message: turns in a row of one speaker are one message.

    A style stands in brackets before the words, as replies have it; of several turns of the model's own in a row only
    the first shows its style, as in training.
    """
    messages: list[tuple[str, str]] = []
    for turn in turns:
        follows = bool(messages) and messages[-1][0] == turn.speaker
        style = Style() if follows and turn.speaker == PLAYED else turn.style
        text = "".join(format_reply(style, turn.text.strip()))
        if follows:
            messages[-1] = turn.speaker, f"{messages[-1][1]} {text}"
        else:
            messages.append((turn.speaker, text))
    return messages
