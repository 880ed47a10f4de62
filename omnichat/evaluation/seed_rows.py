"""One figure of several seeds: mean, interval and paired test, over seeds and over test dialogues at once.

Two things make a figure uncertain: the seed of the training, and the choice of the test dialogues. Their variances are
added: the squared standard error over seeds (s^2 / seeds) and that over dialogues (bootstrap). The degrees of freedom
of the sum are Welch's and Satterthwaite's (Satterthwaite 1946). What a seed and a dialogue do to each other is in both
terms, so intervals are a little too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from omnichat.evaluation.bootstrap import Floats, Measure, PairedTest, paired_test
from omnichat.utils.seeding import numpy_rng

_NORMAL_975 = 1.959963984540054
_BLOCK = 256  # resamples at a time: bounds memory at block x clusters


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """Mean over seeds with its 95 % interval (None: unknown), the items of one seed, and each seed's value."""

    mean: float
    ci95: tuple[float, float] | None
    n: int
    values: tuple[float, ...]


def seed_summary(rows: Sequence[Mapping[str, Any]], low: float = 0.0, high: float = 1.0) -> SeedSummary:
    """Aggregate one metric over seeds, from rows of metrics.json (`value`, `n`, `ci95`), one a seed.

    The dialogues' part is the mean half-width of the seeds' own intervals: seeds share their test dialogues, so that it
    does not shrink with their number. One seed keeps its own interval. Bounds are cut to [low, high], the metric's
    range.
    """
    assert rows
    values = tuple(float(row["value"]) for row in rows)
    mean, n = float(np.mean(values)), min(int(row["n"]) for row in rows)
    own = [row["ci95"] for row in rows if row.get("ci95")]
    if len(values) == 1:
        return SeedSummary(mean, (float(own[0][0]), float(own[0][1])) if own else None, n, values)
    dialogues = float(np.mean([bounds[1] - bounds[0] for bounds in own])) / (2 * _NORMAL_975) if own else 0.0
    half, _ = _margin(values, dialogues, math.inf)
    return SeedSummary(mean, (max(low, mean - half), min(high, mean + half)), n, values)


def _margin(values: Sequence[float], dialogue_error: float, dialogue_freedom: float) -> tuple[float, float]:
    """Return (half-width of the 95 % interval, degrees of freedom) of a mean over two or more seeds."""
    over_seeds = float(np.var(values, ddof=1)) / len(values)
    total = over_seeds + dialogue_error**2
    if total == 0:
        return 0.0, math.inf
    spread = over_seeds**2 / (len(values) - 1) + dialogue_error**4 / dialogue_freedom
    freedom = total**2 / spread if spread > 0 else math.inf
    return float(student_t.ppf(0.975, freedom)) * math.sqrt(total), freedom


def seed_test(pairs: Sequence[tuple[Measure, Measure]], samples: int, seed: int) -> PairedTest | None:
    """Paired test of a recipe against a baseline over their common seeds; `pairs` are (recipe, baseline), one a seed.

    One pair is the paired bootstrap. With several, the difference is the mean over seeds, its error has both parts (see
    the module), and p is Student's. Items count where all measures have them. None where fewer than two clusters are
    shared.
    """
    assert pairs
    if len(pairs) == 1:
        return paired_test(*pairs[0], samples, seed)
    flat = _on_shared_items([measure for pair in pairs for measure in pair])
    if flat is None:
        return None
    differences = [a.value() - b.value() for a, b in zip(flat[::2], flat[1::2], strict=True)]
    draws = joint_draws(flat, samples, seed)
    means = (draws[:, ::2] - draws[:, 1::2]).mean(axis=1)
    means = means[~np.isnan(means)]
    if np.isnan(differences).any() or len(means) < 2:
        return None
    mean = float(np.mean(differences))
    half, freedom = _margin(differences, float(means.std(ddof=1)), len(np.unique(flat[0].clusters)) - 1)
    scale = half / float(student_t.ppf(0.975, freedom)) if half > 0 else 0.0
    p = float(2 * student_t.sf(abs(mean) / scale, freedom)) if scale > 0 else float(mean == 0)
    return PairedTest(mean, (mean - half, mean + half), max(p, 1 / (samples + 1)), flat[0].n)


def joint_draws(measures: Sequence[Measure], samples: int, seed: int) -> Floats:
    """Return float [samples, M]: every measure on the same resamples of dialogues.

    The measures hold the same items (see `shared_items`); nan where a resample leaves a measure undefined.
    """
    assert all(measure.ids == measures[0].ids for measure in measures)
    rng = numpy_rng(seed, "joint")
    _, compact = np.unique(measures[0].clusters, return_inverse=True)
    count = int(compact.max()) + 1
    sums = []
    for measure in measures:
        per_cluster = np.zeros((count, measure.stats.shape[1]))
        np.add.at(per_cluster, compact, measure.stats)
        sums.append(per_cluster)
    blocks = []
    for start in range(0, samples, _BLOCK):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(_BLOCK, samples - start))
        blocks.append(np.stack([m.finish(times @ part) for m, part in zip(measures, sums, strict=True)], axis=1))
    return np.concatenate(blocks)


def shared_items(measures: Sequence[Measure]) -> list[Measure]:
    """Return the measures on the items that all of them have, in one order; without any they are empty."""
    common = set(measures[0].ids).intersection(*(measure.ids for measure in measures[1:]))
    order = [name for name in measures[0].ids if name in common]
    found = []
    for measure in measures:
        place = {name: index for index, name in enumerate(measure.ids)}
        index = np.array([place[name] for name in order], dtype=np.int64)
        # clusters are numbered anew in each set of predictions: the first measure's numbers count for all
        first = {name: int(number) for name, number in zip(measures[0].ids, measures[0].clusters, strict=True)}
        clusters = np.array([first[name] for name in order], dtype=np.int64)
        found.append(Measure(measure.stats[index], clusters, measure.rows[index], measure.finish, tuple(order)))
    return found


def _on_shared_items(measures: Sequence[Measure]) -> list[Measure] | None:
    found = shared_items(measures)
    return found if len(np.unique(found[0].clusters)) > 1 else None
