"""The mixture: a pure function of (seed, position), true to alpha, fair inside each source."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.mixture import BLOCK, Mixture, MixtureConfig, MixtureCounter, MixtureSource, SourceConfig
from omnichat.data.mixture import wilson_interval as wilson
from omnichat.utils.errors import UserError

MADE = MixtureSource("made", "synthetic", 37)
SPOKEN = MixtureSource("spoken", "real", 11)


def deal(mixture: Mixture, count: int, start: int = 0) -> list[tuple[str, int]]:
    return [mixture[position] for position in range(start, start + count)]


def test_any_position_can_be_asked_first() -> None:
    """Random access, in any order, from any instance, gives what a walk from the start gives."""
    walked = deal(Mixture([MADE, SPOKEN], 0.3, 5), 400)
    fresh = Mixture([MADE, SPOKEN], 0.3, 5)
    assert [fresh[g] for g in reversed(range(400))] == walked[::-1]
    assert Mixture([MADE, SPOKEN], 0.3, 5)[317] == walked[317]


def test_seeds_differ_and_zero_is_one_of_them() -> None:
    streams = [deal(Mixture([MADE, SPOKEN], 0.5, seed), 100) for seed in (0, 1, 2)]
    assert streams[0] == deal(Mixture([MADE, SPOKEN], 0.5, 0), 100)
    assert len({str(stream) for stream in streams}) == 3


@settings(max_examples=60, deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 2**31), first=st.integers(0, 50), blocks=st.integers(1, 6))
def test_the_share_is_alpha_to_within_one_draw(alpha: float, seed: int, first: int, blocks: int) -> None:
    mixture = Mixture([MADE, SPOKEN], alpha, seed)
    n = blocks * BLOCK
    real = sum(source == "spoken" for source, _ in deal(mixture, n, first * BLOCK))
    assert abs(real - alpha * n) <= 1 + 1e-6


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 5), (0.1, 10, 3)])
def test_weights_share_a_group(weights: tuple[float, ...]) -> None:
    sources = [MixtureSource(f"s{i}", "synthetic", 50 + i, w) for i, w in enumerate(weights)]
    n = 20 * BLOCK
    drawn = Counter(source for source, _ in deal(Mixture([*sources, SPOKEN], 0.25, 0), n))
    assert abs(drawn["spoken"] - 0.25 * n) <= 1
    for source in sources:
        assert abs(drawn[source.name] - 0.75 * n * source.weight / math.fsum(weights)) <= len(sources)


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_nothing_is_repeated_before_all_was_seen(size: int) -> None:
    """Blocks shuffle the last draws of a pass with the first of the next; beyond a block no index gets ahead."""
    mixture = Mixture([MixtureSource("made", "synthetic", size), SPOKEN], 0.2, 3)
    seen: Counter[int] = Counter({index: 0 for index in range(size)})
    for block in range(12):
        seen.update(index for source, index in deal(mixture, BLOCK, block * BLOCK) if source == "made")
        assert max(seen.values()) - min(seen.values()) <= 1


def test_each_pass_has_another_order() -> None:
    mixture = Mixture([MixtureSource("made", "synthetic", BLOCK)], 0.0, 0)
    passes = [[index for _, index in deal(mixture, BLOCK, p * BLOCK)] for p in range(4)]
    assert all(sorted(order) == list(range(BLOCK)) for order in passes)
    assert len({tuple(order) for order in passes}) == 4 and list(range(BLOCK)) not in passes


def test_real_draws_are_spread_and_not_in_step() -> None:
    places = defaultdict(int)
    for position, (source, _) in enumerate(deal(Mixture([MADE, SPOKEN], 0.25, 0), 40 * BLOCK)):
        places[position % 4] += source == "spoken"
    assert min(places.values()) > 0.1 * sum(places.values()), "every fourth draw would be as good as a fixed pattern"


@pytest.mark.parametrize(("alpha", "other"), [(0.0, "real"), (1.0, "synthetic")])
def test_the_ends_need_no_other_source(alpha: float, other: str) -> None:
    mine = SPOKEN if alpha else MADE
    assert {source for source, _ in deal(Mixture([mine], alpha, 0), 200)} == {mine.name}
    idle = MixtureSource("idle", other, 0)
    assert {source for source, _ in deal(Mixture([mine, idle], alpha, 0), 200)} == {mine.name}


def test_an_empty_or_missing_source_is_named() -> None:
    with pytest.raises(UserError, match=r"mixture\.sources\.hollow has no training dialogues"):
        Mixture([MADE, MixtureSource("hollow", "real", 0)], 0.5, 0)
    with pytest.raises(UserError, match=r"mixture\.alpha=0\.5 draws real dialogues, but mixture\.sources has no real"):
        Mixture([MADE], 0.5, 0)
    with pytest.raises(UserError, match="no synthetic"):
        Mixture([SPOKEN], 0.9, 0)


@pytest.mark.parametrize("alpha", [-0.1, 1.01, math.nan, math.inf])
def test_a_bad_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"mixture\.alpha must lie in \[0, 1\]"):
        MixtureConfig(alpha=alpha)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_weight_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"mixture\.sources.*weight must be positive"):
        SourceConfig(path="x", weight=weight)


def test_another_unit_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.unit='token' is not valid.*dialogue"):
        MixtureConfig(unit="token")


def test_the_counter_counts_and_its_interval_is_wilsons() -> None:
    counter = MixtureCounter({"made": "synthetic", "spoken": "real"})
    assert counter.realised() == (0.0, (0.0, 1.0))
    counter.add("made", 3)
    counter.add("spoken")
    share, (low, high) = counter.realised()
    assert share == 0.25
    assert (low, high) == pytest.approx((0.0456, 0.6994), abs=1e-3)  # by statistics tables: 1 of 4


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 1000), (500, 1000)])
def test_the_interval_holds_the_share_and_stays_in_bounds(hits: int, n: int) -> None:
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1 and low < high
    z = 1.959964
    for bound in (low, high):  # Wilson's bounds solve |p - share| = z * sqrt(p (1 - p) / n)
        assert abs(bound - hits / n) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_an_interval_holds_the_share_that_was_drawn() -> None:
    for n in (1, 7, 768):
        assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
        for hits in range(n + 1):
            low, high = wilson(hits, n)
            assert 0 <= low <= hits / n <= high <= 1
