"""What the factory's parts agree on: scripts, the writers that make them, the voices that speak them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.schema import SCENARIOS, SPEAKERS, SPLITS, Style
from omnichat.utils.errors import UserError, one_of

Wave = np.ndarray  # mono float32 [N] in [-1, 1]
MAX_WORD_LETTERS = 60  # a longer one is no word, and would be spoken for minutes
NO_TOPIC = "everyday life"  # of a script whose writer names none; a corpus then states none


@dataclass(frozen=True, slots=True)
class Line:
    """One scripted turn: who, the words, and how they are spoken."""

    speaker: str
    text: str
    style: Style


@dataclass(frozen=True, slots=True)
class Variant:
    """One way the current words are spoken, and the reply that this way deserves."""

    style: Style
    reply: Line


@dataclass(frozen=True, slots=True)
class Sound:
    """A background that a script is written for.

    Attributes:
        name: key in the scene library, e.g. "dog" or "calm/calm_acoustic_1".
        caption: what a listener would say it is. keywords: words by which a reply shows that it heard it.
        words: slots for a writer (animal and action, or mood and kind).
    """

    name: str
    caption: str
    keywords: tuple[str, ...]
    words: dict[str, str]


@dataclass(frozen=True, slots=True)
class ScriptRequest:
    """What a script shall be like. The plan of a corpus decides it, so that labels are balanced whoever writes.

    Attributes:
        seed: all of the writer's own choices derive from it.
        history_turns: turns before the current one, an even number; they alternate, A first.
        styles: one style for each variant of the current turn.
        sound: the background of an -Audio or -Music script, else None.
        topic: what the dialogue is about; None = the writer chooses.
    """

    scenario: str
    split: str
    seed: int
    history_turns: int
    styles: tuple[Style, ...]
    sound: Sound | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise one_of("scenario", self.scenario, SCENARIOS)
        if self.split not in SPLITS:
            raise one_of("split", self.split, SPLITS)
        if self.history_turns < 0 or self.history_turns % 2:
            raise UserError(f"history_turns must be an even number >= 0, got {self.history_turns}")


@dataclass(frozen=True, slots=True)
class Script:
    """A dialogue in words: a shared history, the current words, and variants of how they sound and what follows."""

    topic: str
    scenario: str
    history: tuple[Line, ...]
    current: str
    variants: tuple[Variant, ...]
    sound: Sound | None = None

    def sentences(self) -> list[str]:
        """Every sentence, in order: history, current turn, replies."""
        return [*(line.text for line in self.history), self.current, *(v.reply.text for v in self.variants)]

    def lines(self) -> dict[str, Line]:
        """All that is spoken, by key: h0, h1, ... of the history, u and r with the variant's number: user, reply."""
        lines = {f"h{index}": line for index, line in enumerate(self.history)}
        for index, variant in enumerate(self.variants):
            lines[f"u{index}"] = Line("A", self.current, variant.style)
            lines[f"r{index}"] = Line("B", variant.reply.text, variant.reply.style)
        return lines


@dataclass(frozen=True, slots=True)
class Rejected:
    """What a writer gives in place of a script that it could not make: short reasons that a data card can count."""

    reasons: tuple[str, ...]


class ScriptWriter(ABC):
    """Writes scripts on request: a grammar, a language model, a person's file."""

    @abstractmethod
    def write(self, request: ScriptRequest) -> Script:
        """Return the script of `request`: the same request gives the same script. Raises UserError if it cannot."""

    def write_batch(self, requests: Sequence[ScriptRequest], store: Path | None) -> Iterator[Script | Rejected]:
        """Yield the script of each request, in their order; here one after another.

        Args:
            store: folder in which a writer whose answers cost money, time or luck keeps them, one file a request, named
                by the hash of all that asks for it: a killed run asks for nothing twice, and ends in the same words.
                None = keep nothing.

        Raises:
            UserError: the writer cannot go on at all (a server that is down, a wrong key).
        """
        for request in requests:
            yield self.write(request)

    def offers(self, scenario: str, split: str) -> Sequence[ScriptRequest] | None:
        """What a writer of given scripts can answer, in a fixed order: the plan then follows it. None = anything."""
        return None

    def usage(self, store: Path | None) -> dict[str, Any] | None:
        """What the answers in `store` took: {"kept": of those that scripts were made of, "paid": of all}; None = none.

        "kept" is the same however often a run was killed, so a data card may hold it; "paid" is what it cost.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON facts for the data card: name, version, licence, and the rule from heard style to reply style."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sentence to be spoken: the arguments of `Voice.speak`.

    Attributes:
        stretch: further factor on the duration, by which a check wants to put a turn's tempo right; a voice that cannot
            do it speaks as always.
    """

    text: str
    speaker: str
    style: Style
    seed: int
    stretch: float = 1.0


class ClipFailed(UserError):
    """One clip could not be spoken: a reason to reject this dialogue and try it anew, not to end the corpus.

    Attributes:
        reason: a short sentence without figures, that a card can count. The message adds the detail.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle both parts: a worker process raises it, the parent reads the reason."""
        return type(self), (self.reason, self.detail)


class Voice(ABC):
    """Speaks sentences as named speakers in a style. Picklable: models load on first use, in each process.

    Attributes:
        reproducible: whether the same arguments give the same samples. A voice behind a server, or on kernels without a
            fixed order, cannot promise it; what it has spoken then has to be kept, not spoken again.
    """

    reproducible: bool = True

    @property
    @abstractmethod
    def speakers(self) -> dict[str, str | None]:
        """Names of its speakers and their gender (None where unknown)."""

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Rate in Hz of every clip."""

    @abstractmethod
    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        """Return (mono float32 [N] in [-1, 1], sample rate in Hz); the same arguments give the same samples.

        Attributes that `style` leaves None are spoken as normal or neutral.

        Raises:
            ClipFailed: this clip could not be spoken; another seed, or other words, may do.
            UserError: an unknown speaker, a missing model, a server that is down: no clip can be spoken.
        """

    def speak_batch(self, lines: Sequence[Utterance]) -> list[Wave]:
        """Speak several sentences, one clip each at `sample_rate`: on a CPU to the bit what `speak` gives for each.

        Voices that run on an accelerator, or ask a server, speak them together. Raises what `speak` raises.
        """
        return [self.speak(line.text, line.speaker, line.style, line.seed)[0] for line in lines]

    def promises(self) -> dict[str, dict[str, float]]:
        """What the voice says of the measures of its emotions, so that a check can hold it to that.

        Returns:
            measure -> emotion -> value; "range_st" (pitch range in semitones) and "level_db" (active level) are known.
            Only the order of the emotions counts. Empty = nothing is promised.
        """
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON facts for the data card: name, settings, licence."""


def script_problems(script: Script, request: ScriptRequest, max_words: int) -> list[str]:
    """Return what is wrong with a script, one reason a line; empty = valid. Every reason is one a card can count."""
    problems = []
    if script.scenario != request.scenario:
        problems.append("scenario differs from the request")
    if len(script.history) != request.history_turns:
        problems.append("history has another number of turns than asked")
    if any(line.speaker != SPEAKERS[i % 2] for i, line in enumerate(script.history)):
        problems.append("history does not alternate A, B")
    if tuple(variant.style for variant in script.variants) != request.styles:
        problems.append("variants have other styles than asked")
    if any(variant.reply.speaker != "B" for variant in script.variants):
        problems.append("a reply is not B's")
    problems += _sentence_problems(script.sentences(), max_words)
    replies = [(variant.reply.style, variant.reply.text) for variant in script.variants]
    emotions = [variant.style.emotion for variant in script.variants]
    if len(set(replies)) < len(set(emotions)):
        problems.append("two emotions get the same reply")
    if (script.sound is None) != (request.sound is None):
        problems.append("a scene is missing or was not asked for")
    if script.sound is not None:
        before = " ".join([*(line.text for line in script.history), script.current]).lower()
        if any(word.lower() in before for word in script.sound.keywords):
            problems.append("the sound is named before the reply")
        if any(not names_sound(variant.reply.text, script.sound.keywords) for variant in script.variants):
            problems.append("a reply does not name the sound")
    return problems


def names_sound(text: str, keywords: Sequence[str]) -> bool:
    """Whether a text holds one of the keywords, whatever its case."""
    return any(word.lower() in text.lower() for word in keywords)


def _sentence_problems(sentences: Sequence[str], max_words: int) -> list[str]:
    problems = []
    if any(not sentence.strip() for sentence in sentences):
        problems.append("an empty sentence")
    if any(len(sentence.split()) > max_words for sentence in sentences):
        problems.append(f"a sentence of more than {max_words} words")
    if any(len(word) > MAX_WORD_LETTERS for sentence in sentences for word in sentence.split()):
        problems.append(f"a word of more than {MAX_WORD_LETTERS} letters")
    if any(mark in sentence for sentence in sentences for mark in "{}[]<>|"):
        problems.append("a bracket in a sentence")
    return problems
