"""Replies spoken aloud, in the style that the model chose for them."""

from __future__ import annotations

import threading

from omnichat.chat.base import Answer
from omnichat.chat.talking.sounds import wav_of
from omnichat.schema import Style
from omnichat.synthesis.base import Voice
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import derive_seed


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
        words = answer.words.strip()
        if not any(letter.isalnum() for letter in words):
            raise UserError("the reply has no words")
        style = answer.style or Style()
        with self._lock:
            wave, rate = self.voice.speak(words, speaker, style, derive_seed(self.seed, "reply", words))
        return wav_of(wave, rate)
