"""A voice for tests of the factory that needs no model: tones that say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.schema import Style
from omnichat.synthesis.base import Voice
from omnichat.utils.seeding import numpy_rng

RATE = 16000
_PITCH = {"low": 0.8, "normal": 1.0, "high": 1.25}
_SPEED = {"slow": 1.3, "normal": 1.0, "fast": 0.8}


class ToneVoice(Voice):
    """Real sound at once: a harmonic tone whose pitch and length follow speaker and style; a text's own melody."""

    @property
    def speakers(self) -> dict[str, str | None]:
        return {"ada": "female", "joe": "male", "lea": "female", "max": "male"}

    @property
    def sample_rate(self) -> int:
        return RATE

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[np.ndarray, int]:
        rng = numpy_rng(seed, text)
        seconds = 0.06 * len(text) * _SPEED[style.speed or "normal"]
        hz = {"ada": 210.0, "joe": 100.0, "lea": 180.0, "max": 85.0}[speaker] * _PITCH[style.pitch or "normal"]
        t = np.arange(round(seconds * RATE)) / RATE
        wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6)) + 0.01 * rng.standard_normal(len(t))
        return effects.to_level_db(wave.astype(np.float32), RATE, -24.0), RATE

    def describe(self) -> dict[str, Any]:
        return {"name": "tones", "licence": "none", "speech_level_db": -24.0}
