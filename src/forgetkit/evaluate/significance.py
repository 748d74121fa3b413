"""How sure is a difference: paired tests, equivalence, many tests at once, and what the items can show at all.

Every result leads with an effect and its interval. A p-value stands beside it and never alone: with enough items any
difference is significant, and with few none is, so it measures the number of items as much as the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.statistics import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Floats,
    Ints,
    Series,
    bootstrap_means,
    cluster_sums,
    paired_difference,
)

_CHUNK = 1_000
_UNMEASURED = "not measured, or not finite"


@dataclass(frozen=True)
class Sizes:
    """Sample sizes that belong to a number: units measured, and the clusters that are independent of one another."""

    units: int
    clusters: int


def sizes(series: Series) -> Sizes:
    """Units and clusters of a series."""
    return Sizes(len(series.values), len(np.unique(series.groups)))


def items(values: Sequence[float] | Floats, groups: Sequence[int] | Ints | None = None) -> Series:
    """A series of equally weighted values [n]; groups int[n]: their clusters, each value its own by default."""
    array = np.asarray(values, dtype=np.float64)
    clusters = np.arange(len(array)) if groups is None else np.asarray(groups)
    return Series(array, np.ones(len(array)), clusters.astype(np.int64))


def estimate_mean(series: Series, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Weighted mean with its percentile bootstrap interval (95%, clusters resampled); one cluster: no interval."""
    if not series.finite:
        return Estimate(None, reason=_UNMEASURED)
    if sizes(series).clusters < 2:
        return Estimate(series.mean)
    low, high = np.quantile(bootstrap_means([series], resamples=resamples, seed=seed)[0], _tails(LEVEL))
    return Estimate(series.mean, float(low), float(high))


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _paired(a: Series, b: Series) -> Series:
    if not (np.array_equal(a.groups, b.groups) and np.array_equal(a.weights, b.weights)):
        raise ForgetkitError(
            f"a paired comparison needs the same items on both sides, here {len(a.values)} and {len(b.values)}",
            where="evaluate",
            remedy="measure both models on the same items",
        )
    return Series(a.values - b.values, a.weights, a.groups)


@dataclass(frozen=True)
class Comparison:
    """mean(a) - mean(b) with its interval; p: two-sided, of no difference; None where not measured."""

    difference: Estimate
    p: float | None
    sizes: Sizes


def compare_paired(a: Series, b: Series, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Paired difference with a sign-flip test over clusters.

    Under "no difference" the sign of every cluster's difference S_c is a coin: p is the share of sign vectors s with
    |sum_c s_c S_c| >= |sum_c S_c|. All 2^C of them where these are at most `resamples`, else that many drawn ones and
    the observed one: p >= 1 / (resamples + 1). Fisher, 1935; exact for symmetric differences.
    """
    both = _paired(a, b)
    if not both.finite:
        return Comparison(Estimate(None, reason=_UNMEASURED), None, sizes(both))
    sums = cluster_sums([both])[1][0]
    observed = abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    if 2.0 ** len(sums) <= resamples:
        flips = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
        p = float(np.mean(np.abs(flips @ sums) >= observed))
    else:
        generator = np.random.default_rng([seed, 1])
        hits = 0
        for start in range(0, resamples, _CHUNK):
            flips = generator.integers(0, 2, (min(_CHUNK, resamples - start), len(sums))) * 2.0 - 1.0
            hits += int((np.abs(flips @ sums) >= observed).sum())
        p = (1 + hits) / (resamples + 1)
    return Comparison(paired_difference(a, b, resamples=resamples, seed=seed), p, sizes(both))


@dataclass(frozen=True)
class Equivalence:
    """Is |mean(a) - mean(b)| < margin shown? difference: interval of 1 - 2 level; p: of "they differ by the margin".

    equivalent None: not measured. False is "not shown", not "they differ".
    """

    difference: Estimate
    margin: float
    p: float | None
    equivalent: bool | None
    sizes: Sizes


def equivalence(
    a: Series,
    b: Series,
    margin: float,
    *,
    level: float = 0.05,
    method: Literal["bootstrap", "t"] = "bootstrap",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Equivalence:
    """Two one-sided tests (TOST, Schuirmann 1987) on paired differences d = mean(a) - mean(b).

    Equivalent at `level` where both d <= -margin and d >= margin are refused, which is the same as the interval of
    1 - 2 level lying within the margin; p is the larger of the two. `bootstrap`: p = (1 + resamples beyond the margin)
    / (resamples + 1), clusters resampled. `t`: (d +- margin) / standard error by clusters against Student's t with
    C - 1 degrees of freedom; the better one below some 30 clusters C, where the bootstrap is too sure.

    Raises ForgetkitError for a margin that is not positive, a level outside (0, 0.5), or unlike items.
    """
    if not (0 < margin < math.inf and 0 < level < 0.5):
        raise ForgetkitError(
            f"margin {margin} and level {level} make no equivalence test",
            where="evaluate",
            remedy="give a margin above 0 in the metric's own unit and a level between 0 and 0.5",
        )
    both = _paired(a, b)
    size = sizes(both)
    if not both.finite:
        return Equivalence(Estimate(None, reason=_UNMEASURED), margin, None, None, size)
    if size.clusters < 2:
        reason = "one cluster alone has no spread"
        return Equivalence(Estimate(both.mean, reason=reason), margin, None, None, size)
    if method == "t":
        p, low, high = _tost_t(both.mean, both.error, margin, size.clusters - 1, level)
    else:
        draws = bootstrap_means([both], resamples=resamples, seed=seed)[0]
        beyond = max(int((draws <= -margin).sum()), int((draws >= margin).sum()))
        p = (1 + beyond) / (resamples + 1)
        low, high = (float(q) for q in np.quantile(draws, [level, 1 - level]))
    return Equivalence(Estimate(both.mean, low, high), margin, p, p < level, size)


def _tost_t(mean: float, error: float, margin: float, freedom: int, level: float) -> tuple[float, float, float]:
    if error == 0:
        return float(abs(mean) >= margin), mean, mean
    p = max(student_t_cdf(-(mean + margin) / error, freedom), student_t_cdf((mean - margin) / error, freedom))
    reach = error * student_t_quantile(1 - level, freedom)
    return p, mean - reach, mean + reach


def student_t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for Student's t with a whole number of degrees of freedom.

    Finite series in theta = atan(t / sqrt(freedom)): Abramowitz and Stegun, 26.7.3 and 26.7.4. Absolute error near
    1e-16, so tails below that are 0.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(theta) ** 2
    odd = freedom % 2
    term, total = (math.cos(theta) if odd else 1.0), 0.0
    for k in range(freedom // 2):
        total += term
        term *= cos2 * (2 * k + 2) / (2 * k + 3) if odd else cos2 * (2 * k + 1) / (2 * k + 2)
    area = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
    return min(1.0, max(0.0, (1 + area) / 2))


def student_t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, by bisection (1e-12 relative)."""
    low, high = -1.0, 1.0
    while student_t_cdf(low, freedom) > probability:
        low *= 2
    while student_t_cdf(high, freedom) < probability:
        high *= 2
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the given order; None (not measured) stays and is not counted.

    With p_(1) <= ... <= p_(m): adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)). Calling all below `level`
    significant errs at least once with a probability of at most `level`, whatever the dependence. Holm, 1979.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    told = [(p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    running = 0.0
    for k, (p, i) in enumerate(sorted(told)):
        running = max(running, min(1.0, (len(told) - k) * p))
        adjusted[i] = running
    return adjusted


def smallest_margin(error: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest margin within which these items can be expected to show equivalence where there is no difference.

    error: standard error e of the paired difference, in the unit of the margin. By normal theory the two one-sided
    tests both refuse with probability `power` where margin = (z(1 - level) + z((1 + power) / 2)) e. A larger one than
    the margin asked for says that "not shown" is for want of items.
    """
    z = NormalDist().inv_cdf
    return (z(1 - level) + z((1 + power) / 2)) * error


def resampled_weights(groups: Ints, weights: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Weights [resamples, n] of n units under resampling of their clusters with replacement."""
    _, inverse = np.unique(groups, return_inverse=True)
    clusters = int(inverse.max()) + 1
    counts = generator.multinomial(clusters, np.full(clusters, 1 / clusters), resamples)
    return np.asarray(counts[:, inverse] * weights, dtype=np.float64)


def cumulative(values: Floats, weights: Floats) -> Floats:
    """Weight of all units with at most each distinct value: [B, U] of values [n], weights [B, n].

    The U distinct values are in rising order.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return np.asarray(np.cumsum(weights[:, order], axis=1)[:, ends])
