"""Replies spoken aloud, in the style that the model chose for them."""

from __future__ import annotations

import threading

from omnichat.chat.base import Answer
from omnichat.chat.speaking import ReplyVoice
from omnichat.chat.talking.sounds import wav_of
from omnichat.synthesis.base import Voice
from omnichat.utils.errors import one_of


class Speech:
    """A voice for all tabs, one at a time.

    Args:
        voice: that speaks. seed: of its variation from reply to reply.
    """

    def __init__(self, voice: Voice, seed: int) -> None:
        self.voice, self.seed = voice, seed
        self.speakers: dict[str, str | None] = dict(voice.speakers)
        self._lock = threading.Lock()

    def speak(self, answer: Answer, speaker: str) -> bytes:
        """The reply's words as a WAV file.

        Raises:
            UserError: no words, an unknown speaker, or the voice cannot speak this.
        """
        if speaker not in self.speakers:
            raise one_of("voice", speaker, self.speakers)
        with self._lock:
            spoken = ReplyVoice(self.voice, speaker, self.seed).speak(answer)
        return wav_of(spoken.wave_N, spoken.sample_rate)
