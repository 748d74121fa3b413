from __future__ import annotations

import math

import numpy as np
import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.significance import (
    compare_paired,
    cumulative,
    equivalence,
    estimate_mean,
    holm,
    items,
    resampled_weights,
    sizes,
    smallest_margin,
    student_t_cdf,
    student_t_quantile,
)
from forgetkit.evaluate.statistics import Estimate, Series


def test_mean_and_its_interval() -> None:
    series = items([1.0, 2.0, 3.0, 4.0])
    estimate = estimate_mean(series)
    assert estimate.value == 2.5
    assert estimate.low is not None and estimate.high is not None
    assert 1.25 <= estimate.low < 2.0 and 3.0 < estimate.high <= 3.75
    assert estimate_mean(items([])).value is estimate_mean(items([1.0, np.nan])).value is None
    assert estimate_mean(items([1.0, 2.0], groups=[7, 7])) == Estimate(1.5)  # one cluster: no interval, no certainty
    assert sizes(items([1.0, 2.0, 3.0], groups=[7, 7, 9])).clusters == 2


def test_sign_flips_by_hand() -> None:
    # Differences 1, 2, 3: of the 8 sign vectors only +++ and --- reach |6|.
    comparison = compare_paired(items([1.0, 2.0, 3.0]), items([0.0, 0.0, 0.0]))
    assert comparison.difference.value == 2 and comparison.p == 2 / 8
    # 3, -1: |2| is reached by (+,-), (-,+), (+,+) and (-,-): all four.
    assert compare_paired(items([3.0, 0.0]), items([0.0, 1.0])).p == 1
    # The same three differences in one cluster: 2 vectors, both reach it.
    assert compare_paired(items([1.0, 2.0, 3.0], [4, 4, 4]), items([0.0] * 3, [4, 4, 4])).p == 1


def test_sign_flips_drawn_agree_with_all() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 12)
    every = compare_paired(items(values), items(np.zeros(12)), resamples=4096).p
    drawn = compare_paired(items(values), items(np.zeros(12)), resamples=4095).p
    assert every is not None and drawn is not None and drawn == pytest.approx(every, abs=0.02)


def test_sign_flips_hold_their_level() -> None:
    generator = np.random.default_rng(0)
    ps = [compare_paired(items(generator.normal(size=10)), items(np.zeros(10)), resamples=1024).p for _ in range(300)]
    assert 3 <= sum(p is not None and p <= 0.05 for p in ps) <= 28


def test_t_of_the_tables() -> None:
    told = [
        (0.5, 1, 0.6475836176504333),
        (2.0, 2, 0.908248290463863),
        (-1.3, 3, 0.14223375436394853),
        (2.5, 10, 0.9842765778816955),
        (1.96, 31, 0.9704810026391941),
        (-4, 200, 4.456547609296721e-05),
    ]
    for t, freedom, expected in told:
        assert student_t_cdf(t, freedom) == pytest.approx(expected, rel=1e-10)
    for freedom, t in (
        (1, 6.313751514675037),
        (4, 2.1318467863266495),
        (9, 1.833112932656237),
        (30, 1.697260886593957),
    ):
        assert student_t_quantile(0.95, freedom) == pytest.approx(t, rel=1e-9)
    assert student_t_quantile(0.05, 4) == pytest.approx(-2.1318467863266495, rel=1e-9)


def test_equivalence_t_by_hand() -> None:
    a = items([0.1, -0.1, 0.1, -0.1, 0.1])  # mean .02, sd sqrt(.048 / 4) = .10954, error .048990
    found = equivalence(a, items(np.zeros(5)), 0.2, method="t")
    assert found.difference.value == pytest.approx(0.02)
    assert found.p == pytest.approx(student_t_cdf((0.02 - 0.2) / 0.0489898, 4), rel=1e-5)
    assert found.difference.high == pytest.approx(0.02 + 2.1318468 * 0.0489898, rel=1e-5)
    assert found.equivalent and found.sizes.clusters == 5
    narrow = equivalence(a, items(np.zeros(5)), 0.1, method="t")
    assert narrow.equivalent is False and narrow.p is not None and narrow.p > 0.05


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_equivalence_is_the_interval_within_the_margin(method: str) -> None:
    generator = np.random.default_rng(1)
    for k in range(20):
        a = items(generator.normal(0.05, 0.3, 40))
        found = equivalence(a, items(np.zeros(40)), 0.13, method=method, seed=k)  # type: ignore[arg-type]
        assert found.difference.low is not None and found.difference.high is not None
        assert found.equivalent == (found.difference.low > -0.13 and found.difference.high < 0.13)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_equivalence_errs_at_most_at_its_level(method: str) -> None:
    generator = np.random.default_rng(2)
    wrong = 0
    for k in range(300):  # the true difference is the margin: they are not equivalent
        a = items(generator.normal(0.2, 0.5, 60))
        found = equivalence(a, items(np.zeros(60)), 0.2, method=method, resamples=400, seed=k)  # type: ignore[arg-type]
        wrong += bool(found.equivalent)
    assert 4 <= wrong <= 30


def test_equivalence_of_edge_cases() -> None:
    same = equivalence(items([1.0, 2.0, 3.0]), items([1.0, 2.0, 3.0]), 0.1, method="t")
    assert same.equivalent and same.p == 0
    assert equivalence(items([2.0, 3.0]), items([1.0, 2.0]), 0.5, method="t").equivalent is False
    assert equivalence(items([1.0, np.nan]), items([1.0, 2.0]), 0.5).equivalent is None
    assert equivalence(items([1.0]), items([1.0]), 0.5).equivalent is None
    for margin in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ForgetkitError, match="margin"):
            equivalence(items([1.0, 2.0]), items([1.0, 2.0]), margin)
    with pytest.raises(ForgetkitError, match="same items"):
        equivalence(items([1.0, 2.0]), items([1.0]), 0.5)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == [] and holm([None]) == [None]
    assert holm([None, 0.02, float("nan"), 0.01]) == [None, 0.02, None, 0.02]


def test_smallest_margin_by_hand() -> None:
    # z(.95) + z(.9) = 1.644854 + 1.281552
    assert smallest_margin(0.05) == pytest.approx(0.146320, abs=1e-6)
    assert smallest_margin(0.05, power=0.9) > smallest_margin(0.05) and smallest_margin(0.0) == 0


def test_smallest_margin_is_shown_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    margin = smallest_margin(1 / math.sqrt(200))
    draws = generator.normal(0, 1, (400, 200))
    shown = [equivalence(items(d), items(np.zeros(200)), margin, method="t").equivalent for d in draws]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.05)


def test_weights_and_cumulative_sums_by_slow_loops() -> None:
    groups, weights = np.array([5, 5, 2, 9]), np.array([1.0, 2.0, 1.0, 3.0])
    drawn = resampled_weights(groups, weights, 200, np.random.default_rng(0))
    counts = drawn / weights
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, [0, 2, 3]].sum(1) == 3).all()
    assert drawn.mean(0) == pytest.approx(weights, rel=0.2)
    values = np.array([2.0, 1.0, 2.0, 3.0])
    found = cumulative(values, drawn)
    for row, own in zip(found, drawn, strict=True):
        assert row.tolist() == [own[values <= x].sum() for x in (1.0, 2.0, 3.0)]


def test_series_of_other_items_are_refused() -> None:
    a = items([1.0, 2.0])
    with pytest.raises(ForgetkitError, match="same items"):
        compare_paired(a, Series(a.values, a.weights, a.groups + 1))
