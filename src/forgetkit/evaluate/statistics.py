"""Means, standard errors and paired bootstrap intervals over clusters (anchors, blocks).

Places of one anchor, and positions of one block, are not independent, so clusters are resampled, never single
positions. Every model is measured at the same positions, so the same resample serves all models ("paired").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 1_000  # resamples drawn at a time: bounds memory at 1,000 x clusters integers


@dataclass(frozen=True)
class Series:
    """One metric of one model at every unit it was measured at.

    values [n]: the metric per unit; weights [n]: units' weights (tokens of a block, 1 for a place);
    groups [n]: cluster of each unit.
    """

    values: Floats
    weights: Floats
    groups: Ints

    @property
    def finite(self) -> bool:
        """Whether there is at least one value and all of them are finite."""
        return len(self.values) > 0 and bool(np.isfinite(self.values).all())

    @property
    def mean(self) -> float:
        """Weighted mean; NaN without values."""
        return float((self.values * self.weights).sum() / self.weights.sum()) if len(self.values) else float("nan")

    @property
    def error(self) -> float:
        """Standard error of the mean, by clusters; NaN with fewer than two clusters.

        Linearised ratio estimator: sqrt(C/(C-1) sum_c (S_c - mean W_c)^2) / W. With one unit per cluster and
        equal weights this is the sample standard deviation over sqrt(n).
        """
        weight, sums = cluster_sums([self])
        clusters = len(weight)
        if clusters < 2:
            return float("nan")
        spread = ((sums[0] - self.mean * weight) ** 2).sum() * clusters / (clusters - 1)
        return float(np.sqrt(spread) / weight.sum())


class Estimate(NamedTuple):
    """A value with its interval, or None with the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def cluster_sums(series: Sequence[Series]) -> tuple[Floats, Floats]:
    """Per-cluster weights [C] and weighted sums [K, C] of K series measured at the same units."""
    first = series[0]
    for other in series[1:]:
        assert np.array_equal(first.groups, other.groups) and np.array_equal(first.weights, other.weights)
    _, inverse = np.unique(first.groups, return_inverse=True)
    weight = np.bincount(inverse, weights=first.weights).astype(np.float64)
    return weight, np.stack([np.bincount(inverse, weights=one.values * one.weights) for one in series])


def bootstrap_means(series: Sequence[Series], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means [K, resamples] of K series under one common resampling of their clusters."""
    weight, sums = cluster_sums(series)
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, _CHUNK):
        picked = generator.integers(0, len(weight), (min(_CHUNK, resamples - start), len(weight)))
        parts.append(sums[:, picked].sum(-1) / weight[picked].sum(-1))
    return np.concatenate(parts, axis=1)


def _interval(draws: Floats) -> tuple[float | None, float | None]:
    if not np.isfinite(draws).all():
        return None, None
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(a: Series, b: Series, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """mean(a) - mean(b) with its paired bootstrap interval (percentile, 95%)."""
    if not (a.finite and b.finite):
        return Estimate(None, reason="not measured, or not finite")
    draws = bootstrap_means([a, b], resamples=resamples, seed=seed)
    return Estimate(a.mean - b.mean, *_interval(draws[0] - draws[1]))


def way_to_reference(
    baseline: Series, unlearned: Series, reference: Series, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Share of the way from the baseline to the never-trained reference: (O - U) / (O - R).

    0 = unchanged, 1 = as the reference, above 1 = past it. Withheld where |O - R| < 2 standard errors of the
    paired
    difference: the probe cannot tell the two models apart there, so a share of nothing would be reported.
    """
    if not (baseline.finite and unlearned.finite and reference.finite):
        return Estimate(None, reason="not measured, or not finite")
    gap = baseline.mean - reference.mean
    error = Series(baseline.values - reference.values, baseline.weights, baseline.groups).error
    if not abs(gap) >= 2 * error or gap == 0:
        return Estimate(None, reason="baseline and reference differ by less than two standard errors")
    o, u, r = bootstrap_means([baseline, unlearned, reference], resamples=resamples, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (o - u) / (o - r)
    return Estimate((baseline.mean - unlearned.mean) / gap, *_interval(draws))


def ratio_of_means(a: Series, b: Series, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """mean(a) / mean(b) with its paired bootstrap interval (percentile, 95%); withheld unless mean(b) > 0."""
    if not (a.finite and b.finite):
        return Estimate(None, reason="not measured, or not finite")
    if not b.mean > 0:
        return Estimate(None, reason="nothing to divide by")
    draws = bootstrap_means([a, b], resamples=resamples, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = draws[0] / draws[1]
    return Estimate(a.mean / b.mean, *_interval(ratios))
