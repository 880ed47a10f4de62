"""What the bench trains on: sets of dialogues of a chosen length, and the ways in which others would feed them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omnichat.data.batching import BatchPlan, Draw, LoaderConfig
from omnichat.data.cache_fill import heard_by
from omnichat.data.collate import ClipKey, Item
from omnichat.data.packing import pack_rows
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder, EncodedClip
from omnichat.schema import SPEAKERS, Dialogue, Turn
from omnichat.text.chat import IGNORE, ChatFormat, ChatSequence, Reply
from omnichat.training.data import Source, make_item
from omnichat.utils.errors import UserError
from omnichat.utils.seeding import numpy_rng

LOOKED_AT = 5000  # training dialogues of a corpus that are read at most


def train_dialogues(source: Source) -> list[Dialogue]:
    """The source's training dialogues, the first LOOKED_AT of them. Raises UserError where there are none."""
    found = list(itertools.islice(source.corpus.iterate("train"), LOOKED_AT))
    if not found:
        raise UserError(f"{source.corpus.root}: no training dialogues to measure with")
    return found


def spread_out(dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """`count` of the dialogues, evenly spaced; all of them where there are fewer."""
    return [dialogues[i * len(dialogues) // count] for i in range(count)] if count < len(dialogues) else list(dialogues)


def chained(dialogues: Sequence[Dialogue], turns: int, count: int, player: str) -> list[Dialogue]:
    """`count` dialogues of exactly `turns` turns, made of the exchanges of the given ones, in their order.

    An exchange is a recorded turn of the other speaker and the reply of `player` that follows it.

    Raises:
        UserError: an odd or too small number of turns, or a corpus without a single exchange.
    """
    if turns < 2 or turns % 2:
        raise UserError(f"bench: a chained dialogue has an even number of turns, at least 2; got {turns}")
    exchanges: list[tuple[Dialogue, Turn, Turn]] = []
    for dialogue in dialogues:
        pairs = itertools.pairwise(dialogue.turns)
        exchanges += [(dialogue, a, b) for a, b in pairs if a.speaker != player == b.speaker and a.audio]
    if not exchanges:
        raise UserError(f"the bench's corpus has no training dialogue in which {player} answers a recorded turn")
    made = []
    for number in range(count):
        first = number * turns // 2
        chain = [exchanges[(first + i) % len(exchanges)] for i in range(turns // 2)]
        joined = tuple(turn for _, heard, reply in chain for turn in (heard, reply))
        made.append(replace(chain[0][0], id=f"chain{turns}-{number}", turns=joined, scene=None))
    return made


def player_of(target: str) -> str:
    """The speaker whose replies a chain is made for."""
    return target if target in SPEAKERS else SPEAKERS[-1]


def cut_to(sequence: ChatSequence, reply: Reply) -> ChatSequence:
    """One reply as a sample of its own: the whole history before it, and only its own positions supervised."""
    prompt, stop = sequence.prompt_of(reply), reply.stop
    labels = prompt.labels + sequence.labels[reply.start : stop]
    return ChatSequence(sequence.ids[:stop], labels, sequence.roles[:stop], prompt.clips, [reply])


def make_items(source: Source, dialogues: Sequence[Dialogue], chat: ChatFormat, one_pass: bool) -> list[Item]:
    """The samples of the dialogues: one a dialogue with every reply supervised, or one a reply as peers train."""
    items = []
    for dialogue in dialogues:
        for sequence in chat.sequences(dialogue):
            cuts = [sequence] if one_pass else [cut_to(sequence, reply) for reply in sequence.replies]
            items += [make_item(source, dialogue, cut) for cut in cuts]
    assert all(label == IGNORE for item in items for label in item.sequence.labels[:1])
    return items


class EachOnce:
    """Deals every one of `size` items once a pass, in an order that (seed, pass) sets; stands in for a mixture."""

    length = None  # it deals for ever

    def __init__(self, source: str, size: int, seed: int) -> None:
        self.source, self.size, self.seed = source, size, seed

    def __getitem__(self, position: int) -> tuple[str, int]:
        one_pass, place = divmod(position, self.size)
        return self.source, int(numpy_rng(self.seed, "bench order", one_pass).permutation(self.size)[place])


class ArrivalPlan(BatchPlan):
    """Batches in the order of the draws, padded to their longest: what a loader does that knows no lengths."""

    def pool(self, number: int) -> list[list[Draw]]:
        """The batches of pool `number`, each as many draws as fit the budget together."""
        first = number * self.config.pool
        batches: list[list[Draw]] = [[]]
        widest = 0
        for draw in (Draw(g, *self.mixture[g]) for g in range(first, first + self.config.pool)):
            length = self.length(draw.source, draw.index)
            widest = max(widest, length)
            if batches[-1] and widest * (len(batches[-1]) + 1) > self.config.batch_tokens:
                batches.append([])
                widest = length
            batches[-1].append(draw)
        return batches


def padding_shares(source: Source, chat: ChatFormat, loader: LoaderConfig, seed: int) -> dict[str, float]:
    """Share of padding over one pass of the source's training dialogues: by length, packed, and as they arrive."""
    items = make_items(source, train_dialogues(source), chat, one_pass=True)
    lengths = [item.sequence.positions for item in items]
    each_once: Any = EachOnce(source.name, len(items), seed)
    packed = loader.pack or loader.batch_tokens
    ways = {"bucket": (BatchPlan, 0), "pack": (BatchPlan, packed), "arrival": (ArrivalPlan, 0)}
    shares = {}
    for name, (kind, pack) in ways.items():
        config = replace(loader, pack=pack)
        plan = kind(each_once, lambda _, index: lengths[index], config, seed)
        used = held = 0
        for number in range(math.ceil(len(items) / loader.pool)):
            for draws in plan.pool(number):
                own = [lengths[draw.index] for draw in draws]
                rows = [sum(own[i] for i in row) for row in pack_rows(own, pack)]
                used, held = used + sum(own), held + max(rows) * len(rows)
        shares[name] = 1 - used / held
    return shares


@dataclass(slots=True)
class StepExperts:
    """Callable like `ExpertFeatures`: encodes inside the step, with all threads of the process, and keeps nothing.

    A run with cache.mode=online encodes with one thread, so that its values equal the cache's to the bit; here the
    rival gets the whole machine.
    """

    experts: Mapping[str, AudioEncoder]
    dtype: str

    def __call__(self, keys: Sequence[ClipKey]) -> dict[str, list[EncodedClip]]:
        kept = COMPUTE_DTYPES[self.dtype]
        heard = {}
        for name, expert in self.experts.items():
            encoded = expert.encode_clips([heard_by(expert, key.path, key.sha256) for key in keys])
            heard[name] = [EncodedClip(clip.x_TD.to(kept), clip.time_sec) for clip in encoded]
        return heard
