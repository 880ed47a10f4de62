"""Bootstrap intervals and paired tests over replies, with the replies of one dialogue drawn together.

Every metric is written as sufficient statistics: a row of numbers for each item (a reply, or a pair of replies) and a
function from their sum to the value. A resample is then one matrix product, and a corpus metric (BLEU, weighted F1) is
truly recomputed on each resample and not averaged over sentences.

Intervals are BCa intervals (Efron 1987, "Better Bootstrap Confidence Intervals") whose level is expanded for few
clusters (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.3): the normal quantile z is taken
as sqrt(C / (C - 1)) t(C - 1), for C clusters. Paired tests are Student's, from the resampled standard error.
docs/EVALUATION.md has the measured coverage and false alarms of these choices and of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from omnichat.utils.seeding import numpy_rng

Floats = NDArray[np.float64]
_RESAMPLE_BLOCK = 256  # bounds memory at block x clusters


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric on one set of items.

    Attributes:
        stats: float [N items, F] sufficient statistics.
        clusters: int [N], the cluster of each item; items of one cluster are drawn together.
        rows: int [N], the index of the prediction that the item belongs to (a pair: the first of the two).
        finish: float [S, F] sums -> float [S] values; nan where a sum leaves the metric undefined.
        ids: the N items' names, by which two runs are paired.
    """

    stats: Floats
    clusters: NDArray[np.int64]
    rows: NDArray[np.int64]
    finish: Callable[[Floats], Floats]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.stats.ndim == 2
        assert len(self.stats) == len(self.clusters) == len(self.rows) == len(self.ids)

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.ids)

    def value(self) -> float:
        """The metric on all items."""
        return float(self.finish(self.stats.sum(axis=0, keepdims=True))[0])

    def select(self, keep_rows: NDArray[np.bool_]) -> Measure:
        """The same metric on the items of some predictions (`keep_rows`: bool, one a prediction)."""
        keep = keep_rows[self.rows]
        ids = tuple(name for name, kept in zip(self.ids, keep, strict=True) if kept)
        return Measure(self.stats[keep], self.clusters[keep], self.rows[keep], self.finish, ids)


def mean_measure(
    values: Sequence[float], clusters: NDArray[np.int64], rows: NDArray[np.int64], ids: Sequence[str]
) -> Measure:
    """Return the measure "mean of `values`" (one number an item)."""
    stats = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Measure(stats, clusters, rows, ratio, tuple(ids))


def ratio(sums: Floats) -> Floats:
    """Return first over second column of [S, 2] sums; nan where the second is 0."""
    safe = np.where(sums[:, 1] == 0, 1.0, sums[:, 1])
    return np.where(sums[:, 1] == 0, np.nan, sums[:, 0] / safe)


def cluster_ids(*keys: Sequence[str | None]) -> NDArray[np.int64]:
    """Return int [N]: items that share any key, directly or through others, get one cluster number.

    Args:
        keys: lists of N names each (None = none), such as dialogue stems and variant groups.
    """
    count = len(keys[0])
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for names in keys:
        assert len(names) == count
        first: dict[str, int] = {}
        for item, name in enumerate(names):
            if name is not None:
                parent[root(item)] = root(first.setdefault(name, item))
    roots = [root(item) for item in range(count)]
    number = {value: index for index, value in enumerate(dict.fromkeys(roots))}
    return np.array([number[value] for value in roots], dtype=np.int64)


def cluster_sums(stats: Floats, clusters: NDArray[np.int64]) -> Floats:
    """Return [C, F]: the statistics [N, F] summed over the items of each cluster."""
    _, compact = np.unique(clusters, return_inverse=True)
    sums = np.zeros((int(compact.max()) + 1, stats.shape[1]))
    np.add.at(sums, compact, stats)
    return sums


def resampled_sums(per_cluster: Floats, samples: int, rng: np.random.Generator) -> Floats:
    """Return [samples, F]: sums of statistics [C, F] over C clusters drawn with replacement."""
    count = len(per_cluster)
    blocks = []
    for start in range(0, samples, _RESAMPLE_BLOCK):
        size = min(_RESAMPLE_BLOCK, samples - start)
        blocks.append(rng.multinomial(count, np.full(count, 1 / count), size=size) @ per_cluster)
    return np.concatenate(blocks)


@dataclass(frozen=True, slots=True)
class _Bca:
    """The bootstrap distribution of a value, with BCa's two corrections and the number of clusters behind it."""

    value: float
    draws: Floats  # sorted
    bias: float  # z0, in standard deviations
    acceleration: float
    clusters: int

    def interval(self) -> tuple[float, float]:
        """The expanded 95 % interval; it holds the value."""
        c = self.clusters
        reach = float(np.sqrt(c / (c - 1)) * student_t.ppf(0.975, c - 1))
        shifted = self.bias + np.array([-reach, reach])
        # past 1 / acceleration the formula turns back on itself: the end of the draws is meant
        levels = norm.cdf(self.bias + shifted / np.maximum(1 - self.acceleration * shifted, 1e-9))
        low, high = np.quantile(self.draws, levels)
        return min(float(low), self.value), max(float(high), self.value)


def _bca(
    per_cluster: Floats, finish: Callable[[Floats], Floats], samples: int, rng: np.random.Generator
) -> _Bca | None:
    """Resample a value of clusters' sums [C, F]; None where there are fewer than two clusters or it is undefined."""
    count = len(per_cluster)
    if count < 2:
        return None
    total = per_cluster.sum(axis=0, keepdims=True)
    value = float(finish(total)[0])
    draws = finish(resampled_sums(per_cluster, samples, rng))
    draws = np.sort(draws[~np.isnan(draws)])
    if np.isnan(value) or not len(draws):
        return None
    equal = np.isclose(draws, value, rtol=1e-12, atol=1e-12)
    below = ((draws < value) & ~equal).sum() + 0.5 * equal.sum()
    bias = float(norm.ppf(np.clip(below / len(draws), 1 / len(draws), 1 - 1 / len(draws))))
    without = finish(total - per_cluster)  # jackknife: the value without each cluster
    without = without[~np.isnan(without)]
    pull = without.mean() - without if len(without) else np.zeros(1)
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 1e-18 else 0.0
    return _Bca(value, draws, bias, acceleration, count)


def interval(measure: Measure, samples: int, seed: int) -> tuple[float, float] | None:
    """Return the bootstrap 95 % interval of a measure (expanded BCa); None where there is one cluster or fewer.

    Args:
        samples: resamples, 1000 or so.
        seed: equal seeds give equal intervals.
    """
    if not measure.n:
        return None
    per_cluster = cluster_sums(measure.stats, measure.clusters)
    found = _bca(per_cluster, measure.finish, samples, numpy_rng(seed, "bootstrap"))
    return None if found is None else found.interval()


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A run against a baseline on the items both have: difference (run minus baseline), its interval, two-sided p."""

    difference: float
    ci95: tuple[float, float]
    p: float
    n: int


def paired_test(run: Measure, baseline: Measure, samples: int, seed: int) -> PairedTest | None:
    """Paired bootstrap test on the items both have; None where they share fewer than two clusters.

    Both runs are resampled with the same draws (Koehn 2004, "Statistical significance tests for machine translation
    evaluation"). Interval and p are Student's, from the resampled standard error; see `student_test`.
    """
    theirs = {name: index for index, name in enumerate(baseline.ids)}
    mine = [index for index, name in enumerate(run.ids) if name in theirs]
    other = [theirs[run.ids[index]] for index in mine]
    if not mine:
        return None
    width = run.stats.shape[1]
    both = np.concatenate([run.stats[mine], baseline.stats[other]], axis=1)
    per_cluster = cluster_sums(both, run.clusters[mine])
    count = len(per_cluster)
    if count < 2:
        return None

    def difference(sums: Floats) -> Floats:
        return run.finish(sums[:, :width]) - baseline.finish(sums[:, width:])

    value = float(difference(per_cluster.sum(axis=0, keepdims=True))[0])
    draws = difference(resampled_sums(per_cluster, samples, numpy_rng(seed, "paired")))
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or len(draws) < 2:
        return None
    error = float(draws.std(ddof=1)) * float(np.sqrt(count / (count - 1)))
    return student_test(value, error, count - 1, count, len(mine))


def student_test(difference: float, error: float, freedom: float, clusters: int, n: int) -> PairedTest:
    """Return the test of a difference with a standard error: Student's t, two-sided.

    Unlike a count of resamples beyond zero, p can be as small as Holm's adjustment over many systems needs. Where all
    clusters show the same difference, there is no error to be had, and p is that of the sign test, 2^(1 - clusters).
    """
    if error > 1e-9:
        half = float(student_t.ppf(0.975, freedom)) * error
        p = float(2 * student_t.sf(abs(difference) / error, freedom))
        return PairedTest(difference, (difference - half, difference + half), p, n)
    p = 1.0 if abs(difference) < 1e-12 else 2.0 ** (1 - clusters)
    return PairedTest(difference, (difference, difference), p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
