"""What the config of `omnichat serve` may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from omnichat.chat.server.config import ServeConfig
from omnichat.chat_config import check_precision
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class ServeRun(ServeConfig):
    """`omnichat serve`."""

    # Those of TalkerConfig: no class with slots can have two bases of that kind.
    run: str = MISSING  # folder of a run, folder of a saved model, or hub id of one
    checkpoint: str = "last"  # of a run: last | best (by dev loss) | step-NNNNNN
    device: str = "auto"  # auto (a GPU if there is one) | cpu | cuda | cuda:N
    precision: str = "auto"  # auto (as trained) | fp32 | bf16
    recogniser: str | None = None  # weights of a Whisper, which hears the words for a model that reads them
    voice: Any = None  # part: speaks the replies for those who ask for it; null = nobody may
    speaker: str | None = None  # one of voice.speakers, where a request names none; null = the first

    def __post_init__(self) -> None:
        ServeConfig.__post_init__(self)
        check_precision(self.precision)
        if self.speaker is not None and self.voice is None:
            raise UserError(f"speaker={self.speaker} needs a voice, such as voice=piper")
