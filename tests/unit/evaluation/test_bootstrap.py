"""Bootstrap intervals and paired tests: invariants, and agreement with what theory says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.evaluation.bootstrap import Measure, cluster_ids, holm, interval, mean_measure, paired_test, ratio


def means(values: np.ndarray, clusters: np.ndarray | None = None) -> Measure:
    index = np.arange(len(values))
    return mean_measure(list(values), index if clusters is None else clusters, index, [f"r{i}" for i in index])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_interval_is_ordered_bounded_and_repeatable(values: list[float], seed: int) -> None:
    measure = means(np.array(values))
    low, high = interval(measure, 200, seed) or pytest.fail("no interval")
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert interval(measure, 200, seed) == (low, high)


def test_interval_width_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, size=400)
    low, high = interval(means(values), 4000, 0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(400), rel=0.1)
    assert low < means(values).value() < high


def test_copies_within_a_cluster_do_not_narrow_the_interval() -> None:
    base = np.random.default_rng(1).random(40)
    one = interval(means(base), 3000, 0)
    copied = means(np.repeat(base, 5), np.repeat(np.arange(40), 5))
    five = interval(copied, 3000, 0)
    loose = interval(means(np.repeat(base, 5)), 3000, 0)
    assert five == pytest.approx(one, abs=1e-9)
    assert loose[1] - loose[0] < 0.6 * (five[1] - five[0])


def test_one_cluster_has_no_interval() -> None:
    assert interval(means(np.array([0.0, 1.0]), np.zeros(2, dtype=np.int64)), 200, 0) is None


def test_ratio_of_nothing_is_nan_and_warns_nothing(recwarn: pytest.WarningsRecorder) -> None:
    assert np.isnan(ratio(np.array([[0.0, 0.0]]))).all()
    assert not recwarn.list


def test_clusters_join_through_either_key() -> None:
    ids = cluster_ids(["a", "a", "b", "c", "d"], [None, "g", "g", None, None])
    assert ids.tolist() == [0, 0, 0, 1, 2]


def test_paired_test_sees_a_small_steady_gain_that_intervals_miss() -> None:
    base = np.random.default_rng(0).random(60)
    better = base + 0.02
    low, high = interval(means(base), 1000, 0)
    assert low < means(better).value() < high
    test = paired_test(means(better), means(base), 1000, 0)
    assert test.difference == pytest.approx(0.02) and test.p < 0.01 and test.n == 60
    assert test.ci95 == pytest.approx((0.02, 0.02))


def test_paired_test_of_a_run_with_itself_is_not_significant_and_signs_flip() -> None:
    rng = np.random.default_rng(2)
    a, b = means(rng.random(50)), means(rng.random(50))
    assert paired_test(a, a, 500, 0).p == 1.0
    forward, backward = paired_test(a, b, 500, 0), paired_test(b, a, 500, 0)
    assert forward.difference == -backward.difference and forward.p == backward.p


def test_paired_test_uses_shared_ids_only() -> None:
    a = means(np.array([1.0, 1.0, 0.0, 1.0]))
    b = mean_measure([0.0, 0.0], np.arange(2), np.arange(2), ["r3", "r0"])
    test = paired_test(a, b, 200, 0)
    assert test.n == 2 and test.difference == 1.0
    assert paired_test(a, mean_measure([0.0], np.arange(1), np.arange(1), ["zz"]), 200, 0) is None


def test_false_alarms_stay_near_five_percent() -> None:
    rng = np.random.default_rng(7)
    alarms = sum(paired_test(means(rng.random(40)), means(rng.random(40)), 300, k).p < 0.05 for k in range(200))
    assert 2 <= alarms <= 24


def test_a_certain_difference_is_as_sure_as_the_sign_test() -> None:
    a, b = means(np.arange(6.0) + 1), means(np.arange(6.0))
    assert paired_test(a, b, 200, 0).p == pytest.approx(2**-5)


def test_p_is_small_enough_to_be_adjusted() -> None:
    """A count of resamples beyond zero cannot be below 2 / (samples + 1), and ten systems make ten times that."""
    rng = np.random.default_rng(4)
    a, b = means(rng.random(80) + 0.5), means(rng.random(80))
    assert paired_test(a, b, 100, 0).p * 10 < 0.001


def test_few_clusters_have_wider_intervals_than_percentiles() -> None:
    values = np.random.default_rng(6).random(8)
    low, high = interval(means(values), 4000, 0)
    draws = np.random.default_rng(0).choice(values, size=(4000, 8)).mean(axis=1)
    plain = np.percentile(draws, [2.5, 97.5])
    assert high - low > 1.15 * (plain[1] - plain[0])


def test_a_skewed_mean_has_an_interval_that_leans_to_its_long_side() -> None:
    values = np.random.default_rng(8).exponential(size=60)
    low, high = interval(means(values), 4000, 0)
    assert high - values.mean() > 1.1 * (values.mean() - low)


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
