"""From a checked config to the objects of a run: corpora, experts, features, chat format, model.

Everything is built before the first step, so that a bad name or path fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from omnichat.config import TrainRun
from omnichat.data.collate import Features
from omnichat.data.mixture import Mixture, MixtureConfig, MixtureSource
from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.subset import limited
from omnichat.encoders.base import AudioEncoder
from omnichat.fusion.base import Fusion
from omnichat.fusion.budget import fit_budget, parse_budget
from omnichat.model.llm import check_path, load_llm, weights_fingerprint
from omnichat.model.omnichat import OmniChat
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS
from omnichat.text.chat import ChatFormat
from omnichat.training.data import Source, TrainingData
from omnichat.training.features import CacheConfig, ExpertFeatures, fill_missing, leave_out_bad, open_caches, recordings
from omnichat.training.processes import LaunchConfig
from omnichat.training.settings import resolve_precision
from omnichat.training.speed import check_speed
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part, check_part, part_class
from omnichat.utils.seeding import seed_everything

log = get_logger(__name__)


@dataclass(slots=True)
class Assembly:
    """A run's parts."""

    sources: list[Source]
    chat: ChatFormat
    model: OmniChat
    features: Features | None
    expert_fingerprints: dict[str, str]
    expert_descriptions: dict[str, str]
    llm_fingerprint: str


def checked_sources(config: TrainRun) -> list[Source]:
    """Make every check that needs nothing large, and return the corpora. Raises UserError."""
    check_parts(config)
    check_path(config.llm)
    check_speed(config.trainer.speed, config.llm, resolve_precision(config.trainer.precision))
    return load_sources(config.mixture, config.cache)


def assemble(config: TrainRun, sources: list[Source], with_features: bool = True) -> Assembly:
    """Build all parts of a run; `with_features` also fills the feature cache where recordings are missing from it.

    `sources` come from `checked_sources`, so that cheap errors are met before anything large is loaded.
    """
    hears = config.chat.hears
    experts = build_experts(config.experts) if hears else {}
    dtype = torch.bfloat16 if resolve_precision(config.trainer.precision) == "bf16" else torch.float32
    llm, tokenizer = load_llm(config.llm, dtype, config.seed)
    fusion = build_fusion(config, experts, llm) if hears else None
    slots = fusion.slots if fusion is not None else None
    chat = ChatFormat(tokenizer, config.chat, slots, teacher=config.trainer.loss.distill_weight > 0)
    model = OmniChat(llm, fusion, label_ids(tokenizer))
    if config.loader.pack and not model.keeps_packed_apart():
        raise UserError(f"loader.pack: in {config.llm.path!r} packed dialogues see each other; set it to 0")
    features: ExpertFeatures | None = None
    if hears and with_features:
        caches = open_caches(experts, config.cache)
        builders = expert_builders(config.experts)
        sources = fill_missing(experts, caches, sources, config.chat, config.cache, builders)
        features = ExpertFeatures(experts, caches, config.cache)
    return Assembly(
        sources=sources,
        chat=chat,
        model=model,
        features=features,
        expert_fingerprints={name: expert.fingerprint() for name, expert in experts.items()},
        expert_descriptions={name: expert.description for name, expert in experts.items()},
        llm_fingerprint=weights_fingerprint(llm),
    )


def check_parts(config: TrainRun) -> None:
    """Check every part's settings against its class, without building one."""
    if not config.chat.hears:
        return
    if not config.experts:
        raise UserError("experts is empty, but chat.input needs to hear: choose experts=user, or chat.input=text")
    for name, node in config.experts.items():
        check_part(node, f"experts.{name}", AudioEncoder)
    node, budget = _without_budget(config.fusion)
    check_part(node, "fusion", Fusion, ("specs", "out_width", "out_rms"))
    if budget is not None:
        parse_budget(budget)


def one_process(launch: LaunchConfig, verb: str) -> None:
    """Raise UserError for settings of `launch` that a verb which runs in one process would ignore."""
    plain = LaunchConfig()
    for name in ("processes", "nodes", "strategy", "cpu", "offload_params"):
        if (value := getattr(launch, name)) != (right := getattr(plain, name)):
            raise UserError(f"launch.{name}={value}: omnichat {verb} runs in one process; leave it at {right}")


def load_sources(mixture: MixtureConfig, cache: CacheConfig) -> list[Source]:
    """Load and check every corpus of a mixture, without the dialogues whose files are bad if `cache` says so.

    Raises UserError if there is none.
    """
    if not mixture.sources:
        raise UserError("mixture.sources is empty: name a corpus, e.g. +mixture.sources.mine.path=corpora/mine")
    quarantine = cache.quarantine()
    on_bad = quarantine.take if quarantine is not None else None
    sources = []
    for name, source in mixture.sources.items():
        corpus = open_corpus(source.path, on_bad_audio=on_bad)
        sources.append(Source(name, limited(corpus, source.limit, f"mixture.sources.{name}.limit"), source.weight))
    return leave_out_bad(sources, quarantine, recordings(sources) if quarantine is not None else ())


def check_mixture(sources: list[Source], config: TrainRun) -> None:
    """Raise UserError, before anything large is loaded, for a source that alpha draws from and that has no training
    dialogue or nothing of the mixture's unit, and for a pass over what is not there."""
    mixture = config.mixture
    mixed = []
    for source in sources:
        has_unit = mixture.unit != "second" or source.corpus.summary("train")["recordings"] > 0
        size = source.corpus.count("train")
        mixed.append(MixtureSource(source.name, source.kind, size, source.weight, float(has_unit)))
    knots = [(int(step), alpha) for step, alpha in mixture.schedule]
    dealt = Mixture(mixed, mixture.alpha, config.seed, knots=knots, unit=mixture.unit)
    if mixture.one_pass_of is not None:
        dealt.members(mixture.one_pass_of)
        if not knots:  # else draws a step must be known before a pass is
            dealt.pass_length(mixture.one_pass_of)


def training_data(config: TrainRun, parts: Assembly) -> TrainingData:
    """The stream of training batches of a run."""
    return TrainingData(
        parts.sources,
        config.mixture,
        parts.chat,
        config.loader,
        parts.features,
        config.seed,
        config.trainer.micro_batches,
    )


def calibrate(config: TrainRun, parts: Assembly, data: TrainingData) -> None:
    """Set a fresh fusion's standardisation from the first recordings that the run will draw, if that is asked for."""
    if parts.model.fusion is not None and config.trainer.calibration_clips > 0:
        parts.model.fusion.calibrate(data.calibration_streams(config.trainer.calibration_clips))


def build_experts(nodes: dict[str, Any]) -> dict[str, AudioEncoder]:
    """Build the experts, in the order of the config."""
    if not nodes:
        raise UserError("experts is empty: choose one of the files in configs/experts, e.g. experts=user")
    for name, node in nodes.items():  # all of them before the first is loaded
        check_part(node, f"experts.{name}", AudioEncoder)
    return {name: build_part(node, f"experts.{name}", AudioEncoder) for name, node in nodes.items()}


def expert_builders(nodes: dict[str, Any]) -> dict[str, Callable[[], AudioEncoder]]:
    """Expert -> function that builds it in another process."""
    return {name: partial(build_part, node, f"experts.{name}", AudioEncoder) for name, node in nodes.items()}


def build_fusion(config: TrainRun, experts: dict[str, AudioEncoder], llm: Any) -> Fusion:
    """Build the fusion for these experts, its output as loud as the LLM's own embeddings."""
    return build_settled(config, *settled_fusion(config, experts, llm))


def build_settled(config: TrainRun, node: dict[str, Any], given: dict[str, Any]) -> Fusion:
    """Build what `settled_fusion` gave."""
    seed_everything(config.seed, "fusion")
    fusion = build_part(node, "fusion", Fusion, **given)
    log.info("fusion: %s, %.2fM parameters", type(fusion).__name__, sum(p.numel() for p in fusion.parameters()) / 1e6)
    return fusion


def settled_fusion(
    config: TrainRun, experts: dict[str, AudioEncoder], llm: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fusion's node with its sizes settled, and the arguments that come from the experts and the LLM.

    `fusion.budget` (parameters; null = the sizes as given) is met by the sizes that the class's `knobs` name.
    """
    embeddings = llm.get_input_embeddings().weight
    given = {
        "specs": {name: expert.spec for name, expert in experts.items()},
        "out_width": embeddings.shape[1],
        "out_rms": float(embeddings.float().square().mean().sqrt()),
    }
    node, budget = _without_budget(config.fusion)
    if budget is not None:
        check_part(node, "fusion", Fusion, tuple(given))
        settings = {name: value for name, value in node.items() if name != "_target_"}
        fitted = fit_budget(part_class(node, "fusion", Fusion), {**settings, **given}, budget)
        node = {"_target_": node["_target_"]} | {name: x for name, x in fitted.items() if name not in given}
    return node, given


def _without_budget(node: Any) -> tuple[Any, Any]:
    """The fusion's node without `budget`, which is no argument of its class, and the budget."""
    if not isinstance(node, Mapping):
        return node, None
    return {name: value for name, value in node.items() if name != "budget"}, node.get("budget")


def label_ids(tokenizer: Any) -> list[list[list[int]]]:
    """Token ids of every label of pitch, speed and emotion, as the word stands inside a sentence."""
    return [
        [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in labels]
        for labels in (PITCHES, SPEEDS, EMOTIONS)
    ]
