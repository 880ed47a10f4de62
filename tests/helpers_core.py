"""A tiny but whole OmniChat for tests: corpora of tones, features made of a hash, a real Mix-Former, a random LLM."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnichat.audio.io import save_audio
from omnichat.data.batching import LoaderConfig
from omnichat.data.collate import Batch, ClipKey, Item, collate
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.mixture import MixtureConfig
from omnichat.encoders.base import EncodedClip, StreamSpec
from omnichat.fusion.mix_former import MixFormer
from omnichat.model.llm import LLMConfig, LoraConfig, load_llm
from omnichat.model.omnichat import OmniChat
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Dialogue, Style, Turn
from omnichat.text.chat import ChatConfig, ChatFormat
from omnichat.training.data import Source, TrainingData, fixed_batches, split_items
from omnichat.training.processes import LaunchConfig
from omnichat.training.settings import TrainerConfig
from omnichat.training.tracking import Tracker, TrackingConfig
from omnichat.training.trainer import Trainer
from omnichat.training.watch import CLOCKS, WatchConfig
from omnichat.utils.files import read_jsonl
from omnichat.utils.seeding import seed_everything

torch.set_num_threads(1)
RATE = 8000
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SPECS = {"one": StreamSpec(8, 1, 20.0), "two": StreamSpec(6, 2, 10.0)}  # the second keeps two layers for a mix
_WORDS = ["I", "you", "we", "a", "train", "rain", "music", "dog", "never", "heard", "think", "call", "today", "home"]


class HashFeatures:
    """What the experts of SPECS "heard": noise that the hash of a recording sets, at each expert's own rate."""

    def __init__(self, poison: str | None = None) -> None:
        self.poison = poison  # hash of a recording whose features are not finite; * = of all

    def __call__(self, keys: Sequence[ClipKey]) -> dict[str, list[EncodedClip]]:
        return {name: [self._clip(name, spec, key.sha256) for key in keys] for name, spec in SPECS.items()}

    def _clip(self, name: str, spec: StreamSpec, sha256: str) -> EncodedClip:
        generator = torch.Generator().manual_seed(int(sha256[:12], 16) + len(name))
        frames = 3 + int(sha256[12:14], 16) % 20
        shape = (spec.layers, frames, spec.width) if spec.layers > 1 else (frames, spec.width)
        x = torch.randn(*shape, generator=generator)
        if self.poison in (sha256, "*"):
            x = x * torch.inf
        return EncodedClip(x, (torch.arange(frames) + 0.5) / spec.rate_hz)


def make_corpus(folder: Path, *, kind: str = "synthetic", count: int = 6, seed: int = 0, dev: int = 0) -> Corpus:
    """A corpus of `count` training and `dev` dev dialogues; every third one has a variant in another style."""
    rng = random.Random(f"{seed} {kind}")
    dialogues: list[Dialogue] = []
    number = 0
    while number < count + dev:
        split = "train" if number < count else "dev"
        turns = [_turn(folder, rng, f"{number}-{i}", "AB"[i % 2]) for i in range(rng.choice([2, 4, 6]))]
        name = f"{folder.name}-{number}"
        heard = replace(turns[-2], variant_of=name)
        dialogues.append(_dialogue(f"{name}-v0", folder.name, kind, split, [*turns[:-2], heard, turns[-1]]))
        number += 1
        if number % 3 == 0 and number < count:
            other = _turn(folder, rng, f"{number}-heard", "A", heard.text)
            reply = _turn(folder, rng, f"{number}-reply", "B")
            other = replace(other, variant_of=name)
            dialogues.append(_dialogue(f"{name}-v1", folder.name, kind, split, [*turns[:-2], other, reply]))
            number += 1
    finish_corpus(
        folder, dialogues, name=folder.name, kind=kind, seed=seed, checks={}, licences=[], notes=[], versions={}
    )
    return Corpus.load(folder)


def _dialogue(name: str, source: str, kind: str, split: str, turns: Sequence[Turn]) -> Dialogue:
    scenario = "daily" if kind == "real" else "emotion"
    return Dialogue(id=name, source=source, kind=kind, scenario=scenario, split=split, turns=tuple(turns))


def _turn(folder: Path, rng: random.Random, name: str, speaker: str, text: str | None = None) -> Turn:
    seconds = rng.randint(3, 20) / 10
    wave = 0.3 * np.sin(2 * np.pi * rng.randint(100, 900) * np.arange(round(seconds * RATE)) / RATE)
    save_audio(folder / "audio" / f"{name}.flac", wave, RATE)
    style = Style(rng.choice(PITCHES), rng.choice(SPEEDS), rng.choice(EMOTIONS))
    words = text or " ".join(rng.choice(_WORDS) for _ in range(rng.randint(2, 9))) + "."
    asr = words.lower().rstrip(".")
    return Turn(speaker, words, style, f"audio/{name}.flac", RATE, len(wave) / RATE, asr_text=asr)


@dataclass(slots=True)
class Kit:
    """A model with all that feeds it."""

    sources: list[Source]
    chat: ChatFormat
    model: OmniChat
    features: HashFeatures | None

    def items(self, split: str = "train") -> list[Item]:
        """All sequences of a split."""
        return [item for items in split_items(self.sources, self.chat, split).values() for item in items]

    def batch(self, items: Sequence[Item], pad_left: bool = False) -> Batch:
        """A batch with this kit's features."""
        return collate(items, self.features, pad_left)


def make_kit(
    corpora: Sequence[Corpus], chat: ChatConfig | None = None, *, seed: int = 0, dropout: float = 0.0, queries: int = 1
) -> Kit:
    """Build a float32 model that is the same whenever the arguments are; `dropout` in fusion and LoRA."""
    config = chat or ChatConfig()
    lora = LoraConfig(rank=4, dropout=dropout)
    llm, tokenizer = load_llm(LLMConfig(random_size=TINY, lora=lora), torch.float32, seed)
    fusion = None
    if config.hears:
        seed_everything(seed, "fusion")
        fusion = MixFormer(SPECS, TINY["hidden_size"], queries=queries, width=16, layers=1, heads=2, dropout=dropout)
    format_ = ChatFormat(tokenizer, config, fusion.slots if fusion is not None else None)
    sources = [Source(corpus.name, corpus, 1.0) for corpus in corpora]
    return Kit(sources, format_, OmniChat(llm, fusion), HashFeatures() if config.hears else None)


def wake_lora(model: OmniChat, seed: int = 7) -> None:
    """Give LoRA's B matrices, which start at zero, values: so that what goes through them can be seen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)


@dataclass(slots=True)
class Training:
    """How `train_kit` trains: everything that a test varies."""

    steps: int = 6
    seed: int = 0
    alpha: float = 0.5
    micro_batches: int = 1
    workers: int = 0
    batch_tokens: int = 500
    pool: int = 8
    pack: int = 0
    dropout: float = 0.1
    precision: str = "fp32"
    dev_every: int = 2
    checkpoint_every: int = 100
    keep_last: int = 2
    max_skips: int = 5
    one_pass_of: str | None = None  # then `steps` is of no account
    extra: dict[str, Any] = field(default_factory=dict)  # more of the TrainerConfig
    identity: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-3, "data": {"a": "f1"}, "experts": {"one": "e"}})


def make_trainer(
    run: Path, corpora: Sequence[Corpus], how: Training, poison: str | None = None, launch: LaunchConfig | None = None
) -> Trainer:
    """A trainer on a fresh tiny model, ready to fit or to resume."""
    kit = make_kit(corpora, seed=how.seed, dropout=how.dropout)
    kit.chat.teacher = "loss" in how.extra and how.extra["loss"].distill_weight > 0
    features = HashFeatures(poison)
    loader = LoaderConfig(batch_tokens=how.batch_tokens, pool=how.pool, pack=how.pack, workers=how.workers)
    mixture = MixtureConfig(alpha=how.alpha, one_pass_of=how.one_pass_of)
    data = TrainingData(kit.sources, mixture, kit.chat, loader, features, how.seed, how.micro_batches)
    dev = kit.items("dev")

    def dev_batches() -> Iterator[Batch]:
        for items in fixed_batches(dev, how.batch_tokens):
            yield collate(items, features)

    how.extra.setdefault("watch", WatchConfig(peak_tflops=0.1))  # measuring it would take the time of a step
    config = TrainerConfig(
        steps=how.steps if how.one_pass_of is None else data.steps(),
        micro_batches=how.micro_batches,
        precision=how.precision,
        dev_every=how.dev_every,
        checkpoint_every=how.checkpoint_every,
        keep_last=how.keep_last,
        max_skips=how.max_skips,
        **how.extra,
    )
    tracker = Tracker(run, TrackingConfig(wandb="disabled"), {})
    return Trainer(kit.model, data, dev_batches, config, run, how.seed, dict(how.identity), tracker, launch)


def rows(run: Path, event: str) -> list[dict[str, Any]]:
    """Rows of one event in log.jsonl, as written."""
    return [row for row in read_jsonl(run / "log.jsonl") if row["event"] == event]


def step_figures(run: Path, event: str = "step") -> dict[int, tuple[Any, ...]]:
    """Step -> every figure that the run's mathematics sets; of repeated steps the last row counts."""
    clocks = ("event", *CLOCKS)
    return {
        row["step"]: tuple((k, v) for k, v in sorted(row.items()) if k not in clocks and not isinstance(v, list))
        for row in rows(run, event)
    }
