"""The typed door: what each verb's config may hold, and the way from Hydra's tree to plain objects.

Two kinds of node: a part (`_target_`, checked against its class's constructor) and a dataclass beside its consumer.
Below this module there is no DictConfig.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from omnichat.data.batching import LoaderConfig
from omnichat.data.mixture import MixtureConfig
from omnichat.data.prepare import PrepareConfig
from omnichat.evaluation.score import ScoreConfig
from omnichat.model.llm import LLMConfig
from omnichat.synthesis.plan import SynthesisConfig
from omnichat.synthesis.stand_in import StandInConfig
from omnichat.text.chat import ChatConfig
from omnichat.training.features import CacheConfig
from omnichat.training.tracking import TrackingConfig
from omnichat.training.trainer import TrainerConfig
from omnichat.utils.errors import UserError, one_of

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class TrainRun:
    """`omnichat train`, and the base of `cache` and `inspect`."""

    name: str = "auto"  # of the run's folder; auto = input, alpha, seed and whatever else was overridden
    runs: str = "runs"  # folder that holds the run folders
    seed: int = 0  # of everything: order, initial weights, dropout
    resume: str = "auto"  # auto (continue if the folder has a checkpoint) | never | path of a checkpoint
    chat: ChatConfig = field(default_factory=ChatConfig)
    experts: dict[str, Any] = field(default_factory=dict)  # name -> part; order = order in the fusion
    fusion: Any = None  # part
    llm: LLMConfig = field(default_factory=LLMConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.resume not in ("auto", "never") and "/" not in self.resume:
            raise UserError(f"resume={self.resume!r} is not valid; choose auto, never or the path of a checkpoint")
        if self.name != "auto" and not re.fullmatch(r"[\w.=,+-]+", self.name):
            raise UserError(f"name={self.name!r} must be a plain folder name (letters, digits, . _ - = , +)")


@dataclass(kw_only=True, slots=True)
class InspectRun(TrainRun):
    """`omnichat inspect`."""

    split: str = "train"  # train | dev | test
    source: str | None = None  # of mixture.sources; null = the first
    dialogue: str = "0"  # id, or number within the split
    color: bool = True  # false for a plain file


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
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        for name, choices in (("split", ("dev", "test")), ("replies", ("last", "all"))):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        for name in ("max_new_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(kw_only=True, slots=True)
class ReportRun:
    """`omnichat report`."""

    runs: Any = MISSING  # a folder of run folders, or a list of run folders
    out: str | None = None  # folder of the page; null = <folder of the runs>/report
    baseline: str | None = None  # run that the others are tested against; null = the first run of words only


@dataclass(kw_only=True, slots=True)
class SynthesizeRun(SynthesisConfig):
    """`omnichat synthesize`."""

    writer: Any = None  # part
    voice: Any = None  # part
    checks: Any = None  # part


@dataclass(kw_only=True, slots=True)
class PrepareRun(PrepareConfig):
    """`omnichat prepare`."""

    source: Any = None  # part: a reader
    path: str = MISSING  # of the corpus as it was released
    stand_in: StandInConfig | None = None  # make a stand-in for DailyTalk at `path` first
    voice: Any = None  # part: speaks the stand-in


SCHEMAS: dict[str, type] = {
    "train": TrainRun,
    "cache": TrainRun,
    "inspect": InspectRun,
    "evaluate": EvaluateRun,
    "report": ReportRun,
    "synthesize": SynthesizeRun,
    "prepare": PrepareRun,
}


def register_schemas() -> None:
    """Give every verb's schema to Hydra, as `<verb>_schema`."""
    for verb, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{verb}_schema", node=schema)


def config_folder() -> Path:
    """Where the YAML files are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def typed(tree: Any, schema: type[T]) -> T:
    """Turn a composed tree into objects; unknown keys (also `+key`), wrong types and bad values raise UserError."""
    try:
        # Merged into a fresh schema once more: Hydra lets `+key=value` past the one it composed with.
        fresh = OmegaConf.merge(OmegaConf.structured(schema), tree)
        return OmegaConf.to_object(fresh)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from None


def to_plain(config: Any) -> dict[str, Any]:
    """A verb's config object as nested plain values, for config.yaml and for checkpoints."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def explain(error: Exception, schema: type) -> str:
    """One line for an OmegaConf or Hydra error, with the valid keys where a key is unknown."""
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines()]
    first = next(filter(None, lines), "invalid config")
    match = re.search(r"full_key: (\S+)", text)
    if match is None:
        return first
    key = match.group(1)
    if re.search(r"Key '.*' (is not in struct|not in )", text):
        return str(one_of("config key", key, valid_keys(schema, key.rpartition(".")[0])))
    if "Missing mandatory value" in text or "MISSING" in text:
        return f"{key} is missing: give it as {key}=..."
    return f"{key}: {first}"


def valid_keys(schema: type, prefix: str) -> list[str]:
    """The keys that a dataclass schema has below a dotted prefix, in full."""
    current: Any = schema
    for name in filter(None, prefix.split(".")):
        name = name.split("[")[0]
        inner = {f.name: f.type for f in fields(current)}.get(name) if is_dataclass(current) else None
        current = _dataclass_of(current, name) if inner is not None else None
        if current is None:
            return [f"{prefix}.*"]
    dotted = f"{prefix}." if prefix else ""
    return [f"{dotted}{f.name}" for f in fields(current)]


def _dataclass_of(owner: type, name: str) -> Any:
    import typing

    hint = typing.get_type_hints(owner)[name]
    options = [hint, *typing.get_args(hint)]
    return next((option for option in options if is_dataclass(option)), None)
