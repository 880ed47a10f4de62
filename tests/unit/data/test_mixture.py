"""The mixture: a pure function of (seed, position), true to alpha, fair inside each source."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.mixture import BLOCK, Mixture, MixtureConfig, MixtureSource, SourceConfig
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


def test_the_order_in_which_sources_are_named_changes_nothing() -> None:
    sources = [
        MixtureSource(name, kind, 20, mean=mean)
        for name, kind, mean in (
            ("b", "real", 3.0),
            ("c", "synthetic", 1.1),
            ("a", "synthetic", 7.3),
            ("d", "synthetic", 0.7),
        )
    ]
    one, other = (Mixture(order, 0.3, 0, unit="turn") for order in (sources, sources[::-1]))
    assert deal(one, 5 * BLOCK) == deal(other, 5 * BLOCK)


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
    with pytest.raises(UserError, match=r"mixture\.sources.*weight must be null, or positive"):
        SourceConfig(path="x", weight=weight)


def test_another_unit_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.unit='word' is not valid.*dialogue, turn, second, token"):
        MixtureConfig(unit="word")


SIZED = [
    MixtureSource("made", "synthetic", 37, mean=7.5),
    MixtureSource("more", "synthetic", 20, 2.0, mean=3.0),
    MixtureSource("spoken", "real", 11, mean=14.2),
]


@settings(max_examples=60, deadline=None)
@given(alpha=st.floats(0, 1), weight=st.floats(0.1, 10), means=st.tuples(*[st.floats(0.5, 50)] * 3))
def test_in_another_unit_shares_and_weights_are_of_that_unit(
    alpha: float, weight: float, means: tuple[float, float, float]
) -> None:
    """Over whole blocks the counts are those asked to within a draw or two, so the units' shares follow."""
    sources = [
        MixtureSource("a", "synthetic", 10, 1.0, means[0]),
        MixtureSource("b", "synthetic", 10, weight, means[1]),
        MixtureSource("c", "real", 10, 1.0, means[2]),
    ]
    n = 400 * BLOCK
    mixture = Mixture(sources, alpha, 1, unit="second")
    amount = {s.name: mixture.drawn(s.name, n) * s.mean for s in sources}
    largest = max(means) / min(sum(amount.values()) / n, min(means))  # what one draw more or less can do
    assert amount["c"] / sum(amount.values()) == pytest.approx(alpha, abs=2 * largest / n + 1e-9)
    synthetic = amount["a"] + amount["b"]
    if mixture.drawn("c", n) < 0.9 * n:
        assert amount["b"] / synthetic == pytest.approx(weight / (1 + weight), abs=0.05)


def test_counting_ahead_is_counting_what_was_dealt() -> None:
    mixture = Mixture(SIZED, 0.3, 4, unit="turn")
    counts = Counter(source for source, _ in deal(mixture, 30 * BLOCK))
    assert {s.name: mixture.drawn(s.name, 30 * BLOCK) for s in SIZED} == dict(counts)


def test_a_null_weight_is_the_sources_own_size() -> None:
    sources = [MixtureSource("a", "synthetic", 300, None, 2.0), MixtureSource("b", "synthetic", 100, None, 9.0)]
    for unit in ("dialogue", "turn"):
        mixture = Mixture(sources, 0.0, 0, unit=unit)
        assert mixture.drawn("a", 400) == 300, "all dialogues alike, whatever the unit"
    with pytest.raises(
        UserError, match=r"mixture\.sources\.b\.weight: give a number to all synthetic sources, or null"
    ):
        Mixture([sources[0], MixtureSource("b", "synthetic", 100, 1.0)], 0.0, 0)


def test_a_source_without_the_unit_is_named() -> None:
    silent = MixtureSource("silent", "real", 11, mean=0.0)
    with pytest.raises(
        UserError, match=r"mixture\.unit=second: the training dialogues of mixture\.sources\.silent hold"
    ):
        Mixture([MADE, silent], 0.5, 0, unit="second")
    Mixture([MADE, silent], 0.0, 0, unit="second")  # it is not drawn


KNOTS = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1)), min_size=1, max_size=5, unique_by=lambda k: k[0])


@settings(max_examples=40, deadline=None)
@given(knots=KNOTS.map(sorted), seed=st.integers(0, 99), start=st.integers(0, 700))
def test_a_curriculum_has_random_access(knots: list[tuple[int, float]], seed: int, start: int) -> None:
    """Any draw, asked alone, is what a walk from the beginning gives; the counts follow the sum of the alphas."""
    mixture = Mixture([MADE, SPOKEN], 0.0, seed, knots=knots)
    n = 12 * BLOCK
    walked = deal(mixture, n)
    fresh = Mixture([MADE, SPOKEN], 0.0, seed, knots=knots)
    assert fresh[start] == walked[start]
    passes: dict[str, Counter[int]] = {"made": Counter(), "spoken": Counter()}
    for source, index in walked:
        passes[source][index] += 1
    asked = math.fsum(mixture.alpha_at(draw) for draw in range(n))
    assert passes["spoken"].total() == pytest.approx(asked, abs=1 + 1e-6)
    assert mixture.alpha_until(n) == pytest.approx(asked / n, abs=1e-9)
    for name, size in (("made", 37), ("spoken", 11)):  # nothing is skipped or drawn twice along the way
        counts = [passes[name][index] for index in range(size)]
        assert max(counts) - min(counts) <= 1 + (size < BLOCK)


def test_a_curriculum_moves_from_one_end_to_the_other() -> None:
    mixture = Mixture([MADE, SPOKEN], 0.0, 0, knots=[(10 * BLOCK, 0.0), (30 * BLOCK, 1.0)])
    shares = [sum(s == "spoken" for s, _ in deal(mixture, BLOCK, b * BLOCK)) / BLOCK for b in (3, 10, 20, 29, 35)]
    assert shares == pytest.approx([0, 0.025, 0.525, 0.975, 1], abs=0.04)
    assert [mixture.alpha_at(b * BLOCK) for b in (0, 20, 99)] == pytest.approx([0, 0.5, 1])


def test_a_curriculum_in_another_unit_is_exact_at_its_knots() -> None:
    mixture = Mixture(SIZED, 0.0, 0, knots=[(0, 0.2), (1000, 0.8)], unit="turn")
    assert [mixture.alpha_at(draw) for draw in (0, 1000, 5000)] == pytest.approx([0.2, 0.8, 0.8])
    assert 0.2 < mixture.alpha_at(500) < 0.8


def test_a_curriculum_needs_the_groups_that_it_asks_for() -> None:
    with pytest.raises(UserError, match=r"mixture\.schedule draws real dialogues, but mixture\.sources has no real"):
        Mixture([MADE], 0.0, 0, knots=[(0, 0.0), (10, 0.1)])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([[0, 0.1], [0, 0.2]], "the steps must rise, but 0 follows 0"),
        ([[5, 0.1], [3, 0.2]], "the steps must rise, but 3 follows 5"),
        ([[0, 1.5]], r"alpha in \[0, 1\], got \[0, 1.5\]"),
        ([[0, math.nan]], "alpha in"),
        ([[0.5, 0.5]], "a whole step"),
        ([[math.inf, 0.5]], "a whole step"),
        ([[1, 0.5, 2]], "pairs"),
    ],
)
def test_a_bad_schedule_is_refused(schedule: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=rf"mixture\.schedule.*{message}"):
        MixtureConfig(schedule=schedule)


def test_alpha_and_schedule_exclude_each_other() -> None:
    with pytest.raises(UserError, match=r"mixture\.schedule sets alpha, so leave mixture\.alpha at 0, got 0\.2"):
        MixtureConfig(alpha=0.2, schedule=[[0, 0.5]])


@settings(max_examples=40, deadline=None)
@given(
    alpha=st.floats(0, 0.95),
    seed=st.integers(0, 99),
    size=st.integers(1, 200),
    weights=st.tuples(*[st.floats(0.2, 5)] * 2),
)
def test_one_pass_of_a_group_holds_each_of_its_dialogues(
    alpha: float, seed: int, size: int, weights: tuple[float, float]
) -> None:
    sources = [
        MixtureSource("a", "synthetic", size, weights[0]),
        MixtureSource("b", "synthetic", 40, weights[1]),
        SPOKEN,
    ]
    mixture = Mixture(sources, alpha, seed, one_pass_of="synthetic")
    assert mixture.length is not None
    drawn = Counter(deal(mixture, mixture.length))
    for name, count in (("a", size), ("b", 40)):
        assert {index for source, index in drawn if source == name} == set(range(count))
    before = mixture.length - 1  # and with one draw less, one of them lacks one
    assert mixture.drawn("a", before) < size or mixture.drawn("b", before) < 40


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5])
def test_one_pass_of_a_single_source_draws_each_dialogue_once(alpha: float) -> None:
    mixture = Mixture([MixtureSource("made", "synthetic", 370), SPOKEN], alpha, 2, one_pass_of="synthetic")
    assert mixture.length is not None
    drawn = Counter(deal(mixture, mixture.length))
    assert {drawn["made", index] for index in range(370)} == {1}
    assert drawn.total() == pytest.approx(370 / (1 - alpha), abs=2)
    assert sum(n for (name, _), n in drawn.items() if name == "spoken") == pytest.approx(alpha * drawn.total(), abs=1)


def test_one_pass_of_a_named_source_and_under_a_curriculum() -> None:
    named = Mixture([MADE, SPOKEN], 0.25, 0, one_pass_of="spoken")
    assert named.length is not None
    assert sorted(i for s, i in deal(named, named.length) if s == "spoken") == list(range(11))
    moving = Mixture([MADE, SPOKEN], 0.0, 0, knots=[(0, 0.0), (100, 1.0)], one_pass_of="real")
    assert moving.length is not None
    assert sorted(i for s, i in deal(moving, moving.length) if s == "spoken") == list(range(11))


def test_a_pass_that_never_ends_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.one_pass_of=real: source 'spoken' is never drawn to its end"):
        Mixture([MADE, SPOKEN], 0.0, 0, one_pass_of="real")
    with pytest.raises(UserError, match=r"'made' is never drawn to its end with this alpha"):
        Mixture([MADE, SPOKEN], 0.0, 0, knots=[(0, 0.0), (10, 1.0)], one_pass_of="synthetic")
    with pytest.raises(UserError, match=r"mixture\.one_pass_of='reel' is not valid.*synthetic, real"):
        MixtureConfig(one_pass_of="reel")
    with pytest.raises(UserError, match=r"mixture\.one_pass_of='real' is not valid|never|no real"):
        Mixture([MADE], 0.0, 0, one_pass_of="real")
