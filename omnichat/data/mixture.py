"""Mixing synthetic and real sources at a ratio: the draw at position g is a pure function of (seed, g).

alpha is the real share of what is drawn, in the mixture's unit. Positions are dealt by systematic sampling (after g
draws the real group has had floor(P(g) + u) of them, P the sum of the draws' probabilities in closed form, u from the
seed), shuffled inside blocks, so that the number of real draws never strays by more than one from what was asked over
whole blocks, and the number of earlier draws of a source, hence its place in its own shuffled pass, is known without
replay. Resume is O(1).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from omnichat.data.units import UNITS, draw_probability, unit_share
from omnichat.schema import KINDS
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import derive_seed, numpy_rng

BLOCK = 64  # draws that are shuffled together
_FINENESS = 2**40  # steps between the probabilities 0 and 1 of a schedule
_LONGEST = 2**48  # draws; a pass that is not through by then never will be


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One corpus of the mixture."""

    path: str  # corpus folder, as `omnichat synthesize` or `omnichat prepare` writes it; plain or packed in Parquet
    weight: float | None = 1.0  # share inside its group (synthetic or real, as the corpus says); null = its size
    limit: int | None = None  # training dialogues at most, nested (data/subset.py); null = all

    def __post_init__(self) -> None:
        if self.weight is not None and not (0 < self.weight < math.inf):
            raise UserError(f"mixture.sources.*.weight must be null, or positive and finite, got {self.weight}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"mixture.sources.*.limit must be null or at least 1, got {self.limit}")


@dataclass(kw_only=True, slots=True)
class MixtureConfig:
    """Which corpora, and how often the real ones are drawn."""

    alpha: float = 0.0  # real share of what is drawn, in `unit`: 0 = synthetic only, 1 = real only
    unit: str = "dialogue"  # what the ratio counts: dialogue | turn | second | token
    schedule: list[list[float]] = field(default_factory=list)  # knots [step, alpha] of an alpha that moves
    one_pass_of: str | None = None  # end when all of it was drawn once: synthetic | real | a source; null = by steps
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    index_dir: str = "cache/index"  # folder of the indexes of corpora that are packed in Parquet

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:  # false for NaN, too
            raise UserError(f"mixture.alpha must lie in [0, 1] (the share of real dialogues), got {self.alpha}")
        if self.unit not in UNITS:
            raise one_of("mixture.unit", self.unit, UNITS)
        if self.schedule and self.alpha != 0:
            raise UserError(f"mixture.schedule sets alpha, so leave mixture.alpha at 0, got {self.alpha}")
        last = -1.0
        for knot in self.schedule:
            if len(knot) != 2 or not (0 <= knot[0] < math.inf and knot[0] == int(knot[0]) and 0 <= knot[1] <= 1):
                raise UserError(
                    f"mixture.schedule must hold [step, alpha] pairs, a whole step and an alpha in [0, 1], got {knot}"
                )
            if knot[0] <= last:
                raise UserError(f"mixture.schedule: the steps must rise, but {knot[0]:g} follows {last:g}")
            last = knot[0]
        if self.one_pass_of is not None and self.one_pass_of not in (*KINDS, *self.sources):
            raise one_of("mixture.one_pass_of", self.one_pass_of, (*KINDS, *self.sources))


@dataclass(frozen=True, slots=True)
class MixtureSource:
    """A source as the sampler sees it: `size` training dialogues with `mean` of the unit each."""

    name: str
    kind: str  # synthetic | real
    size: int
    weight: float | None = 1.0  # of the unit inside its group; None = as much as it holds
    mean: float = 1.0


class Mixture:
    """Deals (source, index) for every position g >= 0.

    Args:
        sources: of both groups.
        alpha: real share of the unit; of no account where there are knots.
        seed: of the order.
        knots: (draw, alpha): alpha at these draws; before the first and after the last it stays. Between two of them
            the probability that a draw is real moves linearly; for the unit dialogue that is alpha itself.
        one_pass_of: group or source all of whose dialogues stand in positions 0 .. length - 1; None = endless.
        unit: for messages.

    Attributes:
        length: number of draws of the pass; None where there is no end.

    Raises:
        UserError: an empty source that would be drawn from, one that holds nothing of the unit, no source of a group
            that alpha asks for, or a pass over what is never drawn.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        alpha: float,
        seed: int,
        *,
        knots: Sequence[tuple[int, float]] = (),
        one_pass_of: str | None = None,
        unit: str = "dialogue",
    ) -> None:
        self.alpha = alpha
        self.seed = seed
        self.sources = sorted(sources, key=lambda source: source.name)  # the order of a config must not matter
        self.groups = {kind: [s for s in self.sources if s.kind == kind] for kind in ("synthetic", "real")}
        alphas = [value for _, value in knots] or [alpha]
        asked = f"mixture.alpha={alpha}" if not knots else "mixture.schedule"
        for kind, needed in (("synthetic", min(alphas) < 1), ("real", max(alphas) > 0)):
            if needed:
                _check_group(kind, self.groups[kind], asked, unit)
        self._offset = derive_seed(seed, "mixture offset") / 2.0**63
        self._rates = {kind: [_rate(s) for s in group] for kind, group in self.groups.items()}
        self._means = (self._mean("synthetic"), self._mean("real"))
        self._ramp = _Ramp([(draw, draw_probability(value, *self._means)) for draw, value in knots]) if knots else None
        self._ramp_offset = int(self._offset * self._ramp.one) if self._ramp is not None else 0
        self._probability = draw_probability(alpha, *self._means)
        self._permutation = functools.lru_cache(maxsize=2 * max(1, len(sources)))(self._permute)
        self._order = functools.lru_cache(maxsize=4)(self._block_order)
        self.length: int | None = None
        if one_pass_of is not None:
            self.length = self.pass_length(one_pass_of)

    def __getitem__(self, position: int) -> tuple[str, int]:
        """The (source name, index of the dialogue) drawn at `position`."""
        block, place = divmod(position, BLOCK)
        draw = block * BLOCK + int(self._order(block)[place])
        before = self._real_before(draw)
        is_real = self._real_before(draw + 1) > before
        rank = before if is_real else draw - before
        kind = "real" if is_real else "synthetic"
        group, rates = self.groups[kind], self._rates[kind]
        for number, source in enumerate(group):
            share = rates[number] / math.fsum(rates[number:])
            taken = self._taken(rank, share)
            if self._taken(rank + 1, share) > taken:
                one_pass, index = divmod(taken, source.size)
                return source.name, int(self._permutation(source.name, source.size, one_pass)[index])
            rank -= taken
        raise AssertionError("the last source of a group takes every draw that is left")

    def drawn(self, name: str, draws: int) -> int:
        """How many of the first `draws` draws take source `name`; over whole blocks, and over a pass, also of the
        first positions."""
        kind = next(source.kind for source in self.sources if source.name == name)
        real = self._real_before(draws)
        left = real if kind == "real" else draws - real
        rates = self._rates[kind]
        for number, source in enumerate(self.groups[kind]):
            taken = self._taken(left, rates[number] / math.fsum(rates[number:]))
            if source.name == name:
                return taken
            left -= taken
        raise AssertionError(f"source {name} is in its group")

    def alpha_at(self, draw: int) -> float:
        """The real share of the unit that is asked for at this draw."""
        return self.alpha if self._ramp is None else unit_share(self._ramp.at(draw), *self._means)

    def alpha_until(self, draws: int) -> float:
        """The real share of the unit that is asked for over the first `draws` draws together."""
        if self._ramp is None or draws == 0:
            return self.alpha_at(0)
        return unit_share(self._ramp.before(draws) / (draws * self._ramp.one), *self._means)

    def _real_before(self, draw: int) -> int:
        """Number of real ones among draws 0 .. draw - 1."""
        if self._ramp is None:
            return self._taken(draw, self._probability)
        return (self._ramp.before(draw) + self._ramp_offset) // self._ramp.one

    def _taken(self, draws: int, share: float) -> int:
        return draws if share >= 1 else math.floor(draws * share + self._offset)

    def _mean(self, kind: str) -> float:
        """Mean amount of the unit in a dialogue drawn from a group; 1 for a group without any, which is not drawn."""
        rates = self._rates[kind]
        if not rates or math.fsum(rates) == 0:
            return 1.0
        return math.fsum(r * s.mean for r, s in zip(rates, self.groups[kind], strict=True)) / math.fsum(rates)

    def members(self, of: str) -> list[MixtureSource]:
        """The sources of a group, or the one of that name. Raises UserError if there is none."""
        found = [source for source in self.sources if of in (source.kind, source.name)]
        if not found:
            raise one_of("mixture.one_pass_of", of, (*KINDS, *(source.name for source in self.sources)))
        return found

    def pass_length(self, of: str) -> int:
        """The fewest draws among which every dialogue of a group or source is: O(log n), for counts never fall.

        Raises:
            UserError: there is no such source, or it is never drawn to its end.
        """
        longest = 0
        for source in self.members(of):
            high = 1
            while high < _LONGEST and self.drawn(source.name, high) < source.size:
                high *= 2
            if self.drawn(source.name, high) < source.size:
                raise UserError(
                    f"mixture.one_pass_of={of}: source {source.name!r} is never drawn to its end with this alpha; name "
                    "another group or source, or leave it null and set trainer.steps"
                )
            counts = functools.partial(self.drawn, source.name)
            longest = max(longest, bisect.bisect_left(range(high + 1), source.size, key=counts))
        return longest

    def _block_order(self, block: int) -> np.ndarray:
        """In which order the draws of a block are dealt; draws past the end of the pass come after it."""
        order = numpy_rng(self.seed, "mixture block", block).permutation(BLOCK)
        if self.length is not None and block == self.length // BLOCK:
            inside = order < self.length % BLOCK
            order = np.concatenate([order[inside], order[~inside]])
        return order

    def _permute(self, name: str, size: int, one_pass: int) -> np.ndarray:
        return numpy_rng(self.seed, "mixture pass", name, one_pass).permutation(size)


class _Ramp:
    """A probability that is linear between knots (draw, probability): its sums in closed form, in whole multiples of
    1 / `one`, so that the floors of one sum and of the next never differ by more than one."""

    def __init__(self, knots: Sequence[tuple[int, float]]) -> None:
        first = [] if knots[0][0] == 0 else [(0, knots[0][1])]
        self.draws = [draw for draw, _ in (*first, *knots)]
        widths = [b - a for a, b in itertools.pairwise(self.draws)]
        common = math.lcm(*(2 * width for width in widths)) if widths else 2
        self.one = _FINENESS * common
        self.values = [round(value * _FINENESS) * common for _, value in (*first, *knots)]
        rises = [b - a for a, b in itertools.pairwise(self.values)]
        self.half_slopes = [*(rise // (2 * width) for rise, width in zip(rises, widths, strict=True)), 0]
        self.sums = [0]
        for segment, width in enumerate(widths):
            self.sums.append(self.sums[-1] + self._within(segment, width))

    def at(self, draw: int) -> float:
        """Probability of one draw."""
        segment = bisect.bisect_right(self.draws, draw) - 1
        return (self.values[segment] + 2 * self.half_slopes[segment] * (draw - self.draws[segment])) / self.one

    def before(self, draw: int) -> int:
        """Sum of the probabilities of draws 0 .. draw - 1, times `one`."""
        segment = bisect.bisect_right(self.draws, draw) - 1
        return self.sums[segment] + self._within(segment, draw - self.draws[segment])

    def _within(self, segment: int, count: int) -> int:
        return count * self.values[segment] + self.half_slopes[segment] * count * (count - 1)


def _rate(source: MixtureSource) -> float:
    """How often a source is drawn against others of its group: weights are shares of the unit, not of the draws."""
    if source.weight is None:
        return float(source.size)
    return source.weight / source.mean if source.mean > 0 else 0.0


def _check_group(kind: str, group: Sequence[MixtureSource], asked: str, unit: str) -> None:
    """Raise UserError where a group that is drawn from lacks sources, dialogues or the unit."""
    if not group:
        raise UserError(f"{asked} draws {kind} dialogues, but mixture.sources has no {kind} one")
    for source in group:
        if source.size == 0:
            raise UserError(f"mixture.sources.{source.name} has no training dialogues")
        if source.mean <= 0:
            raise UserError(
                f"mixture.unit={unit}: the training dialogues of mixture.sources.{source.name} hold none, so no share "
                "of it can be drawn; choose another mixture.unit"
            )
        if (source.weight is None) != (group[0].weight is None):
            raise UserError(
                f"mixture.sources.{source.name}.weight: give a number to all {kind} sources, or null to all of them"
            )
