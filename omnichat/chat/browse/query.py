"""What a corpus is searched for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from omnichat.schema import EMOTIONS, KINDS, PITCHES, SCENARIOS, SPEEDS, SPLITS
from omnichat.utils.errors import UserError, one_of

TURNS = ("any", "heard", "reply", "history")  # heard: the last turn of A; reply: what follows it
ORDERS = ("corpus", "lowest", "highest")
FACETS = {"split": SPLITS, "scenario": SCENARIOS, "kind": KINDS}
LABELS = {"emotion": EMOTIONS, "pitch": PITCHES, "speed": SPEEDS}
MAX_WORDS = 200  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What is asked of a dialogue; None and "" ask for nothing.

    Attributes:
        emotion, pitch, speed: all of them of one and the same turn.
        turn: which turn that may be.
        words: each must stand in the turns, the topic, the scene or the id, in any case; "in quotes" as a phrase.
        figure: a figure of the index that `low` and `high` (both included) are about, and `order`.
        order: as in the corpus, or by the figure. Dialogues without the figure come last, or not at all where a limit
            is set.

    Raises:
        UserError: a value that is none of the choices.
    """

    split: str | None = None
    scenario: str | None = None
    kind: str | None = None
    emotion: str | None = None
    pitch: str | None = None
    speed: str | None = None
    turn: str = "any"
    words: str = ""
    figure: str | None = None
    low: float | None = None
    high: float | None = None
    order: str = "corpus"

    def __post_init__(self) -> None:
        for name, choices in {**FACETS, **LABELS}.items():
            if getattr(self, name) is not None and getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        if self.turn not in TURNS:
            raise one_of("turn", self.turn, TURNS)
        if self.order not in ORDERS:
            raise one_of("order", self.order, ORDERS)
        if not isinstance(self.words, str) or len(self.words) > MAX_WORDS:
            raise UserError(f"words must be a text of at most {MAX_WORDS} characters")
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{name} must be a number")
            if value is not None and not math.isfinite(value):
                raise UserError(f"{name} must be finite")
        if self.figure is None and (self.low is not None or self.high is not None or self.order != "corpus"):
            raise UserError("figure: choose the figure that the limits and the order are about")

    def terms(self) -> list[str]:
        """The words and phrases that must stand in a dialogue, in lower case."""
        found = re.findall(r'"([^"]+)"|([^\s"]+)', self.words.lower())
        return [" ".join((phrase or word).split()) for phrase, word in found if (phrase or word).strip()]
