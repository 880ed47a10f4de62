"""Several seeds of one system: the mean over seeds, its intervals, and paired tests of two such systems.

Two things vary: which weights a seed gave, and which dialogues were drawn for the test. Where a system has one seed,
only the second is known, and `bootstrap` is used as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from omnichat.evaluation.bootstrap import (
    Floats,
    Measure,
    PairedTest,
    cluster_sums,
    interval,
    paired_test,
    resampled_sums,
    student_test,
)
from omnichat.utils.seeding import numpy_rng

_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class SeedsInterval:
    """A metric over several seeds.

    Attributes:
        value: mean over the seeds.
        n: items that all seeds have.
        ci95: for other seeds and other dialogues; None where there is one cluster or fewer.
        ci95_seeds: for other seeds on these dialogues (Student's t); None with one seed.
    """

    value: float
    n: int
    ci95: tuple[float, float] | None
    ci95_seeds: tuple[float, float] | None


def seeds_interval(
    measures: Sequence[Measure], samples: int, seed: int, limits: tuple[float, float] = (-np.inf, np.inf)
) -> SeedsInterval | None:
    """Return a metric's mean over seeds and its 95 % intervals; None where the seeds share no item.

    The combined interval draws seeds and dialogues, each with replacement and independently of the other: the
    pigeonhole bootstrap of crossed data (Owen 2007, "The pigeonhole bootstrap"; Owen and Eckles 2012, "Bootstrapping
    data arrays of arbitrary order"). Drawn from S seeds, their spread comes out too small by (S - 1) / S, and so with C
    clusters of dialogues; both shares are scaled up. As a handful of seeds has no percentiles to speak of, the interval
    is value +- t times the resampled standard error, with the degrees of freedom of two variances (Satterthwaite 1946,
    "An approximate distribution of estimates of variance components"). It is never narrower than the interval
    over seeds alone, which counts where few seeds differ much. With one seed it is `bootstrap.interval`.

    Where all dialogues agree, resampling sees no spread at all. The share of dialogues that may still differ is then
    taken from Clopper and Pearson (1934): 1 - 0.025^(1 / C), each by as much as the metric's range allows.

    Args:
        measures: one a seed; only items that all of them have count.
        samples: resamples.
        seed: equal seeds give equal intervals.
        limits: the metric's range, to which the intervals are cut.
    """
    shared = shared_items(measures)
    if not shared[0].n:
        return None
    values = np.array([measure.value() for measure in shared])
    mean, count = float(values.mean()), len(values)
    clusters = len(np.unique(shared[0].clusters))
    if count == 1:
        alone = interval(shared[0], samples, seed)
        return SeedsInterval(mean, shared[0].n, _widened(alone, clusters, limits), None)
    half = float(student_t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / np.sqrt(count)
    over_seeds = _cut(mean, half, limits)
    drawn = _draw([shared], samples, numpy_rng(seed, "bootstrap"))
    both = None
    if drawn is not None and not np.isnan(mean):
        error, freedom = _error_and_freedom(drawn, [values])
        both = _cut(mean, max(half, float(student_t.ppf(0.975, freedom)) * error), limits)
    return SeedsInterval(mean, shared[0].n, _widened(both, clusters, limits), over_seeds)


def seeds_test(run: Sequence[Measure], baseline: Sequence[Measure], samples: int, seed: int) -> PairedTest | None:
    """Paired test of two systems with one or more seeds each, on the items that all seeds of both have.

    The difference is that of the means over seeds. Dialogues are drawn for both at once, seeds for each by itself, as
    in `seeds_interval`. With one seed each it is `bootstrap.paired_test`. None: fewer than two clusters are shared.
    """
    if len(run) == len(baseline) == 1:
        return paired_test(run[0], baseline[0], samples, seed)
    shared = shared_items([*run, *baseline])
    if not shared[0].n:
        return None
    mine, theirs = shared[: len(run)], shared[len(run) :]
    values = [np.array([measure.value() for measure in group]) for group in (mine, theirs)]
    difference = float(values[0].mean() - values[1].mean())
    drawn = _draw([mine, theirs], samples, numpy_rng(seed, "paired"))
    if drawn is None or np.isnan(difference):
        return None
    error, freedom = _error_and_freedom(drawn, values)
    return student_test(difference, error, freedom, drawn.clusters, shared[0].n)


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """Mean over seeds with its 95 % interval (None: unknown), the items of one seed, and each seed's value."""

    mean: float
    ci95: tuple[float, float] | None
    n: int
    values: tuple[float, ...]


def seed_summary(rows: Sequence[Mapping[str, Any]], low: float = 0.0, high: float = 1.0) -> SeedSummary:
    """Aggregate one metric over seeds from rows of metrics.json (`value`, `n`, `ci95`), one a seed.

    For figures whose items are not at hand, such as a judge's. The squared errors over seeds (s^2 / seeds) and over
    dialogues are added. The latter is the mean half-width of the seeds' own intervals: seeds share their test
    dialogues, so that it does not shrink with their number. What a seed and a dialogue do to each other is in both, so
    the interval is a little too wide rather than too narrow. One seed keeps its own. Bounds are cut to [low, high], the
    metric's range.
    """
    assert rows
    values = tuple(float(row["value"]) for row in rows)
    mean, n = float(np.mean(values)), min(int(row["n"]) for row in rows)
    own = [row["ci95"] for row in rows if row.get("ci95")]
    if len(values) == 1:
        return SeedSummary(mean, (float(own[0][0]), float(own[0][1])) if own else None, n, values)
    error = float(np.mean([bounds[1] - bounds[0] for bounds in own])) / (2 * _NORMAL_975) if own else 0.0
    parts = [(float(np.var(values, ddof=1)) / len(values), float(len(values) - 1)), (error**2, math.inf)]
    variance, freedom = _summed(parts)
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(variance)
    return SeedSummary(mean, _cut(mean, half, (low, high)), n, values)


def joint_draws(measures: Sequence[Measure], samples: int, rng: np.random.Generator) -> Floats:
    """Return float [R, M]: every measure on the same resamples of dialogues; those that leave one undefined are left
    out, so R may be smaller than `samples`. The measures hold the same items (see `shared_items`)."""
    assert all(measure.ids == measures[0].ids for measure in measures)
    sums = resampled_sums(
        cluster_sums(np.concatenate([m.stats for m in measures], axis=1), measures[0].clusters), samples, rng
    )
    ends = np.cumsum([0, *(m.stats.shape[1] for m in measures)])
    columns = [m.finish(sums[:, a:b]) for m, (a, b) in zip(measures, pairwise(ends), strict=True)]
    values_RM = np.stack(columns, axis=1)
    return values_RM[~np.isnan(values_RM).any(axis=1)]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Resamples of a mean over seeds (or of a difference of two).

    `dialogues` float [R]: with new dialogues and the seeds as they are; `seeds` float [R]: what new seeds add to each.
    """

    dialogues: Floats
    seeds: Floats
    clusters: int


def _draw(systems: Sequence[Sequence[Measure]], samples: int, rng: np.random.Generator) -> _Drawn | None:
    """Draw dialogues for all seeds of one or two systems at once, and seeds for each system by itself."""
    measures = [measure for system in systems for measure in system]
    clusters = len(np.unique(measures[0].clusters))
    if clusters < 2:
        return None
    values_RS = joint_draws(measures, samples, rng)
    if len(values_RS) < 2:
        return None
    dialogues, seeds = np.zeros(len(values_RS)), np.zeros(len(values_RS))
    start = 0
    for sign, system in zip((1, -1)[: len(systems)], systems, strict=True):
        count = len(system)
        part_RS = values_RS[:, start : start + count]
        start += count
        mean_R = part_RS.mean(axis=1)
        dialogues += sign * mean_R
        if count > 1:
            chosen_RS = rng.integers(count, size=part_RS.shape)
            drawn_R = np.take_along_axis(part_RS, chosen_RS, axis=1).mean(axis=1)
            seeds += sign * np.sqrt(count / (count - 1)) * (drawn_R - mean_R)
    return _Drawn(dialogues, seeds, clusters)


def _error_and_freedom(drawn: _Drawn, values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Standard error of the resampled value, and Satterthwaite's degrees of freedom of the variances in it."""
    clusters = drawn.clusters
    scaled = np.sqrt(clusters / (clusters - 1)) * (drawn.dialogues - drawn.dialogues.mean()) + drawn.seeds
    error = float(scaled.std(ddof=1))
    parts = [(float(drawn.dialogues.var(ddof=1)) * clusters / (clusters - 1), clusters - 1)]
    parts += [(float(v.var(ddof=1)) / len(v), len(v) - 1) for v in values if len(v) > 1]
    variance, freedom = _summed(parts)
    return error, freedom if variance > 0 else float(clusters - 1)


def _summed(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of (variance, degrees of freedom) and its own degrees of freedom (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / freedom for variance, freedom in parts)
    return total, total**2 / below if below > 0 else math.inf


def shared_items(measures: Sequence[Measure]) -> list[Measure]:
    """Return the measures on the items that all of them have, in one order, with the clusters of the first (they are
    numbered anew in each set of predictions); without any they are empty."""
    names = set(measures[0].ids).intersection(*(measure.ids for measure in measures[1:]))
    order = [name for name in measures[0].ids if name in names]
    found = []
    for measure in measures:
        place = {name: index for index, name in enumerate(measure.ids)}
        index = np.array([place[name] for name in order], dtype=np.int64)
        stats, clusters, rows = measure.stats[index], measure.clusters[index], measure.rows[index]
        found.append(replace(measure, stats=stats, clusters=clusters, rows=rows, ids=tuple(order)))
    return [replace(measure, clusters=found[0].clusters) for measure in found]


def _widened(
    found: tuple[float, float] | None, clusters: int, limits: tuple[float, float]
) -> tuple[float, float] | None:
    """An interval without any width, widened by the dialogues that may differ from all that were seen."""
    if found is None or found[1] - found[0] > 1e-9:
        return found
    share = 1 - 0.025 ** (1 / clusters)
    low, high = (end if np.isfinite(end) else found[0] for end in limits)
    return found[0] - share * (found[0] - low), found[1] + share * (high - found[1])


def _cut(middle: float, half: float, limits: tuple[float, float]) -> tuple[float, float]:
    return max(middle - half, limits[0]), min(middle + half, limits[1])
