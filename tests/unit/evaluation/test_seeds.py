"""Figures over seeds: one seed changes nothing, more uncertainty widens, and the intervals cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.evaluation.bootstrap import Measure, interval, mean_measure, paired_test
from omnichat.evaluation.seeds import joint_draws, seed_summary, seeds_test, shared_items


def measure(values: np.ndarray, prefix: str = "d") -> Measure:
    """One item a dialogue."""
    rows = np.arange(len(values))
    return mean_measure(list(values), rows, rows, [f"{prefix}{row}" for row in rows])


def row(value: float, low: float | None, high: float | None, n: int = 50) -> dict:
    return {"value": value, "n": n, "ci95": None if low is None else [low, high]}


def test_one_seed_keeps_its_own_interval() -> None:
    found = seed_summary([row(0.5, 0.3, 0.8)])
    assert (found.mean, found.ci95, found.n, found.values) == (0.5, (0.3, 0.8), 50, (0.5,))
    assert seed_summary([row(0.5, None, None)]).ci95 is None


def test_seeds_alone_give_students_interval() -> None:
    found = seed_summary([row(v, None, None) for v in (0.4, 0.5, 0.6)], -9, 9)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert found.ci95 == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)


def test_equal_seeds_leave_the_dialogues_interval() -> None:
    found = seed_summary([row(0.5, 0.4, 0.6)] * 4)
    assert found.ci95 == pytest.approx((0.4, 0.6), abs=1e-9)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
)
def test_the_interval_holds_the_mean_and_grows_with_the_dialogues_part(
    values: list[float], one: float, other: float
) -> None:
    narrow, wide = sorted((one, other))
    first, second = (seed_summary([row(v, v - w, v + w) for v in values], -9, 9) for w in (narrow, wide))
    assert first.ci95 is not None and second.ci95 is not None
    assert first.ci95[0] <= first.mean <= first.ci95[1]
    # between two widths the degrees of freedom move as well; a wider part never narrows the whole by more than that
    assert second.ci95[1] - second.ci95[0] >= 2 * wide - 1e-9
    cut = seed_summary([row(v, v - wide, v + wide) for v in values])
    assert cut.ci95 is not None and cut.ci95[0] >= 0 and cut.ci95[1] <= 1


def test_intervals_cover_the_truth() -> None:
    rng, hits, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        dialogues = rng.normal(0, 0.3, 60)
        rows = []
        for _ in range(3):
            values = 0.5 + rng.normal(0, 0.04) + dialogues + rng.normal(0, 0.1, 60)
            half = 1.96 * values.std(ddof=1) / math.sqrt(60)
            rows.append(row(float(values.mean()), values.mean() - half, values.mean() + half))
        found = seed_summary(rows, -9, 9)
        assert found.ci95 is not None
        hits += found.ci95[0] <= 0.5 <= found.ci95[1]
    assert 0.93 <= hits / trials <= 0.995


def test_one_pair_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    a, b = measure(rng.random(30) + 0.1), measure(rng.random(30))
    assert seeds_test([a], [b], 300, 5) == paired_test(a, b, 300, 5)


def test_a_test_over_seeds_finds_a_difference_and_no_more() -> None:
    rng = np.random.default_rng(2)
    rejected, trials = 0, 120
    for _ in range(trials):
        base = rng.normal(0.5, 0.2, 40)
        one, two = ([measure(base + rng.normal(0, 0.05, 40)) for _ in range(3)] for _ in range(2))
        found = seeds_test(one, two, 100, 3)
        assert found is not None
        rejected += found.p < 0.05
    assert rejected / trials <= 0.09
    better = [measure(base + 0.2 + rng.normal(0, 0.02, 40)) for _ in range(3)]
    found = seeds_test(better, [measure(base)], 300, 3)
    assert found is not None and found.p < 0.01 and found.ci95[0] > 0.1 and found.n == 40


def test_signs_turn_with_the_sides() -> None:
    rng = np.random.default_rng(3)
    mine, theirs = ([measure(rng.random(20)) for _ in range(2)] for _ in range(2))
    one, two = seeds_test(mine, theirs, 2000, 0), seeds_test(theirs, mine, 2000, 0)
    assert one is not None and two is not None
    assert one.difference == pytest.approx(-two.difference) and one.p == pytest.approx(two.p, abs=0.05)
    assert one.ci95 == pytest.approx((-two.ci95[1], -two.ci95[0]), abs=0.03)  # other seeds are drawn


def test_no_shared_dialogues_no_test() -> None:
    a, b = measure(np.ones(5)), measure(np.zeros(5), "other")
    assert seeds_test([a, a], [b, b], 100, 0) is None


def test_items_are_matched_by_name() -> None:
    values = np.arange(6, dtype=np.float64)
    a = measure(values)
    order = np.array([5, 2, 0, 3])
    b = mean_measure(list(values[order]), np.arange(4), np.arange(4), [f"d{n}" for n in order])
    one, two = shared_items([a, b])
    assert one.ids == two.ids == ("d0", "d2", "d3", "d5")
    assert np.array_equal(one.stats, two.stats) and np.array_equal(one.clusters, two.clusters)
    draws = joint_draws([one, two], 50, np.random.default_rng(0))
    assert draws.shape == (50, 2) and np.array_equal(draws[:, 0], draws[:, 1]) and draws[:, 0].std() > 0


def test_joint_draws_spread_as_the_bootstrap_does() -> None:
    a = measure(np.random.default_rng(4).random(50))
    low, high = np.percentile(joint_draws([a], 2000, np.random.default_rng(0))[:, 0], [2.5, 97.5])
    assert (low, high) == pytest.approx(interval(a, 2000, 1), abs=0.015)
