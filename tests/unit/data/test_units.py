"""Units of the ratio: how alpha becomes a probability of draws, and the interval of what came of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.data.units import MixtureCounter, draw_probability, unit_share
from omnichat.data.units import wilson_interval as wilson

KINDS = {"made": "synthetic", "spoken": "real"}


@given(alpha=st.floats(0, 1), made=st.floats(0.1, 1e3), spoken=st.floats(0.1, 1e3))
def test_probability_and_share_are_inverse(alpha: float, made: float, spoken: float) -> None:
    p = draw_probability(alpha, made, spoken)
    assert 0 <= p <= 1
    assert unit_share(p, made, spoken) == pytest.approx(alpha, abs=1e-9)
    assert p * spoken * (1 - alpha) == pytest.approx((1 - p) * made * alpha, rel=1e-6, abs=1e-9)


def test_equal_sizes_leave_alpha_as_it_is() -> None:
    for alpha in (0.0, 0.1, 0.2, 1 / 3, 1.0):
        assert draw_probability(alpha, 1.0, 1.0) == alpha  # exactly: the order of older runs depends on it


def test_the_counter_counts_and_its_interval_is_wilsons() -> None:
    counter = MixtureCounter(KINDS)
    assert counter.realised() == (0.0, (0.0, 1.0))
    for source in ("made", "made", "made", "spoken"):
        counter.add(source)
    share, interval = counter.realised()
    assert share == 0.25
    assert interval == pytest.approx((0.0456, 0.6994), abs=1e-3)  # by statistics tables: 1 of 4
    assert counter.dialogues() == counter.realised()


def test_amounts_set_the_share_and_dialogues_are_still_known() -> None:
    counter = MixtureCounter(KINDS)
    for amount in (2.0, 4.0):
        counter.add("made", amount)
    counter.add("spoken", 6.0)
    assert counter.realised()[0] == 0.5
    assert counter.dialogues()[0] == pytest.approx(1 / 3)
    again = MixtureCounter(KINDS)
    again.load(counter.drawn, counter.amounts)
    again.add("spoken", 1.0)
    counter.add("spoken", 1.0)
    assert again == counter


def test_a_count_forgets_sources_that_are_gone() -> None:
    counter = MixtureCounter(KINDS)
    counter.load({"made": 3, "gone": 9}, {"made": [30.0, 300.0], "gone": [9.0, 9.0]})
    assert counter.drawn == {"made": 3} and counter.realised()[0] == 0.0


def test_the_ratio_interval_covers() -> None:
    """Independent draws of very unequal sizes: the true share lies inside about 95 of 100 times, and never in a fixed
    interval of dialogues."""
    rng = np.random.default_rng(0)
    inside, runs, n = 0, 400, 200
    truth = 0.3 * 20 / (0.3 * 20 + 0.7 * 5)
    for _ in range(runs):
        counter = MixtureCounter(KINDS)
        is_real = rng.random(n) < 0.3
        sizes = np.where(is_real, rng.gamma(2.0, 10.0, n), rng.gamma(2.0, 2.5, n))
        for real, size in zip(is_real, sizes, strict=True):
            counter.add("spoken" if real else "made", float(size))
        low, high = counter.realised()[1]
        inside += low <= truth <= high
    assert 0.92 <= inside / runs <= 0.98


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 1000), (500, 1000)])
def test_the_interval_holds_the_share_and_stays_in_bounds(hits: int, n: int) -> None:
    low, high = wilson(hits / n, n)
    assert 0 <= low <= hits / n <= high <= 1 and low < high
    z = 1.959964
    for bound in (low, high):  # Wilson's bounds solve |p - share| = z * sqrt(p (1 - p) / n)
        assert abs(bound - hits / n) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_an_interval_holds_the_share_that_was_drawn() -> None:
    for n in (1, 7, 768):
        assert wilson(0.0, n)[0] == 0.0 and wilson(1.0, n)[1] == 1.0
        for hits in range(n + 1):
            low, high = wilson(hits / n, n)
            assert 0 <= low <= hits / n <= high <= 1
