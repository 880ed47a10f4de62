"""What the config of `omnichat chat` may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from omnichat.chat.base import DecodingConfig
from omnichat.chat.listening import VadConfig
from omnichat.utils.errors import UserError, one_of

PRECISIONS = ("auto", "fp32", "bf16")


def check_precision(precision: str) -> None:
    """Raise UserError for what is no precision."""
    if precision not in PRECISIONS:
        raise one_of("precision", precision, PRECISIONS)


@dataclass(kw_only=True, slots=True)
class TalkerConfig:
    """Which model to talk to."""

    run: str = MISSING  # folder of a run, folder of a saved model, or hub id of one
    checkpoint: str = "last"  # of a run: last | best (by dev loss) | step-NNNNNN
    device: str = "auto"  # auto (a GPU if there is one) | cpu | cuda | cuda:N
    precision: str = "auto"  # auto (as trained) | fp32 | bf16
    recogniser: str | None = None  # weights of a Whisper, which hears the words for a model that reads them

    def __post_init__(self) -> None:
        check_precision(self.precision)


@dataclass(kw_only=True, slots=True)
class ChatRun(TalkerConfig):
    """`omnichat chat`."""

    audio: Any = None  # recording of a turn, or a list of these: one answer each; null = a session
    words: str | None = None  # of the turn, for a model that reads them, or in place of a recording
    split: bool = False  # a recording may hold several turns: voice activity says where they end
    mic: Any = None  # true (the default microphone), or a device's number or name: speak, and pause to be answered
    system_prompt: str | None = None  # system prompt in place of the trained one
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    vad: VadConfig = field(default_factory=VadConfig)
    keep_cache: bool = True  # keep keys and values from turn to turn; false reads the whole dialogue every time
    voice: Any = None  # part: speaks the replies; null = they are only written
    speaker: str | None = None  # one of voice.speakers; null = the first
    out: str | None = None  # folder for the spoken replies and the dialogue; null = chats/<name of the run>

    def __post_init__(self) -> None:
        TalkerConfig.__post_init__(self)
        if self.audio is not None and not isinstance(self.audio, str | list | tuple):
            raise UserError(f"audio must be a path or a list of paths, got {self.audio!r}")
        if self.audio is not None and self.mic:
            raise UserError("audio and mic exclude each other: a recording, or the microphone")
        if self.words is not None and isinstance(self.audio, list | tuple) and len(self.audio) > 1:
            raise UserError("words are those of one turn, but audio names several recordings")
