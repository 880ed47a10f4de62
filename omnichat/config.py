"""The typed door: what each verb's config may hold, and the way from Hydra's tree to plain objects.

Two kinds of node: a part (`_target_`, checked against its class's constructor) and a dataclass beside its consumer.
Below this module there is no DictConfig.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from omnichat.baseline_config import BaselineRun
from omnichat.chat.browse.settings import BrowseConfig
from omnichat.chat.talking.settings import TalkConfig
from omnichat.chat_config import ChatRun, check_precision
from omnichat.data.batching import LoaderConfig
from omnichat.data.cache_prune import KINDS as PRUNE_KINDS
from omnichat.data.mixture import MixtureConfig
from omnichat.data.prepare import PrepareConfig
from omnichat.data.validate import LEVELS
from omnichat.evaluation_config import EvaluateRun, JudgeRun, ScoreRun, SpeakRun
from omnichat.experiments.run_list import STATES
from omnichat.export_config import ExportRun
from omnichat.model.llm import LLMConfig
from omnichat.serve_config import ServeRun
from omnichat.synthesis.plan import SynthesisConfig
from omnichat.synthesis.stand_in import StandInConfig
from omnichat.text.chat import ChatConfig
from omnichat.training.bench import BenchConfig
from omnichat.training.features import CacheConfig
from omnichat.training.identity import check_despite
from omnichat.training.lr_finder import LrFindConfig
from omnichat.training.processes import LaunchConfig
from omnichat.training.settings import TrainerConfig
from omnichat.training.tracking import TrackingConfig
from omnichat.utils.errors import UserError, one_of

T = TypeVar("T")
DATA_ACTIONS = ("validate", "stats", "push")
CACHE_ACTIONS = ("fill", "verify", "prune")
# Mappings whose keys are the user's.
OPEN = (
    *("mixture.sources", "sets", "experts", "llm.random_size", "history_turns", "dialogues", "bench.variants"),
    *("events.split_values", "events.splits", "music.split_values", "music.splits", "expert_paths"),
    *("source.labels", "source.labels.emotion", "source.emotions", "source.splits"),
    *("layouts", "layout.attributes", "layout.labels", "layout.labels.emotion"),
)


@dataclass(kw_only=True, slots=True)
class TrainRun:
    """`omnichat train`, and the base of `cache` and `inspect`."""

    name: str = "auto"  # of the run's folder; auto = input, alpha, seed and whatever else was overridden
    runs: str = "runs"  # folder that holds the run folders
    seed: int = 0  # of everything: order, initial weights, dropout
    resume: str = "auto"  # auto (continue if the folder has a checkpoint) | never | path of a checkpoint
    resume_despite: list[str] = field(default_factory=list)  # changes that are meant: data, experts, config, llm
    chat: ChatConfig = field(default_factory=ChatConfig)
    experts: dict[str, Any] = field(default_factory=dict)  # name -> part; order = order in the fusion
    fusion: Any = None  # part
    llm: LLMConfig = field(default_factory=LLMConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        if self.resume not in ("auto", "never") and "/" not in self.resume:
            raise UserError(f"resume={self.resume!r} is not valid; choose auto, never or the path of a checkpoint")
        check_despite(self.resume_despite)
        if (self.mixture.one_pass_of is None) == (self.trainer.steps is None):
            raise UserError(
                f"mixture.one_pass_of={self.mixture.one_pass_of} and trainer.steps={self.trainer.steps}: one of "
                "them says when the run ends, so exactly one must be null"
            )
        if self.name != "auto" and not re.fullmatch(r"[\w.=,+-]+", self.name):
            raise UserError(f"name={self.name!r} must be a plain folder name (letters, digits, . _ - = , +)")
        if self.trainer.loss.distill_weight > 0 and self.chat.input == "text":
            raise UserError(
                "trainer.loss.distill_weight: with chat.input=text the model reads what its teacher reads; set it to "
                "0, or choose chat.input=speech, speech_text or asr"
            )


@dataclass(kw_only=True, slots=True)
class CacheRun(TrainRun):
    """`omnichat cache`."""

    action: str = "fill"  # fill | verify | prune
    dry_run: bool = False  # fill, prune: say what would be done, and do nothing
    recheck: int = 0  # verify: clips to encode anew and compare bit for bit
    repair: bool = False  # verify: move damaged shards aside
    drop: list[str] = field(default_factory=lambda: ["leftovers", "fingerprints"])  # prune: kinds; also: clips
    yes: bool = False  # prune: delete

    def __post_init__(self) -> None:
        TrainRun.__post_init__(self)  # no super(): a dataclass with slots is made twice, and super() knows the first
        if self.action not in CACHE_ACTIONS:
            raise one_of("action", self.action, CACHE_ACTIONS)
        if wrong := [kind for kind in self.drop if kind not in PRUNE_KINDS]:
            raise one_of("drop", wrong[0], PRUNE_KINDS)
        if self.recheck < 0:
            raise UserError(f"recheck must be at least 0, got {self.recheck}")
        own = {"dry_run": ("fill", "prune"), "repair": ("verify",), "recheck": ("verify",), "yes": ("prune",)}
        for name, actions in own.items():
            if getattr(self, name) and self.action not in actions:
                raise UserError(f"{name} belongs to the action {' or '.join(actions)}, but the action is {self.action}")


@dataclass(kw_only=True, slots=True)
class LrFindRun(TrainRun):
    """`omnichat lr-find`."""

    lr_find: LrFindConfig = field(default_factory=LrFindConfig)


@dataclass(kw_only=True, slots=True)
class InspectRun(TrainRun):
    """`omnichat inspect`."""

    split: str = "train"  # train | dev | test
    from_source: str | None = None  # of mixture.sources; null = the first
    dialogue: str = "0"  # id, or number within the split
    color: bool = True  # false for a plain file


@dataclass(kw_only=True, slots=True)
class BenchRun(TrainRun):
    """`omnichat bench`."""

    quick: bool = False  # only whether all of it runs: a tiny random LLM, one round; its speeds mean nothing
    bench: BenchConfig = field(default_factory=BenchConfig)


@dataclass(kw_only=True, slots=True)
class ReportRun:
    """`omnichat report`."""

    runs: Any = None  # a folder of run folders, or a list of run folders
    study: str | None = None  # or a study's folder: plans/, runs/ and ledger.jsonl
    out: str | None = None  # folder of the page; null = <folder of the runs>/report, or <study>/report
    baseline: str | None = None  # run that the others are tested against; null = the first run of words only


@dataclass(kw_only=True, slots=True)
class RunsRun:
    """`omnichat runs`."""

    runs: str = "runs"  # folder that holds run folders, at any depth
    state: str | None = None  # only these; null = all
    name: str = "*"  # only these: a pattern of the folder's name, as a shell's
    metric: str | None = None  # one more figure, such as dev/loss_style or test/bleu
    command: bool = False  # also the command that made each run
    all: bool = False  # also runs that resume=never moved aside
    json: bool = False  # JSON in place of the table
    dead_after_sec: float = 900.0  # a running run that writes nothing for so long is dead

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in STATES:
            raise one_of("state", self.state, STATES)
        if not self.dead_after_sec > 0:
            raise UserError(f"dead_after_sec must be positive, got {self.dead_after_sec}")


@dataclass(kw_only=True, slots=True)
class DataRun:
    """`omnichat data`."""

    action: str = "validate"  # validate | stats | push
    path: str = MISSING  # corpus folder or Parquet export
    verify: str = "fast"  # validate: fast | full
    show: int = 5  # validate: offenders told of each check
    json: bool = False  # validate, stats: for programs
    repo: str | None = None  # push: ORGANISATION/NAME
    private: bool = True  # push
    to: str | None = None  # push: a folder in place of the hub

    def __post_init__(self) -> None:
        if self.action not in DATA_ACTIONS:
            raise one_of("action", self.action, DATA_ACTIONS)
        if self.verify not in LEVELS:
            raise one_of("verify", self.verify, LEVELS)
        if self.show < 0:
            raise UserError(f"show must be at least 0, got {self.show}")
        own = {"repo": "push", "to": "push"}
        for name, action in own.items():
            if getattr(self, name) is not None and self.action != action:
                raise UserError(f"{name} belongs to the action {action}, but the action is {self.action}")


@dataclass(kw_only=True, slots=True)
class BrowseRun(BrowseConfig):
    """`omnichat browse`."""

    data: str = MISSING  # corpus folder or Parquet export


@dataclass(kw_only=True, slots=True)
class WebRun(TalkConfig):
    """`omnichat web`."""

    run: str | None = None  # run folder, exported folder or hub id that is talked to first
    runs: str | None = "runs"  # folder of run folders that can be chosen; null = only run
    checkpoint: str = "last"  # of a run: last | best | step-NNNNNN
    device: str = "auto"
    precision: str = "auto"  # auto (as trained) | fp32 | bf16
    recogniser: str | None = None  # Whisper weights that hear the words for models that read them
    examples: str | None = None  # corpus whose dialogues can be had with a model
    voice: Any = None  # part; null = replies are not spoken

    def __post_init__(self) -> None:
        TalkConfig.__post_init__(self)
        check_precision(self.precision)
        if self.run is None and self.runs is None:
            raise UserError("run and runs are both null: name a model, or a folder of runs")


@dataclass(kw_only=True, slots=True)
class SynthesizeRun(SynthesisConfig):
    """`omnichat synthesize`."""

    topics: Any = None  # part
    events: Any = None  # part
    music: Any = None  # part
    writer: Any = None  # part
    voice: Any = None  # part
    checks: Any = None  # part
    engine: Any = None  # part


@dataclass(kw_only=True, slots=True)
class PrepareRun(PrepareConfig):
    """`omnichat prepare`."""

    source: Any = None  # part: a reader
    path: str = MISSING  # of the corpus as it was released
    stand_in: StandInConfig | None = None  # make a stand-in for DailyTalk at `path` first
    voice: Any = None  # part: speaks the stand-in
    asr: Any = None  # part: a recogniser, whose words are kept beside the corpus's own


SCHEMAS: dict[str, type] = {
    "train": TrainRun,
    "cache": CacheRun,
    "data": DataRun,
    "browse": BrowseRun,
    "web": WebRun,
    "bench": BenchRun,
    "inspect": InspectRun,
    "evaluate": EvaluateRun,
    "score": ScoreRun,
    "judge": JudgeRun,
    "speak": SpeakRun,
    "baseline": BaselineRun,
    "chat": ChatRun,
    "serve": ServeRun,
    "export": ExportRun,
    "report": ReportRun,
    "runs": RunsRun,
    "lr-find": LrFindRun,
    "synthesize": SynthesizeRun,
    "prepare": PrepareRun,
}


def config_folder() -> Path:
    """Where the YAML files are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def typed(tree: Any, schema: type[T]) -> T:
    """Turn a composed tree into objects; unknown keys (also `+key`), wrong types and bad values raise UserError."""
    try:
        # Hydra composes plain values and knows no types: a schema of its own would let `+key=value` past, and could
        # not take a new entry of a mapping piece by piece (`+mixture.sources.mine.path=...`).
        plain = OmegaConf.to_container(tree, resolve=True)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(explain(error, _field_names(schema))) from None


def to_plain(config: Any) -> dict[str, Any]:
    """A verb's config object as nested plain values, for config.yaml and for checkpoints."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def explain(error: Exception, keys_below: Callable[[str], list[str]]) -> str:
    """One line for an OmegaConf or Hydra error.

    Args:
        error: what was raised.
        keys_below: the valid keys below a dotted prefix ("" = top), in full; none if it is no mapping.
    """
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines()]
    first = next(filter(None, lines), "invalid config")
    if "hydra/launcher/submitit" in text or "locating target 'hydra_plugins" in text:
        return "this hydra/launcher needs a package that is not installed: pip install omnichat[launchers]"
    if missing := re.search(r"Could not find '([\w/]+)/([^'/]+)'", text):
        group, name = missing.groups()
        folder = config_folder() / group
        return str(one_of(group, name, sorted(path.stem for path in folder.glob("*.yaml"))))
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is no override: write key=value, quoted if the value holds any of , = [ ] {{ }}"
    match = re.search(r"full_key: (\S+)", text)
    if match is None:
        return first
    key = match.group(1)
    if re.search(r"Key '.*' (is not in struct|not in )", text):
        prefix = key.rpartition(".")[0]
        if prefix in OPEN and key.rpartition(".")[2].isdigit():  # Hydra's dotted keys are text, never numbers
            return f"{key} cannot be set by itself: write {prefix}={{{key.rpartition('.')[2]}: ...}}"
        if prefix in OPEN:
            return f"{key} is new: add it with a plus sign, +{key}...=..."
        return str(one_of("config key", key, keys_below(prefix)))
    if "missing mandatory value" in text.lower():
        return f"{key} is missing: give it as {key}=..."
    return f"{key}: {first}"


def composed_keys(verb: str, overrides: list[str]) -> Callable[[str], list[str]]:
    """For `explain`: the keys of the config as it is composed without the overrides that set single values."""

    def keys_below(prefix: str) -> list[str]:
        groups = [o for o in overrides if re.match(r"[\w/@]+=[\w/]+$", o) and "." not in o.partition("=")[0]]
        tree: Any = {}
        for chosen in (groups, []):
            try:
                GlobalHydra.instance().clear()
                with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
                    tree = compose(verb, overrides=chosen)
                break
            except (HydraException, OmegaConfBaseException):
                continue
        node = OmegaConf.select(tree, prefix) if prefix else tree
        dotted = f"{prefix}." if prefix else ""
        return [f"{dotted}{key}" for key in node if key != "_target_"] if OmegaConf.is_dict(node) else []

    return keys_below


def _field_names(schema: type) -> Callable[[str], list[str]]:
    """For `explain`: the fields of a dataclass and of the dataclasses in it."""

    def keys_below(prefix: str) -> list[str]:
        hint: Any = schema
        for name in prefix.split(".") if prefix else ():
            hint = inner(hint, name)
        dotted = f"{prefix}." if prefix else ""
        return [f"{dotted}{entry.name}" for entry in fields(hint)] if is_dataclass(hint) else []

    def inner(hint: Any, name: str) -> Any:
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]  # every entry has the mapping's value type, whatever its name
        elif is_dataclass(hint):
            hint = get_type_hints(hint).get(name)
        optional = type(None) in get_args(hint)
        return next((arg for arg in get_args(hint) if is_dataclass(arg)), hint) if optional else hint

    return keys_below
