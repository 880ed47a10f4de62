"""Bootstrap intervals and paired tests over replies, with the replies of one dialogue drawn together.

Every metric is written as sufficient statistics: a row of numbers for each item (a reply, or a pair of replies) and a
function from their sum to the value. A resample is then one matrix product, and a corpus metric (BLEU, weighted F1) is
truly recomputed on each resample and not averaged over sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def _resampled_sums(stats: Floats, clusters: NDArray[np.int64], samples: int, rng: np.random.Generator) -> Floats:
    """Return [samples, F]: sums of statistics over clusters drawn with replacement."""
    _, compact = np.unique(clusters, return_inverse=True)
    count = int(compact.max()) + 1
    per_cluster = np.zeros((count, stats.shape[1]))
    np.add.at(per_cluster, compact, stats)
    blocks = []
    for start in range(0, samples, _RESAMPLE_BLOCK):
        size = min(_RESAMPLE_BLOCK, samples - start)
        blocks.append(rng.multinomial(count, np.full(count, 1 / count), size=size) @ per_cluster)
    return np.concatenate(blocks)


def interval(measure: Measure, samples: int, seed: int) -> tuple[float, float] | None:
    """Return the percentile bootstrap 95 % interval of a measure; None where there is one cluster or fewer.

    Args:
        samples: resamples, 1000 or so.
        seed: equal seeds give equal intervals.
    """
    if len(np.unique(measure.clusters)) < 2:
        return None
    sums = _resampled_sums(measure.stats, measure.clusters, samples, numpy_rng(seed, "bootstrap"))
    values = measure.finish(sums)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A run against a baseline on the items both have: difference (run minus baseline), its interval, two-sided p."""

    difference: float
    ci95: tuple[float, float]
    p: float
    n: int


def paired_test(run: Measure, baseline: Measure, samples: int, seed: int) -> PairedTest | None:
    """Paired bootstrap test (Koehn 2004, "Statistical significance tests for machine translation evaluation").

    Both runs are resampled with the same draws. p = twice the smaller share of resamples on either side of zero, with
    one resample added to each side, so that p is never 0. None where fewer than two clusters are shared.
    """
    theirs = {name: index for index, name in enumerate(baseline.ids)}
    mine = [index for index, name in enumerate(run.ids) if name in theirs]
    other = [theirs[run.ids[index]] for index in mine]
    clusters = run.clusters[mine]
    if len(np.unique(clusters)) < 2:
        return None
    width = run.stats.shape[1]
    both = np.concatenate([run.stats[mine], baseline.stats[other]], axis=1)
    sums = _resampled_sums(both, clusters, samples, numpy_rng(seed, "paired"))
    total = both.sum(axis=0, keepdims=True)
    difference = float((run.finish(total[:, :width]) - baseline.finish(total[:, width:]))[0])
    draws = run.finish(sums[:, :width]) - baseline.finish(sums[:, width:])
    draws = draws[~np.isnan(draws)]
    if np.isnan(difference) or not len(draws):
        return None
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    low, high = np.percentile(draws, [2.5, 97.5])
    p = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    return PairedTest(difference, (float(low), float(high)), p, len(mine))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
