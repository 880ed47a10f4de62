"""Replies spoken aloud: the words of an answer, in the style that the model predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnichat.chat.base import Answer
from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Voice
from omnichat.synthesis.checked_voice import CheckedVoice
from omnichat.utils.errors import one_of
from omnichat.utils.seeding import derive_seed

_TRIES = 3  # seeds with which a reply is tried that the voice fails on


@dataclass(frozen=True, slots=True)
class Spoken:
    """A spoken reply: mono float32 [N] in [-1, 1], and its rate in Hz."""

    wave_N: np.ndarray
    sample_rate: int


class ReplyVoice:
    """Speaks answers as one speaker of a voice.

    Args:
        voice: any voice of the factory.
        speaker: one of its speakers; None: the first.
        seed: of its variation from clip to clip.

    Raises:
        UserError: a speaker that the voice lacks.
    """

    def __init__(self, voice: Voice, speaker: str | None = None, seed: int = 0) -> None:
        self.voice, self.seed = CheckedVoice(voice), seed
        self.speaker = speaker if speaker is not None else next(iter(voice.speakers))
        if self.speaker not in voice.speakers:
            raise one_of("speaker", self.speaker, voice.speakers)

    def speak(self, answer: Answer) -> Spoken:
        """The answer aloud. A reply without a style is spoken as normal and neutral.

        Raises:
            ClipFailed: it holds no words, or none that the voice can say.
            UserError: the voice cannot work at all.
        """
        if not any(letter.isalnum() for letter in answer.words):
            raise ClipFailed("the reply has no words")
        for attempt in range(_TRIES):
            seed = derive_seed(self.seed, "reply", answer.text, attempt)
            try:
                wave, rate = self.voice.speak(answer.words, self.speaker, answer.style or Style(), seed)
            except ClipFailed:
                if attempt + 1 == _TRIES:
                    raise
                continue
            return Spoken(np.clip(wave, -1.0, 1.0), rate)
        raise AssertionError("the last try returns or raises")
