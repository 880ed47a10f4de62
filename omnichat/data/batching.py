"""Token-budget batches by length, and which positions of the mixture each batch holds.

The stream of draws is cut into pools; inside a pool, dialogues (or, with `pack`, rows of several) are sorted by length
and gathered up to the token budget, then the batches are shuffled. Which dialogues batch n of pool p holds depends on
(seed, p) and the lengths alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omnichat.data.mixture import Mixture
from omnichat.data.packing import pack_rows
from omnichat.utils.errors import UserError
from omnichat.utils.seeding import numpy_rng


@dataclass(kw_only=True, slots=True)
class LoaderConfig:
    """How training batches are made."""

    batch_tokens: int = 2048  # padded positions a batch holds at most (audio slots and text)
    pool: int = 128  # drawn dialogues that are sorted by length together; more = less padding, less random
    pack: int = 0  # positions that several dialogues may share as one row, each blind to the others; 0 = a row each
    workers: int = 1  # processes that read features and collate; 0 = in the main process
    prefetch: int = 4  # batches that each worker makes ahead

    def __post_init__(self) -> None:
        for name, least in (("batch_tokens", 1), ("pool", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"loader.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.pack <= self.batch_tokens:
            raise UserError(f"loader.pack must lie in 0..loader.batch_tokens={self.batch_tokens}, got {self.pack}")


@dataclass(frozen=True, slots=True)
class Draw:
    """One training item: its position in the mixture's stream, its source, its index there."""

    position: int
    source: str
    index: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the stream of batches a run is: the next batch is number `batch` of pool `pool`."""

    pool: int = 0
    batch: int = 0


class BatchPlan:
    """The sequence of batches, endless unless the mixture has a length.

    Args:
        mixture: deals the draws.
        length: (source, index) -> positions of that dialogue's sequence.
        config: budget and pool size.
        seed: of the shuffle of batches.
    """

    def __init__(self, mixture: Mixture, length: Callable[[str, int], int], config: LoaderConfig, seed: int) -> None:
        self.mixture = mixture
        self.length = length
        self.config = config
        self.seed = seed

    def pool(self, number: int) -> list[list[Draw]]:
        """The batches of pool `number`; none past the end. Raises UserError where a dialogue exceeds the budget."""
        first = number * self.config.pool
        last = first + self.config.pool
        if self.mixture.length is not None:
            last = min(last, self.mixture.length)
        if first >= last:
            return []
        draws = [Draw(g, *self.mixture[g]) for g in range(first, last)]
        lengths = {draw: self.length(draw.source, draw.index) for draw in draws}
        self._check_lengths(lengths)
        rows = [[draws[i] for i in row] for row in pack_rows(list(lengths.values()), self.config.pack)]
        rows.sort(key=lambda row: (sum(lengths[draw] for draw in row), row[0].position))
        batches: list[list[list[Draw]]] = [[]]
        for row in rows:  # ascending, so the newest is the longest and sets the padded width
            longest = sum(lengths[draw] for draw in row)
            if longest * (len(batches[-1]) + 1) > self.config.batch_tokens:
                batches.append([])
            batches[-1].append(row)
        order = numpy_rng(self.seed, "batch order", number).permutation(len(batches))
        return [self._in_order(batches[int(i)], lengths) for i in order]

    def _in_order(self, rows: list[list[Draw]], lengths: dict[Draw, int]) -> list[Draw]:
        """A batch's draws; of packed rows in the order in which `pack_rows` makes the same rows of them again."""
        batch = [draw for row in rows for draw in row]
        return sorted(batch, key=lambda draw: (-lengths[draw], draw.position)) if self.config.pack else batch

    def _check_lengths(self, lengths: dict[Draw, int]) -> None:
        draw, longest = max(lengths.items(), key=lambda pair: pair[1])
        if longest > self.config.batch_tokens:
            raise UserError(
                f"loader.batch_tokens={self.config.batch_tokens} is less than the {longest} positions of dialogue "
                f"{draw.index} of source {draw.source!r}; raise it"
            )

    def batches(self, place: Place) -> Iterator[tuple[list[Draw], Place]]:
        """Yield (draws, the place after them) from `place` on, for ever or until the mixture's pass ends."""
        pool, batch = place.pool, place.batch
        while self.mixture.length is None or pool * self.config.pool < self.mixture.length:
            batches = self.pool(pool)
            while batch < len(batches):
                batch += 1
                after = Place(pool, batch) if batch < len(batches) else Place(pool + 1, 0)
                yield batches[batch - 1], after
            pool, batch = pool + 1, 0
