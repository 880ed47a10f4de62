"""The alpha curve: a smooth fit, and an interval of its optimum over seeds and test dialogues.

The fit is a Gaussian process (RBF kernel and noise, scikit-learn) through the means over seeds. Its length and noise
are found once, by the marginal likelihood of the measured means; with them fixed the fit is linear in the means, and a
resample costs one matrix product. A resample draws dialogues (the same for every arm and seed) and, in each arm, seeds
with replacement. The optimum is the maximum of the fit over the span of the measured values.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from omnichat.evaluation.bootstrap import Floats, Measure
from omnichat.evaluation.seeds import joint_draws, shared_items
from omnichat.utils.seeding import numpy_rng

LEAST_POINTS = 4
_GRID = 201
# shorter lengths than the steps between the measured values would let the fit swing between them
_LENGTHS = (0.3, 2.0)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The fit on a grid, its pointwise 95 % band, and where it is highest.

    Attributes:
        grid, fit, low, high: float [G].
        best: x of the fit's maximum on all data; `ci95`: over the resamples.
        best_value: the fit there.
        picked: share of the resamples in which each measured x had the highest mean, by x.
        seeds: the fewest seeds of a point; with one, the interval covers dialogues alone.
    """

    grid: Floats
    fit: Floats
    low: Floats
    high: Floats
    best: float
    best_value: float
    ci95: tuple[float, float]
    picked: dict[float, float]
    seeds: int


def fit_optimum(points: Sequence[tuple[float, Sequence[Measure]]], samples: int, seed: int) -> Optimum | None:
    """Fit the curve through `points`, (x, the metric of each seed), and bootstrap its optimum.

    Returns:
        None with fewer than four x, or where the measures share no two dialogues.
    """
    ordered = sorted((x, list(measures)) for x, measures in points if measures)
    if len({x for x, _ in ordered}) < LEAST_POINTS or len({x for x, _ in ordered}) < len(ordered):
        return None
    flat = shared_items([measure for _, measures in ordered for measure in measures])
    if len(np.unique(flat[0].clusters)) < 2:
        return None
    places = np.array([x for x, _ in ordered])
    counts = [len(measures) for _, measures in ordered]
    ends = np.cumsum(counts)
    values = np.array([measure.value() for measure in flat])
    means = np.array([values[end - n : end].mean() for n, end in zip(counts, ends, strict=True)])
    rng = numpy_rng(seed, "optimum")
    draws = joint_draws(flat, samples, rng)
    columns = []
    for n, end in zip(counts, ends, strict=True):
        chosen = rng.integers(n, size=(len(draws), n)) + (end - n)
        columns.append(np.take_along_axis(draws, chosen, axis=1).mean(axis=1))
    resampled = np.stack(columns, axis=1)
    if np.isnan(means).any() or len(resampled) < 2:
        return None
    grid = np.linspace(places[0], places[-1], _GRID)
    smooth = smoother(places, means, grid)
    curves = resampled @ smooth.T
    fit = smooth @ means
    tops = grid[curves.argmax(axis=1)]
    winners = places[resampled.argmax(axis=1)]
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    bounds = np.percentile(tops, [2.5, 97.5])
    return Optimum(
        grid,
        fit,
        low,
        high,
        float(grid[fit.argmax()]),
        float(fit.max()),
        (float(bounds[0]), float(bounds[1])),
        {float(x): float((winners == x).mean()) for x in places},
        min(counts),
    )


def smoother(places: Floats, means: Floats, grid: Floats) -> Floats:
    """Return float [G, P]: the matrix by which a Gaussian process turns means at `places` into its fit on `grid`.

    Its rows add up to 1, so that a constant stays what it is.
    """
    span = float(places[-1] - places[0])
    spread = float(means.std()) or 1.0
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(0.5, _LENGTHS) + WhiteKernel(0.1, (1e-3, 1e1))
    process = GaussianProcessRegressor(kernel, optimizer="fmin_l_bfgs_b", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is a flat or a straight curve
        process.fit(((places - places[0]) / span)[:, None], (means - means.mean()) / spread)
    signal, noise = process.kernel_.k1, process.kernel_.k2.noise_level
    inputs, outputs = ((places - places[0]) / span)[:, None], ((grid - places[0]) / span)[:, None]
    inner = signal(inputs) + noise * np.eye(len(places))
    weights = np.linalg.solve(inner, signal(outputs, inputs).T).T
    ones = np.ones(len(places)) / len(places)
    # the process is fitted to what is left of the mean, which is given back
    matrix: Floats = weights + (1 - weights.sum(axis=1, keepdims=True)) * ones
    return matrix
