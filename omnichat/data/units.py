"""What the ratio of a mixture counts, and the realised share of that unit with its interval.

A turn counts whoever speaks it. A second is a second of a recorded turn, heard or spoken by the model: so the order of
the draws is the same whether a run listens or reads, and runs that differ in `chat.input` can be compared. A token is a
position of the sequence, audio windows included, so it does depend on what the model is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

UNITS = ("dialogue", "turn", "second", "token")
_Z95 = 1.959964  # quantile of the normal distribution


def draw_probability(alpha: float, mean_synthetic: float, mean_real: float) -> float:
    """Probability that a drawn dialogue is real, so that `alpha` is the real share of the unit.

    With means m of the unit a dialogue, p m_r / (p m_r + (1 - p) m_s) = alpha is solved for p.
    """
    if alpha in (0.0, 1.0) or mean_synthetic == mean_real:
        return alpha
    return alpha * mean_synthetic / (alpha * mean_synthetic + (1 - alpha) * mean_real)


def unit_share(probability: float, mean_synthetic: float, mean_real: float) -> float:
    """The inverse of `draw_probability`: the real share of the unit."""
    return draw_probability(probability, mean_real, mean_synthetic)


@dataclass(slots=True)
class MixtureCounter:
    """How often each source was drawn so far; the realised ratio with its interval.

    Attributes:
        kinds: source -> synthetic | real.
        drawn: source -> draws.
        amounts: source -> [sum, sum of squares] of the unit over its draws.
    """

    kinds: Mapping[str, str]
    drawn: dict[str, int] = field(default_factory=dict)
    amounts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, source: str, amount: float = 1.0) -> None:
        """Count one draw of a source that brings `amount` of the unit."""
        self.drawn[source] = self.drawn.get(source, 0) + 1
        total, squares = self.amounts.get(source, (0.0, 0.0))
        self.amounts[source] = [total + amount, squares + amount * amount]

    def load(self, drawn: Mapping[str, int], amounts: Mapping[str, list[float]]) -> None:
        """Go on from an earlier count; what it knows of other sources is left out."""
        self.drawn = {name: count for name, count in drawn.items() if name in self.kinds}
        self.amounts = {name: list(amounts.get(name, [float(n), float(n)])) for name, n in self.drawn.items()}

    def realised(self) -> tuple[float, tuple[float, float]]:
        """(real share of the unit, its 95 % interval); (0, (0, 1)) before the first draw.

        Dialogues differ in size, so the share is a ratio of two random sums. Its variance is the linearised one of a
        ratio estimator (Cochran, Sampling Techniques, 1977, section 6.3), and the interval is Wilson's at the number of
        draws that would give a binomial share that variance (Korn and Graubard, 1998). For equal sizes it is Wilson's
        own. At a share of 0 or 1 the number is Kish's: the squared sum over the sum of squares.
        """
        real = [sums for name, sums in self.amounts.items() if self.kinds[name] == "real"]
        total = math.fsum(sums[0] for sums in self.amounts.values())
        squares = math.fsum(sums[1] for sums in self.amounts.values())
        if total <= 0:
            return 0.0, (0.0, 1.0)
        share = math.fsum(sums[0] for sums in real) / total
        real_squares = math.fsum(sums[1] for sums in real)
        spread = (1 - share) ** 2 * real_squares + share**2 * (squares - real_squares)
        binomial = share * (1 - share)
        effective = binomial * total**2 / spread if 0 < share < 1 and spread > 0 else total**2 / squares
        return share, wilson_interval(share, effective)

    def dialogues(self) -> tuple[float, tuple[float, float]]:
        """(real share of the dialogues, its 95 % interval), whatever the unit."""
        plain = MixtureCounter(self.kinds, amounts={name: [float(n), float(n)] for name, n in self.drawn.items()})
        return plain.realised()


def wilson_interval(share: float, n: float, z: float = _Z95) -> tuple[float, float]:
    """Wilson's 95 % score interval of a binomial share of `n` draws (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bounds are exact, where rounding would leave 1e-19 and exclude the very share that was drawn.
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))
