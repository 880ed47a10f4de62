"""Corpora -> sequences -> the endless stream of training batches, and the fixed batches of a dev or test split."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from omnichat.data.batching import BatchPlan, Draw, LoaderConfig, Place
from omnichat.data.collate import Batch, ClipKey, Features, Item, collate
from omnichat.data.mixture import Mixture, MixtureConfig, MixtureSource
from omnichat.data.units import MixtureCounter
from omnichat.encoders.base import collate_clips
from omnichat.schema import EncodedAudio
from omnichat.text.chat import IGNORE, NO_STYLE, ChatFormat, ChatSequence
from omnichat.training.items import HeldItems, Items, Source, load_items, make_item
from omnichat.utils.errors import UserError
from omnichat.utils.progress import progress

__all__ = ["Source", "TrainingData", "fixed_batches", "make_item", "split_items"]
CALIBRATION_BATCH = 16  # recordings collated at a time
FILLER = -1  # position of a draw that only fills up the last step
_COLUMNS = {"turn": "turns", "second": "seconds", "token": "positions"}  # of a unit, in the facts
_PACE_POOLS = 4  # first pools of the plan, by which a curriculum's steps become draws


def split_items(sources: Sequence[Source], chat: ChatFormat, split: str) -> dict[str, list[Item]]:
    """Items of a split by source, in the order of the manifests; all in memory, so for a dev or test split."""
    return {source.name: HeldItems(source, chat, split).items for source in sources}


class _Items(Dataset[Item | UserError]):
    """Items by draw. A user's mistake comes as a value: raised in a data worker, it would come with a stack trace."""

    def __init__(self, items: Mapping[str, Items]) -> None:
        self.items = items

    def __getitem__(self, draw: Draw) -> Item | UserError:
        try:
            item = self.items[draw.source][draw.index]
        except UserError as error:
            return UserError(str(error))  # not a class of its own, which may not travel between processes
        return item if draw.position != FILLER else replace(item, sequence=_unsupervised(item.sequence))


def _unsupervised(sequence: ChatSequence) -> ChatSequence:
    """The same sequence with nothing to learn from it."""
    return replace(
        sequence,
        labels=[IGNORE] * len(sequence),
        clips=[replace(clip, style=NO_STYLE) for clip in sequence.clips],
        replies=[],
        teacher=None if sequence.teacher is None else _unsupervised(sequence.teacher),
    )


@dataclass(slots=True)
class _Collate:
    features: Features | None
    pack: int

    def __call__(self, items: list[Item | UserError]) -> Batch | UserError:
        good: list[Item] = []
        for item in items:
            if isinstance(item, UserError):
                return item
            good.append(item)
        try:
            return collate(good, self.features, pack=self.pack)
        except UserError as error:
            return UserError(str(error))


@dataclass(slots=True)
class _BatchSampler:
    plan: BatchPlan
    place: Place
    rank: int
    world: int
    micro_batches: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for number, (draws, _) in enumerate(_whole_steps(self.plan, self.place, self.micro_batches)):
            if number % self.world == self.rank:
                yield draws


def _whole_steps(plan: BatchPlan, place: Place, micro_batches: int) -> Iterator[tuple[list[Draw], Place]]:
    """The plan's batches from the beginning of a step on, the last step of a plan that ends filled up.

    Every process must go through as many batches as the others. So no dialogue is left out and none is trained on
    twice: what fills up is a batch of one dialogue without any supervised position.
    """
    number, draws, after = 0, list[Draw](), place
    for draws, after in plan.batches(place):
        yield draws, after
        number += 1
    for _ in range(-number % micro_batches):
        yield [replace(draws[0], position=FILLER)], after


class TrainingData:
    """The training side of a mixture.

    Args:
        sources: corpora with weights.
        mixture: alpha, unit, schedule and budget.
        chat: how a dialogue becomes a sequence.
        loader: batch size and workers.
        features: what the experts heard, read from the cache or made online; None for a model of words.
        seed: of the order.
        micro_batches: that make a step, over all processes.

    Attributes:
        items: source -> its training sequences.
        kinds: source -> synthetic | real.
        plan: the batches.
        dialogues_per_step: by which the steps of a curriculum were turned into draws; None without one.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: MixtureConfig,
        chat: ChatFormat,
        loader: LoaderConfig,
        features: Features | None,
        seed: int,
        micro_batches: int = 1,
    ) -> None:
        index_dir = Path(mixture.index_dir).expanduser()
        self.items: dict[str, Items] = {s.name: load_items(s, chat, "train", index_dir) for s in sources}
        self._check_lengths(loader.batch_tokens)
        self.kinds = {source.name: source.kind for source in sources}
        self.unit, self.micro_batches = mixture.unit, micro_batches
        self.loader = loader
        self.features = features
        mixed = [MixtureSource(s.name, s.kind, len(self.items[s.name]), s.weight, self._mean(s.name)) for s in sources]
        self.dialogues_per_step: float | None = None
        knots: list[tuple[int, float]] = []
        if mixture.schedule:
            self.dialogues_per_step = self._pace(mixed, mixture.schedule, seed)
            knots = [(round(step * self.dialogues_per_step), alpha) for step, alpha in mixture.schedule]
        dealt = Mixture(mixed, mixture.alpha, seed, knots=knots, one_pass_of=mixture.one_pass_of, unit=mixture.unit)
        self.plan = BatchPlan(dealt, self._length, loader, seed)

    def steps(self, place: Place | None = None, done: int = 0) -> int:
        """Steps of the one pass that `mixture.one_pass_of` asks for, found by walking through the plan.

        Args:
            place: where the stream goes on; None = from its beginning.
            done: steps that were taken before; they count.
        """
        draws, place = self.plan.mixture.length, place or Place()
        assert draws is not None, "a plan without end has no number of steps"
        batches = 0
        with progress(max(0, draws - place.pool * self.loader.pool), "plan one pass", unit="dialogue") as bar:
            for batch, _ in self.plan.batches(place):
                batches += 1
                bar.update(len(batch))
        return done + math.ceil(batches / self.micro_batches)

    def amount(self, draw: Draw) -> float:
        """How much of the mixture's unit a draw brings."""
        if self.unit not in _COLUMNS:
            return 1.0
        return float(self.items[draw.source].facts[draw.index][_COLUMNS[self.unit]])

    def mixture_figures(self, counter: MixtureCounter) -> dict[str, Any]:
        """For the log: alpha as asked at the last draw, as realised in the unit, and the sources' effective epochs."""
        share, interval = counter.realised()
        last = max(0, sum(counter.drawn.values()) - 1)
        row = {"alpha_target": self.plan.mixture.alpha_at(last), "alpha_realised": share, "alpha_ci95": list(interval)}
        return row | {f"epochs_{name}": self.epochs(counter, name) for name in self.items}

    def epochs(self, counter: MixtureCounter, source: str) -> float:
        """How often a source's dialogues were drawn on average."""
        return counter.drawn.get(source, 0) / max(1, len(self.items[source]))

    def batches(self, place: Place, rank: int, world: int) -> Iterator[Batch]:
        """This rank's micro-batches from `place` on: every world-th of the stream.

        The iterator raises UserError for what a data worker could not read.
        """
        loader = DataLoader(
            _Items(self.items),
            batch_sampler=_BatchSampler(self.plan, place, rank, world, self.micro_batches),
            collate_fn=_Collate(self.features, self.loader.pack),
            num_workers=self.loader.workers,
            worker_init_fn=_init_worker,
            prefetch_factor=self.loader.prefetch if self.loader.workers else None,
            pin_memory=torch.cuda.is_available(),  # so that copies to the device do not wait, see Batch.to
            generator=torch.Generator().manual_seed(0),  # else its base seed is drawn from the global generator
        )
        return _raised(iter(loader))

    def calibration_streams(self, clips: int) -> list[dict[str, EncodedAudio]]:
        """What the experts heard in the first `clips` recordings (or a few more) that the run will draw."""
        assert self.features is not None, "a model of words has nothing to calibrate"
        keys: dict[str, ClipKey] = {}
        for draws in self.plan.pool(0):
            for draw in draws:
                keys |= {key.sha256: key for key in self.items[draw.source][draw.index].keys}
            if len(keys) >= clips:
                break
        chosen, batches = list(keys.values()), []
        for start in range(0, len(chosen), CALIBRATION_BATCH):
            heard = self.features(chosen[start : start + CALIBRATION_BATCH])
            batches.append({name: collate_clips(list(encoded)) for name, encoded in heard.items()})
        return batches

    def places(self, place: Place) -> Iterator[tuple[list[Draw], Place]]:
        """The same stream without the data: the draws of each micro-batch and the place after it."""
        for draws, after in _whole_steps(self.plan, place, self.micro_batches):
            yield [draw for draw in draws if draw.position != FILLER], after

    def _check_lengths(self, batch_tokens: int) -> None:
        """Now, and not when the stream reaches it: a dialogue that fits no batch."""
        for items in self.items.values():
            longest = int(items.totals["longest"])
            if longest >= 0 and (positions := int(items.facts[longest]["positions"])) > batch_tokens:
                item = items[longest]
                raise UserError(
                    f"loader.batch_tokens={batch_tokens} is less than the {positions} positions of dialogue "
                    f"{item.dialogue!r} of source {item.source!r}; raise it"
                )

    def _mean(self, source: str) -> float:
        """Mean amount of the unit in a training sequence."""
        items = self.items[source]
        return items.totals[_COLUMNS[self.unit]] / max(1, len(items)) if self.unit in _COLUMNS else 1.0

    def _pace(self, mixed: list[MixtureSource], schedule: Sequence[Sequence[float]], seed: int) -> float:
        """Dialogues a step, by the first pools of a plan at the curriculum's mean alpha."""
        areas = [(b[0] - a[0], (a[1] + b[1]) / 2) for a, b in itertools.pairwise(schedule)]
        width = sum(width for width, _ in areas)
        alpha = sum(width * mean for width, mean in areas) / width if width else schedule[0][1]
        plan = BatchPlan(Mixture(mixed, alpha, seed, unit=self.unit), self._length, self.loader, seed)
        pools = [plan.pool(number) for number in range(_PACE_POOLS)]
        return self.micro_batches * _PACE_POOLS * self.loader.pool / sum(len(pool) for pool in pools)

    def _length(self, source: str, index: int) -> int:
        return int(self.items[source].facts[index]["positions"])


def _raised(batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
    """The batches; the first error among them is raised here, in the main process."""
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def fixed_batches(items: Sequence[Item], batch_tokens: int) -> list[list[Item]]:
    """Pack items by length under a token budget; the same items give the same batches."""
    batches: list[list[Item]] = [[]]
    for item in sorted(items, key=lambda i: (len(i.sequence), i.dialogue, i.source)):
        if batches[-1] and len(item.sequence) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(item)
    return [batch for batch in batches if batch]


def _init_worker(worker: int) -> None:
    """A group signal (Ctrl-C, a scheduler's SIGTERM) is the trainer's to answer, and workers need one thread."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork of its threads would hang; it says so at every start
    torch.set_num_threads(1)
