"""A voice and an ear that agree on which text has which length: for tests of what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Voice, Wave
from omnichat.synthesis.checks.words import WINDOW_SEC, WordErrorCheck

RATE = 16000
STEP = 160  # samples by which the clips of two texts differ in length


class Buzz(Voice):
    """Speaks text number n of `texts` as a clip of STEP * (100 + n) samples, whose pitch is the style's and the seed's.

    Args:
        texts: that it knows. log: file that gets a line for each text it speaks.
        fails: text -> how many tries fail before one works. dies_at: text at which the process would be killed.
    """

    def __init__(self, texts: Sequence[str], log: Path, fails: dict[str, int] | None = None, dies_at: str = "") -> None:
        self.texts, self.log, self.dies_at = list(texts), log, dies_at
        self.fails = dict(fails or {})

    @property
    def speakers(self) -> dict[str, str | None]:
        return {"ann": "female", "bob": "male"}

    @property
    def sample_rate(self) -> int:
        return RATE

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        if text == self.dies_at:
            raise KeyboardInterrupt
        if self.fails.get(text, 0) > 0:
            self.fails[text] -= 1
            raise ClipFailed("the voice gave silence", text)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{text}|{speaker}|{style.emotion}\n")
        hertz = 100 + seed % 100 + 10 * len(style.emotion or "")
        n = np.arange(STEP * (100 + self.texts.index(text)))
        return (0.3 * np.sin(2 * np.pi * hertz * n / RATE)).astype(np.float32), RATE

    def describe(self) -> dict[str, Any]:
        return {"name": "buzz", "texts": self.texts}

    def spoken(self) -> list[str]:
        """Texts spoken so far."""
        return [line.split("|")[0] for line in self.log.read_text().splitlines()] if self.log.is_file() else []


class Ear(WordErrorCheck):
    """Whisper's place: hears a clip of Buzz as its text, or as `mishears` says.

    Args:
        mishears: text -> what is heard in its place. early: the same, in a window shorter than Whisper's.
    """

    def __init__(
        self, texts: Sequence[str], mishears: dict[str, str] | None = None, early: dict[str, str] | None = None
    ) -> None:
        super().__init__("none", 1.0, 1.0, 10.0, "float32", 200)
        self.texts, self.mishears, self.early = list(texts), mishears or {}, early or {}

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float) -> list[str]:
        heard = []
        for wave in waves:
            assert len(wave) <= WINDOW_SEC * RATE
            text = self.texts[len(wave) // STEP - 100] if len(wave) < 3 * RATE else "many words"
            text = self.mishears.get(text, text)
            heard.append(self.early.get(text, text) if window_sec < WINDOW_SEC else text)
        return heard
