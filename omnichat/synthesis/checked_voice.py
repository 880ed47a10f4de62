"""A voice whose clips are looked at before anything else hears them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Utterance, Voice, Wave

_MAX_CLIP_SAMPLES = 10_000_000  # 3 to 10 minutes of one sentence, by the rate: memory for no check to reject it


class CheckedVoice(Voice):
    """Gives what another voice gives, where that is a clip: float32 [N], finite, in [-1, 1], not empty.

    A voice is a model or a server: now and then it fails on a sentence, and other words or another seed may do better.

    Args:
        voice: that speaks.
    """

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.reproducible = voice.reproducible

    @property
    def speakers(self) -> dict[str, str | None]:
        """See `Voice.speakers`."""
        return self.voice.speakers

    @property
    def sample_rate(self) -> int:
        """See `Voice.sample_rate`."""
        return self.voice.sample_rate

    def promises(self) -> dict[str, dict[str, float]]:
        """See `Voice.promises`."""
        return self.voice.promises()

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        """See `Voice.speak`; raises ClipFailed for what can be neither stored nor measured."""
        wave, rate = self.voice.speak(text, speaker, style, seed)
        return _sound(wave), rate

    def speak_batch(self, lines: Sequence[Utterance]) -> list[Wave]:
        """See `Voice.speak_batch`; raises ClipFailed for what can be neither stored nor measured."""
        waves = self.voice.speak_batch(lines)
        if len(waves) != len(lines):
            raise ClipFailed("the voice gave another number of clips than lines")
        return [_sound(wave) for wave in waves]

    def describe(self) -> dict[str, Any]:
        """See `Voice.describe`."""
        return self.voice.describe()


def _sound(wave: Any) -> Wave:
    """A voice's clip as float32 [N]; raises ClipFailed for what is none."""
    try:
        wave_N = np.asarray(wave)
    except ValueError:
        raise ClipFailed("the voice gave a clip that is no waveform") from None
    if wave_N.ndim != 1 or wave_N.dtype.kind != "f":
        raise ClipFailed("the voice gave a clip that is no waveform")
    if len(wave_N) == 0:
        raise ClipFailed("the voice gave an empty clip")
    if len(wave_N) > _MAX_CLIP_SAMPLES:
        raise ClipFailed("the voice gave a clip without end")
    if not np.isfinite(wave_N).all():
        raise ClipFailed("the voice gave samples that are not finite")
    if np.abs(wave_N).max() > 1.0:
        raise ClipFailed("the voice gave samples beyond full scale")
    return wave_N.astype(np.float32, copy=False)
