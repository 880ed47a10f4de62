"""Corpora -> sequences -> the endless stream of training batches, and the fixed batches of a dev or test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from omnichat.data.batching import BatchPlan, Draw, LoaderConfig, Place
from omnichat.data.collate import Batch, ClipKey, Features, Item, collate
from omnichat.data.corpus import Corpus
from omnichat.data.mixture import Mixture, MixtureConfig, MixtureSource
from omnichat.encoders.base import collate_clips
from omnichat.schema import Dialogue, EncodedAudio
from omnichat.text.chat import ChatFormat, ChatSequence
from omnichat.utils.errors import UserError

CALIBRATION_BATCH = 16  # recordings collated at a time


@dataclass(slots=True)
class Source:
    """One corpus with its share of the mixture."""

    name: str
    corpus: Corpus
    weight: float

    @property
    def kind(self) -> str:
        """synthetic or real: what the corpus itself says."""
        return self.corpus.dialogues[0].kind


def _positions(item: Item) -> int:
    return item.sequence.positions


def make_item(source: Source, dialogue: Dialogue, sequence: ChatSequence) -> Item:
    """A sequence with the files of its clips."""
    keys = []
    for clip in sequence.clips:
        turn = dialogue.turns[clip.turn]
        if turn.sha256 is None:
            raise UserError(f"{source.corpus.root}: dialogue {dialogue.id!r} turn {clip.turn} lacks sha256")
        keys.append(ClipKey(turn.sha256, source.corpus.path_of(turn)))
    return Item(dialogue.id, source.name, sequence, tuple(keys))


def split_items(sources: Sequence[Source], chat: ChatFormat, split: str) -> dict[str, list[Item]]:
    """Items of a split by source, in the order of the manifests."""
    return {
        source.name: [
            make_item(source, dialogue, sequence)
            for dialogue in source.corpus.dialogues
            if dialogue.split == split
            for sequence in chat.sequences(dialogue)
        ]
        for source in sources
    }


class _Items(Dataset[Item]):
    def __init__(self, items: dict[str, list[Item]]) -> None:
        self.items = items

    def __getitem__(self, draw: Draw) -> Item:
        return self.items[draw.source][draw.index]


@dataclass(slots=True)
class _Collate:
    features: Features | None
    pack: int

    def __call__(self, items: list[Item]) -> Batch:
        return collate(items, self.features, pack=self.pack)


@dataclass(slots=True)
class _BatchSampler:
    plan: BatchPlan
    place: Place
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for number, (draws, _) in enumerate(self.plan.batches(self.place)):
            if number % self.world == self.rank:
                yield draws


class TrainingData:
    """The training side of a mixture.

    Args:
        sources: corpora with weights.
        mixture: alpha and unit.
        chat: how a dialogue becomes a sequence.
        loader: batch size and workers.
        features: what the experts heard, read from the cache or made online; None for a model of words.
        seed: of the order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: MixtureConfig,
        chat: ChatFormat,
        loader: LoaderConfig,
        features: Features | None,
        seed: int,
    ) -> None:
        self.items = split_items(sources, chat, "train")
        self._check_lengths(loader.batch_tokens)
        self.kinds = {source.name: source.kind for source in sources}
        mixed = [MixtureSource(s.name, s.kind, len(self.items[s.name]), s.weight) for s in sources]
        self.plan = BatchPlan(Mixture(mixed, mixture.alpha, seed), self._length, loader, seed)
        self.loader = loader
        self.features = features

    def batches(self, place: Place, rank: int, world: int) -> Iterator[Batch]:
        """This rank's micro-batches from `place` on: every world-th of the stream."""
        loader = DataLoader(
            _Items(self.items),
            batch_sampler=_BatchSampler(self.plan, place, rank, world),
            collate_fn=_Collate(self.features, self.loader.pack),
            num_workers=self.loader.workers,
            worker_init_fn=_init_worker,
            prefetch_factor=self.loader.prefetch if self.loader.workers else None,
            pin_memory=torch.cuda.is_available(),  # so that copies to the device do not wait, see Batch.to
            generator=torch.Generator().manual_seed(0),  # else its base seed is drawn from the global generator
        )
        return iter(loader)

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
        return self.plan.batches(place)

    def _check_lengths(self, batch_tokens: int) -> None:
        """Now, and not when the stream reaches it: a dialogue that fits no batch."""
        longest = max((item for items in self.items.values() for item in items), key=_positions, default=None)
        if longest is not None and _positions(longest) > batch_tokens:
            raise UserError(
                f"loader.batch_tokens={batch_tokens} is less than the {_positions(longest)} positions of dialogue "
                f"{longest.dialogue!r} of source {longest.source!r}; raise it"
            )

    def _length(self, source: str, index: int) -> int:
        return _positions(self.items[source][index])


def fixed_batches(items: Sequence[Item], batch_tokens: int) -> list[list[Item]]:
    """Pack items by length under a token budget; the same items give the same batches."""
    batches: list[list[Item]] = [[]]
    for item in sorted(items, key=lambda i: (len(i.sequence), i.dialogue)):
        if batches[-1] and len(item.sequence) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(item)
    return [batch for batch in batches if batch]


def _init_worker(worker: int) -> None:
    """A group signal (Ctrl-C, a scheduler's SIGTERM) is the trainer's to answer, and workers need one thread."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
