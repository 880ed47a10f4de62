"""What a conversation with a model is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omnichat.model.pretrained import OmniChatForConditionalGeneration, OmniChatProcessor
from omnichat.model.pretrained.conversation import Said, Sound
from omnichat.schema import Style
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class DecodingConfig:
    """How replies are decoded."""

    max_new_tokens: int = 96  # of a reply
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0  # of sampling: the smallest set of tokens that has this probability
    top_k: int = 0  # of sampling: the k likeliest tokens; 0 = all
    beams: int = 1  # of beam search, which cannot be streamed
    seed: int = 0  # of sampling
    max_sec: float | None = None  # after which a reply is cut; null = never

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("beams", 1), ("top_k", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"decoding.{name} must be at least {least}, got {value}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"decoding.temperature must be at least 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p must lie in (0, 1], got {self.top_p}")
        if self.max_sec is not None and not self.max_sec > 0:
            raise UserError(f"decoding.max_sec must be null or positive, got {self.max_sec}")
        if self.beams > 1 and self.temperature > 0:
            raise UserError("decoding.beams: beam search does not sample; set decoding.temperature to 0")

    def options(self) -> dict[str, Any]:
        """As transformers' `generate` takes them."""
        found: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        if self.max_sec is not None:
            found["max_time"] = self.max_sec
        if self.temperature > 0:
            found |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return found


@dataclass(frozen=True, slots=True)
class HeardWindows:
    """How the fusion listened to a recording.

    Attributes:
        window_sec: length of a window. experts: in the order of the columns.
        attention: [W][E], mass an expert gets in a window, sums to 1; empty where the fusion tells none.
    """

    window_sec: float
    experts: tuple[str, ...]
    attention: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply.

    Attributes:
        text: as decoded, its style in brackets first. style: None where the text begins with none. words: the rest.
        tokens: of the reply. prompt_tokens: positions of the prompt. kept_tokens: of these, held by the cache before.
        first_token_sec: from the question to the first token, experts included. seconds: to the end.
        heard: of the turn's recording; None where it has none, or the cache held it.
        complete: whether the model ended it by itself, not a limit or a stop.
    """

    text: str
    style: Style | None
    words: str
    tokens: int
    prompt_tokens: int
    kept_tokens: int
    first_token_sec: float
    seconds: float
    heard: HeardWindows | None
    complete: bool


@dataclass(slots=True)
class Talker:
    """A loaded model, with what people want to know of it.

    Attributes:
        name: of the run or folder. facts: alpha, input, metrics, ...: plain values, for show.
        transcribe: recording -> words, for a model that reads words; None where there is no recogniser.
    """

    model: OmniChatForConditionalGeneration
    processor: OmniChatProcessor
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    transcribe: Callable[[Sound], str] | None = None

    @property
    def reads_words(self) -> bool:
        """Whether the model reads the words of a user's turn: the gold ones, or a recogniser's."""
        return self.processor.chat.config.input != "speech"

    def completed(self, said: Said) -> Said:
        """A user's turn with its words, where the model reads them and there is a recogniser to hear them."""
        if said.sound is None or said.words.strip() or not self.reads_words or self.transcribe is None:
            return said
        return Said(said.role, said.sound, self.transcribe(said.sound) or "...", said.style)
