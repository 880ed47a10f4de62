"""Mixing synthetic and real sources at a ratio: the draw at position g is a pure function of (seed, g).

alpha is the probability that a drawn training dialogue comes from the real group. Positions are dealt by systematic
sampling (after g draws the real group has had floor(g * alpha + u) of them, u from the seed), shuffled inside blocks,
so that the realised share never strays by more than one draw from alpha over whole blocks, and the number of earlier
draws of a source, hence its place in its own shuffled pass, is known without replay. Resume is O(1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import derive_seed, numpy_rng

UNITS = ("dialogue",)
BLOCK = 64  # draws that are shuffled together


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One corpus of the mixture."""

    path: str  # corpus folder, as `omnichat synthesize` or `omnichat prepare` writes it
    weight: float = 1.0  # share inside its group (synthetic or real; the corpus itself says which)

    def __post_init__(self) -> None:
        if not (0 < self.weight < math.inf):
            raise UserError(f"mixture.sources.*.weight must be positive and finite, got {self.weight}")


@dataclass(kw_only=True, slots=True)
class MixtureConfig:
    """Which corpora, and how often the real ones are drawn."""

    alpha: float = 0.0  # probability that a drawn training dialogue is real: 0 = synthetic only, 1 = real only
    unit: str = "dialogue"  # what the ratio counts
    sources: dict[str, SourceConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:  # false for NaN, too
            raise UserError(f"mixture.alpha must lie in [0, 1] (the share of real dialogues), got {self.alpha}")
        if self.unit not in UNITS:
            raise one_of("mixture.unit", self.unit, UNITS)


@dataclass(frozen=True, slots=True)
class MixtureSource:
    """A source as the sampler sees it."""

    name: str
    kind: str  # synthetic | real
    size: int  # training dialogues
    weight: float = 1.0


class Mixture:
    """Deals (source, index) for every position g >= 0.

    Raises:
        UserError: an empty source that would be drawn from, or no source of a group that alpha asks for.
    """

    def __init__(self, sources: list[MixtureSource], alpha: float, seed: int) -> None:
        self.alpha = alpha
        self.seed = seed
        self.groups = {kind: [s for s in sources if s.kind == kind] for kind in ("synthetic", "real")}
        for kind, needed in (("synthetic", alpha < 1), ("real", alpha > 0)):
            group = self.groups[kind]
            if needed and not group:
                raise UserError(f"mixture.alpha={alpha} draws {kind} dialogues, but mixture.sources has no {kind} one")
            for source in group:
                if needed and source.size == 0:
                    raise UserError(f"mixture.sources.{source.name} has no training dialogues")
        self.sources = sources
        self._offset = derive_seed(seed, "mixture offset") / 2.0**63
        self._permutation = functools.lru_cache(maxsize=4 * max(1, len(sources)))(self._permute)

    def __getitem__(self, position: int) -> tuple[str, int]:
        """The (source name, index of the dialogue) drawn at `position`."""
        block, place = divmod(position, BLOCK)
        order = numpy_rng(self.seed, "mixture block", block).permutation(BLOCK)
        draw = block * BLOCK + int(order[place])
        is_real, rank = self._split(draw, self.alpha)
        group = self.groups["real" if is_real else "synthetic"]
        weights = [source.weight for source in group]
        for number, source in enumerate(group):
            share = weights[number] / math.fsum(weights[number:])
            taken, rank = self._split(rank, share)
            if taken:
                one_pass, index = divmod(rank, source.size)
                return source.name, int(self._permutation(source.name, source.size, one_pass)[index])
        raise AssertionError("the last source of a group takes every draw that is left")

    def _split(self, draw: int, share: float) -> tuple[bool, int]:
        """Whether draw number `draw` goes to the part with `share`, and its rank among the draws of its part."""
        if share >= 1:
            return True, draw
        before = math.floor(draw * share + self._offset)
        after = math.floor((draw + 1) * share + self._offset)
        return (True, before) if after > before else (False, draw - before)

    def _permute(self, name: str, size: int, one_pass: int) -> np.ndarray:
        return numpy_rng(self.seed, "mixture pass", name, one_pass).permutation(size)


@dataclass(slots=True)
class MixtureCounter:
    """How often each source was drawn so far; the realised ratio with its interval."""

    kinds: Mapping[str, str]
    drawn: dict[str, int] = field(default_factory=dict)

    def add(self, source: str, count: int = 1) -> None:
        """Count draws of a source."""
        self.drawn[source] = self.drawn.get(source, 0) + count

    def realised(self) -> tuple[float, tuple[float, float]]:
        """(share of real draws, Wilson 95 % interval); (0, (0, 1)) before the first draw."""
        n = sum(self.drawn.values())
        if n == 0:
            return 0.0, (0.0, 1.0)
        real = sum(count for name, count in self.drawn.items() if self.kinds[name] == "real")
        return real / n, wilson_interval(real, n)


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % score interval of a binomial share (Wilson 1927)."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bounds are exact, where rounding would leave 1e-19 and exclude the very share that was drawn.
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == n else min(1.0, centre + half))
