"""`omnichat bench`: how fast a training step is with every switch on, with each one off, and with all of them off.

Every variant trains on the same dialogues through the trainer's own pieces (batch plan, collate, stepper). Rounds are
interleaved (A B C A B C ...), so that a machine that slows down slows all of them; ratios are taken within a round.
The work is the supervised turns done, and not the tokens, of which a wasteful variant computes more for the same turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn

from omnichat.data.batching import BatchPlan, LoaderConfig
from omnichat.data.collate import Features, Item, collate
from omnichat.data.mixture import MixtureConfig
from omnichat.model.omnichat import OmniChat
from omnichat.schema import Dialogue
from omnichat.text.chat import ChatFormat
from omnichat.training.bench_meters import PeakMemory, finish
from omnichat.training.bench_sets import (
    ArrivalPlan,
    EachOnce,
    chained,
    make_items,
    player_of,
    spread_out,
    train_dialogues,
)
from omnichat.training.data import Source, TrainingData
from omnichat.training.settings import TrainerConfig
from omnichat.training.tracking import Tracker, TrackingConfig
from omnichat.training.trainer import Trainer
from omnichat.training.watch import StepFlops, batch_counts
from omnichat.utils.errors import UserError, one_of

EXPERTS = ("cached", "online", "online_short")
ORDERS = ("bucket", "arrival")
REFERENCE = "everything_on"


@dataclass(kw_only=True, slots=True)
class Variant:
    """One way to train; null = what the config says. The defaults are everything on."""

    one_pass: bool = True  # false: each reply is a sample of its own, after its whole history
    supervised_logits: bool = True  # false: logits at every position
    experts: str = "cached"  # cached | online (in the step, same features) | online_short (Whisper padded by 1 s only)
    order: str = "bucket"  # bucket (by length, under a token budget) | arrival (as drawn, padded to the longest)
    pack: int | None = None  # positions of a row that several dialogues share; 0 = a row each
    attention: str | None = None  # eager | sdpa | flash_attention_2
    precision: str | None = None  # bf16 | fp32
    frozen: str | None = None  # bfloat16 | float32: the frozen weights
    compile: bool | None = None
    checkpointing: bool | None = None
    offload: str | None = None  # none | activations
    turns: int | None = (
        None  # of the dialogues: null = bench.turns; 0 = the corpus's own, beside a reference of its own
    )

    def __post_init__(self) -> None:
        for name, choices in (("experts", EXPERTS), ("order", ORDERS)):
            if getattr(self, name) not in choices:
                raise one_of(f"bench.variants.*.{name}", getattr(self, name), choices)

    def model_key(self) -> tuple[Any, ...]:
        """Variants with equal keys share a model."""
        return (self.attention, self.precision, self.frozen, self.compile, self.checkpointing, self.offload)

    def applied(self, trainer: TrainerConfig) -> TrainerConfig:
        """The trainer's config with this variant's precision and switches."""
        switches = {name: getattr(self, name) for name in ("compile", "checkpointing", "offload")}
        speed = replace(trainer.speed, **{name: value for name, value in switches.items() if value is not None})
        return replace(trainer, precision=self.precision or trainer.precision, speed=speed)


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """What `omnichat bench` measures."""

    out: str = "bench"  # folder of bench.json and bench.png
    from_source: str | None = None  # of mixture.sources; null = the first
    replies: int = 8  # supervised turns of the set that every variant trains on, as near as whole dialogues come
    turns: int = 8  # of each dialogue, chained from the corpus's exchanges; 0 = the corpus's dialogues as they are
    rounds: int = 3  # of all variants in turn, after a warm-up
    variants: dict[str, Variant] = field(default_factory=dict)  # the first one is the reference
    growth_rounds: int = 1  # of each growth below
    growth_turns: list[int] = field(default_factory=lambda: [2, 4, 8, 16])  # turns a dialogue; empty = leave it out
    growth_batch_tokens: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048, 4096])
    growth_dialogues: list[int] = field(default_factory=lambda: [1000, 10_000, 100_000])  # manifest rows

    def __post_init__(self) -> None:
        for name, least in (("replies", 1), ("turns", 0), ("rounds", 1), ("growth_rounds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"bench.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("growth_turns", "growth_batch_tokens", "growth_dialogues"):
            if any(value < 1 for value in getattr(self, name)):
                raise UserError(f"bench.{name} must be positive numbers, got {getattr(self, name)}")
        for name, turns in (("turns", self.turns), *(("growth_turns", turns) for turns in self.growth_turns)):
            if turns % 2:
                raise UserError(f"bench.{name}: a chained dialogue has an even number of turns, got {turns}")


@dataclass(slots=True)
class Workload:
    """The batches of one variant: every item of the set once, in the order in which they are trained."""

    batches: list[list[Item]]
    batch_tokens: int

    @property
    def turns(self) -> int:
        """Supervised turns of a pass."""
        return sum(len(item.sequence.replies) for batch in self.batches for item in batch)


@dataclass(slots=True)
class Pass:
    """One pass of one variant over its workload.

    `tokens` are positions of sequences, `positions` also count padding; `squares` are squared lengths of sequences,
    `flops` what the model's mathematics needs (see `watch.StepFlops`), `peak_bytes` above what was there before.
    """

    seconds: float
    data_seconds: float
    turns: int
    tokens: int
    positions: int
    supervised_tokens: int
    flops: float
    peak_bytes: int | None


class Bench:
    """Builds variants and passes over their workloads.

    Args:
        source: whose dialogues are trained on.
        chat: how a dialogue becomes a sequence.
        features: name in EXPERTS -> features.
        model: variant -> a fresh model; called once for each `Variant.model_key`.
        trainer: of the config.
        loader: of the config.
        folder: for what a trainer writes.
        seed: of the order and of drop-out.
    """

    def __init__(
        self,
        source: Source,
        chat: ChatFormat,
        features: Mapping[str, Features | None],
        model: Callable[[Variant], OmniChat],
        trainer: TrainerConfig,
        loader: LoaderConfig,
        folder: Path,
        seed: int,
    ) -> None:
        self.source, self.chat, self.features, self.folder, self.seed = source, chat, features, folder, seed
        self.trainer, self.loader = trainer, loader
        if trainer.loss.distill_weight > 0:
            raise UserError("omnichat bench measures without a teacher: set trainer.loss.distill_weight=0")
        self._train = train_dialogues(source)
        self.warm: set[tuple[Any, ...]] = set()  # models, and experts in the step, that have run
        self._model = model
        self._rigs: dict[tuple[Any, ...], _Rig] = {}

    def dialogues(self, turns: int, replies: int) -> list[Dialogue]:
        """About `replies` supervised turns: chained dialogues of `turns` turns, or for 0 the corpus's own."""
        player = player_of(self.chat.config.target)
        if turns:
            return chained(self._train, turns, max(1, 2 * replies // turns), player)
        mean = sum(turn.speaker == player for dialogue in self._train for turn in dialogue.turns) / len(self._train)
        return spread_out(self._train, max(1, round(replies / max(1.0, mean))))

    def items(self, variant: Variant, dialogues: Sequence[Dialogue]) -> list[Item]:
        """The variant's samples of these dialogues."""
        items = make_items(self.source, dialogues, self.chat, variant.one_pass)
        if not items:
            raise UserError("the bench's dialogues have no reply to supervise")
        return items

    def workload(self, variant: Variant, dialogues: Sequence[Dialogue], batch_tokens: int | None = None) -> Workload:
        """The variant's batches of these dialogues. Raises UserError where one is longer than `batch_tokens`."""
        items = self.items(variant, dialogues)
        loader = replace(self.loader, pool=len(items), batch_tokens=batch_tokens or self.loader.batch_tokens)
        loader = replace(loader, pack=self.pack(variant, loader.batch_tokens))
        each_once: Any = EachOnce(self.source.name, len(items), self.seed)
        kind = ArrivalPlan if variant.order == "arrival" else BatchPlan

        def length(_: str, index: int) -> int:
            return items[index].sequence.positions

        plan = kind(each_once, length, loader, self.seed)
        return Workload([[items[draw.index] for draw in draws] for draws in plan.pool(0)], loader.batch_tokens)

    def pack(self, variant: Variant, batch_tokens: int) -> int:
        """`loader.pack` of a variant."""
        if variant.order == "arrival":
            return 0
        return min(self.loader.pack if variant.pack is None else variant.pack, batch_tokens)

    def rig(self, variant: Variant) -> _Rig:
        """The trainer of a variant, made at the first call, ready to step."""
        key = variant.model_key()
        if key not in self._rigs:
            twins = [rig.trainer.model for other, rig in self._rigs.items() if other[1:3] == key[1:3]]
            self._rigs[key] = _Rig(self._build(variant, twins))
        rig = self._rigs[key]
        rig.enter(variant)
        return rig

    def run(self, variant: Variant, load: Workload) -> Pass:
        """Train one pass. Raises UserError if a loss is not finite: its time would mean nothing."""
        rig, features = self.rig(variant), self.features[variant.experts]
        device = rig.trainer.accelerator.device
        memory, pack = PeakMemory(device), self.pack(variant, load.batch_tokens)
        data_seconds, counts = 0.0, torch.zeros(6, dtype=torch.float64, device=device)
        memory.start()
        finish(device)
        start = time.perf_counter()
        for items in load.batches:
            begin = time.perf_counter()
            batch = collate(items, features, pack=pack).to(device)
            data_seconds += time.perf_counter() - begin
            counts += batch_counts(batch)
            rig.step(batch)
        finish(device)
        seconds, peak = time.perf_counter() - start, memory.stop()
        tokens, positions, supervised, turns, _, squares = counts.tolist()
        assert turns == load.turns, "every variant does the same work"
        flops = rig.flops(tokens, supervised, squares)
        return Pass(seconds, data_seconds, int(turns), int(tokens), int(positions), int(supervised), flops, peak)

    def training_data(self, source: Source) -> TrainingData:
        """The trainer's own stream over one source."""
        alpha = 1.0 if source.kind == "real" else 0.0
        cached = self.features["cached"]
        return TrainingData([source], MixtureConfig(alpha=alpha), self.chat, self.loader, cached, self.seed)

    def _build(self, variant: Variant, twins: Sequence[nn.Module]) -> Trainer:
        model = self._model(variant)
        for twin in twins[:1]:  # frozen weights are there once, whatever is built around them
            frozen = {name: p for name, p in twin.named_parameters() if not p.requires_grad}
            for name, parameter in model.named_parameters():
                if name in frozen:
                    parameter.data = frozen[name].data
        config = replace(variant.applied(self.trainer), steps=10**9, micro_batches=1)
        data = self.training_data(self.source)
        tracker = Tracker(self.folder, TrackingConfig(wandb="disabled"), {})
        return Trainer(model, data, lambda: iter(()), config, self.folder, self.seed, {}, tracker)


class _Rig:
    """A trainer among several of one process."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.flops = StepFlops(trainer.model)
        self.taken = 0
        self._state = dict(AcceleratorState._shared_state)

    def enter(self, variant: Variant) -> None:
        """accelerate keeps precision and device once for the process: put this trainer's own back."""
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(self._state)
        self.trainer.model.all_logits = not variant.supervised_logits

    def step(self, batch: Any) -> dict[str, float]:
        """One optimiser step on one batch."""
        figures = self.trainer.stepper.take(self.taken, [batch])
        self.taken += 1
        if figures is None:
            raise UserError(f"bench: loss or gradient not finite on {', '.join(batch.dialogues)}")
        return figures


def measure(
    bench: Bench,
    runs: Mapping[str, tuple[Variant, Workload]],
    rounds: int,
    between: Callable[[], None] = lambda: None,
    on_pass: Callable[[str], None] = lambda _: None,
) -> dict[str, list[dict[str, Any]]]:
    """Interleaved rounds of all runs: name -> the passes, one a round.

    A model, or experts in the step, that have not run yet first take one batch to warm up.

    Args:
        between: called before every round; measures what the rounds are compared with.
        on_pass: called after every pass with its name.
    """
    for variant, load in runs.values():
        if (parts := (variant.model_key(), variant.experts)) not in bench.warm:
            bench.warm.add(parts)
            bench.run(variant, Workload(load.batches[:1], load.batch_tokens))
    passes: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for _ in range(rounds):
        between()
        for name, (variant, load) in runs.items():
            passes[name].append(asdict(bench.run(variant, load)))
            on_pass(name)
    return passes
