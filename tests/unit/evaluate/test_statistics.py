from __future__ import annotations

import numpy as np
import pytest

from forgetkit.evaluate.statistics import Series, bootstrap_means, paired_difference, way_to_reference


def flat(values: list[float]) -> Series:
    n = len(values)
    return Series(np.array(values), np.ones(n), np.arange(n))


def test_mean_and_error_by_hand() -> None:
    series = flat([1.0, 2.0, 3.0, 6.0])
    assert series.mean == 3.0
    assert series.error == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2)


def test_weights_are_tokens() -> None:
    series = Series(np.array([1.0, 4.0]), np.array([3.0, 1.0]), np.arange(2))
    assert series.mean == pytest.approx(7 / 4)


def test_error_grows_when_units_share_a_cluster() -> None:
    values = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    alone = Series(values, np.ones(8), np.arange(8))
    together = Series(values, np.ones(8), np.repeat([0, 1], 4))
    assert together.error == pytest.approx(0.5)  # two clusters: sd(0, 1) / sqrt(2)
    assert together.error > 2 * alone.error


def test_paired_interval_ignores_what_both_share() -> None:
    noise = np.random.default_rng(0).normal(0, 100, 200)
    estimate = paired_difference(flat((noise + 1).tolist()), flat(noise.tolist()))
    assert estimate.value == pytest.approx(1)
    assert estimate.low == pytest.approx(1) and estimate.high == pytest.approx(1)


def test_bootstrap_matches_a_slow_loop_and_is_seeded() -> None:
    series = Series(np.array([1.0, 5.0, 2.0, 8.0]), np.array([1.0, 2.0, 1.0, 1.0]), np.array([0, 0, 1, 2]))
    fast = bootstrap_means([series], resamples=50, seed=3)[0]
    generator = np.random.default_rng(3)
    for k, picked in enumerate(generator.integers(0, 3, (50, 3)).tolist()):
        units = [i for c in picked for i in range(4) if series.groups[i] == c]
        slow = sum(series.values[i] * series.weights[i] for i in units) / sum(series.weights[i] for i in units)
        assert fast[k] == pytest.approx(slow)


def test_interval_covers() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for k in range(200):
        estimate = paired_difference(
            flat(generator.normal(0.3, 1, 60).tolist()), flat([0.0] * 60), resamples=400, seed=k
        )
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 0.3 <= estimate.high
    assert 176 <= hits <= 199


def test_way() -> None:
    o, r = flat([1.0, 1.1, 0.9, 1.0]), flat([0.0, 0.1, 0.0, 0.1])
    assert way_to_reference(o, o, r).value == pytest.approx(0)
    assert way_to_reference(o, r, r).value == pytest.approx(1)
    half = flat(((o.values + r.values) / 2).tolist())
    estimate = way_to_reference(o, half, r)
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(0.5),) * 3


def test_way_is_withheld_where_the_probe_cannot_tell() -> None:
    o, r = flat([1.0, 0.0, 1.0, 0.0]), flat([0.0, 1.0, 0.0, 0.9])
    estimate = way_to_reference(o, o, r)
    assert estimate.value is None and "two standard errors" in str(estimate.reason)
    assert way_to_reference(o, o, o).value is None
    assert way_to_reference(o, flat([np.nan] * 4), r).value is None
