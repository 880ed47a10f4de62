"""What the configs of the verbs that measure replies may hold: evaluate, score, judge, speak."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from omnichat.data.outside_set import OutsideSet, check_set_name
from omnichat.evaluation.score import ScoreConfig
from omnichat.experiments.systems import SystemsConfig
from omnichat.training.processes import LaunchConfig
from omnichat.utils.errors import UserError, one_of

LEAKS = ("warn", "refuse", "leave_out")


@dataclass(kw_only=True, slots=True)
class EvaluateRun:
    """`omnichat evaluate`."""

    run: str = MISSING  # run folder
    split: str = "test"  # test | dev
    checkpoint: str = "last"  # last | best (by dev loss) | step-NNNNNN
    replies: str = "last"  # last reply of each dialogue | all
    limit: int | None = None  # dialogues per source at most; null = all
    max_new_tokens: int = 48  # of a reply
    batch_tokens: int = 4096  # padded prompt positions a decoding batch holds at most
    audio_samples: int = 6  # replies a scenario whose heard turn and attention are kept for the report
    own: bool = True  # the held-out dialogues of the run's own corpora
    sets: dict[str, OutsideSet] = field(default_factory=dict)  # name -> test set from outside the mixture
    leaks: str = "warn"  # what training has met of a test reply: warn | refuse | leave_out
    score: ScoreConfig = field(default_factory=ScoreConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # what the files of configs/launch set for training: not used

    def __post_init__(self) -> None:
        for name, choices in (("split", ("dev", "test")), ("replies", ("last", "all")), ("leaks", LEAKS)):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        for name in ("max_new_tokens", "batch_tokens", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not (self.own or self.sets):
            raise UserError("own=false leaves nothing to evaluate: name a set, e.g. +sets.vox.path=corpora/vox")
        for name in self.sets:
            check_set_name(name)
        if wrong := sorted(set(self.trainer) - {"micro_batches", "preflight"}):
            raise UserError(f"trainer.{wrong[0]} belongs to omnichat train; evaluate trains nothing")
        plain = LaunchConfig()
        for name in ("nodes", "strategy", "offload_params"):
            if (value := getattr(self.launch, name)) != (right := getattr(plain, name)):
                raise UserError(
                    f"launch.{name}={value}: each process of omnichat evaluate holds a whole model, on one machine; "
                    f"leave it at {right}"
                )


@dataclass(kw_only=True, slots=True)
class ScoreRun(SystemsConfig):
    """`omnichat score`."""

    predictions: Any = MISSING
    layout: Any = None  # part: how files of other systems are read
    layouts: dict[str, Any] = field(default_factory=dict)  # system -> part
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(kw_only=True, slots=True)
class JudgeRun:
    """`omnichat judge`."""

    predictions: Any = MISSING  # a predictions file, a run folder, or a list of these
    judge: Any = None  # part
    answers: str = "cache/judge"  # folder of the answers that were paid for
    dry_run: bool = False  # say what would be asked, and ask nothing


@dataclass(kw_only=True, slots=True)
class SpeakRun:
    """`omnichat speak`."""

    predictions: Any = MISSING  # a predictions file, a run folder, or a list of these
    voice: Any = None  # part
    speaker: str | None = None  # one of the voice's; null = the first
    seed: int = 0  # of the voice's variation from clip to clip
    workers: int = 1  # processes; any number gives the same figures
    batch: int = 8  # replies that are spoken and heard together
    checks: dict[str, Any] = field(default_factory=dict)  # words, mos: parts

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
