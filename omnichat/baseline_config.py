"""What `omnichat baseline` may be told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omnichat.data.mixture import SourceConfig
from omnichat.evaluation.score import ScoreConfig
from omnichat.text.chat import MISSING_AUDIO
from omnichat.utils.errors import UserError, one_of

SHOTS_FROM = ("prompts", "train")


@dataclass(kw_only=True, slots=True)
class SourcesConfig:
    """The corpora that a baseline is tested on, written as those of a training run."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class BaselineRun:
    """`omnichat baseline`."""

    name: str = "auto"  # of the run's folder; auto = the system, its model, the shots
    runs: str = "runs"  # folder that holds the run folders
    seed: int = 0  # of the drawing of examples from the training split
    system: Any = None  # part
    run: str | None = None  # text_llm, cascade: run folder whose LLM answers
    checkpoint: str = "last"  # of that run: last | best (by dev loss) | step-NNNNNN
    mixture: SourcesConfig = field(default_factory=SourcesConfig)
    split: str = "test"  # test | dev
    replies: str = "last"  # last reply of each dialogue | all
    limit: int | None = None  # dialogues per source at most; null = all
    missing_audio: str = "words"  # what a system that hears gets of a turn without recording: words | error
    prompts: str = "v1"  # packaged version, or a folder
    shots: int = 4  # examples before every request
    shots_from: str = "prompts"  # prompts | train
    max_new_tokens: int = 48  # of a reply
    batch_size: int = 8  # requests answered together
    audio_samples: int = 6  # replies a scenario whose heard turn is kept for the report
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        for name, choices in (
            ("split", ("dev", "test")),
            ("replies", ("last", "all")),
            ("missing_audio", MISSING_AUDIO),
            ("shots_from", SHOTS_FROM),
        ):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("shots", 0), ("audio_samples", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be null or at least 1, got {self.limit}")
        if self.name != "auto" and not re.fullmatch(r"[\w.=,+-]+", self.name):
            raise UserError(f"name={self.name!r} must be a plain folder name (letters, digits, . _ - = , +)")
