from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.memorization import truth_ratio
from forgetkit.evaluate.tofu import (
    TofuItem,
    TofuScores,
    UtilitySet,
    forget_quality,
    forget_ratios,
    forget_series,
    harmonic_mean,
    ks_counts,
    ks_p_value,
    measure_tofu,
    model_utility,
    option_probability,
    utility_set,
)
from forgetkit.evaluate.tokens import encode_text
from tests import toys


def slow_ks(a: np.ndarray, b: np.ndarray) -> float:
    return max(abs(float(np.mean(a <= x)) - float(np.mean(b <= x))) for x in [*a, *b])


@pytest.mark.parametrize("seed", range(10))
def test_distance_equals_a_slow_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=13).round(1), generator.normal(0.5, 1, 8).round(1)  # with ties
    assert ks_counts(a, b) / (13 * 8) == pytest.approx(slow_ks(a, b))


# counts, n, m, p of scipy.stats.ks_2samp 1.17.
SCIPY = [
    (15, 5, 5, 0.35714285714285715),
    (28, 7, 4, 0.0060606060606060615),
    (320, 40, 40, 0.404587405685253),
    (165, 40, 25, 0.7327259709388657),
    (34000, 400, 400, 2.5496506594547965e-08),
    (160000, 400, 400, 1.0635896769518578e-239),
]


@pytest.mark.parametrize(("counts", "n", "m", "p"), SCIPY)
def test_p_value_equals_scipys(counts: int, n: int, m: int, p: float) -> None:
    assert ks_p_value(counts, n, m) == pytest.approx(p, rel=1e-8)


def test_p_value_by_counting_all_orders() -> None:
    n, m = 4, 3
    distances = []
    for chosen in itertools.combinations(range(n + m), n):
        a = np.array(chosen, dtype=float)
        distances.append(ks_counts(a, np.array(sorted(set(range(n + m)) - set(chosen)), dtype=float)))
    for counts in range(n * m + 1):
        assert ks_p_value(counts, n, m) == pytest.approx(np.mean([d >= counts for d in distances]))
    assert ks_p_value(4, 2, 2) == pytest.approx(2 / 6)


def test_p_value_of_many_is_the_limit() -> None:
    assert ks_p_value(round(0.03 * 3000 * 3000), 3000, 3000) == pytest.approx(0.13437022652861094, rel=1e-9)
    assert ks_p_value(1, 3000, 3000) == 1.0


def test_forget_quality_by_hand() -> None:
    same = forget_quality(np.arange(40.0), np.arange(40.0))
    assert same.statistic.value == 0 and same.p == 1 and same.log10_p == 0 and (same.n, same.m) == (40, 40)
    apart = forget_quality(np.arange(40.0), np.arange(40.0) + 40)
    assert apart.statistic.value == 1 and apart.p == pytest.approx(2 / math.comb(80, 40))
    assert apart.log10_p == pytest.approx(math.log10(2 / math.comb(80, 40)))
    third = forget_quality(np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 9.0]))
    assert third.statistic.value == pytest.approx(1 / 3) and third.p == 1.0
    assert third.statistic.low == 0.0 and third.statistic.high is not None and third.statistic.high <= 1.0


def test_forget_quality_is_the_same_of_ratios_and_their_inverse() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.gamma(2, 1, 60), generator.gamma(3, 1, 60)
    one, other = forget_quality(a, b, resamples=300), forget_quality(1 / a, 1 / b, resamples=300)
    assert (one.statistic.value, one.p) == (other.statistic.value, other.p)
    assert one.statistic.low == pytest.approx(other.statistic.low, abs=1e-9)


@pytest.mark.parametrize(("shift", "true"), [(0.0, 0.0), (0.25, 0.0995), (0.8, 0.3108)])
@pytest.mark.parametrize("paired", [True, False])
def test_interval_of_the_distance_covers(shift: float, true: float, paired: bool) -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for k in range(150):
        common = generator.normal(size=100) * 0.7
        a, b = common + generator.normal(size=100) * math.sqrt(0.51), generator.normal(size=100) + shift
        if paired:
            b = common + generator.normal(size=100) * math.sqrt(0.51) + shift
        found = forget_quality(a, b, paired=paired, resamples=200, seed=k).statistic
        assert found.low is not None and found.high is not None
        hits += found.low - 1e-3 <= true <= found.high
    assert hits >= 134


def test_pairing_narrows_the_interval_of_the_distance() -> None:
    common = np.random.default_rng(0).normal(size=200)
    same = forget_quality(common, common, resamples=200).statistic
    assert same[:3] == (0.0, 0.0, 0.0)
    a, b = common + 0.05, common
    reach = []
    for paired in (True, False):
        found = forget_quality(a, b, paired=paired, resamples=500).statistic
        assert found.value is not None and found.high is not None
        reach.append(found.high - found.value)
    assert reach[0] < reach[1] / 2
    assert reach[1] == pytest.approx(1.36 * math.sqrt(2 / 200), rel=0.15)  # Smirnov's 5% point


def test_forget_quality_of_edge_cases() -> None:
    for broken in (np.array([]), np.array([1.0, np.nan])):
        assert forget_quality(broken, np.arange(2.0)).p is None
    with pytest.raises(ForgetkitError, match="same questions"):
        forget_quality(np.arange(3.0), np.arange(4.0))
    assert forget_quality(np.arange(3.0), np.arange(4.0), paired=False).p == 1.0


def test_ratios_and_options_by_hand() -> None:
    right, wrong = -np.log([0.5]), -np.log([[0.1, 0.4]])
    assert forget_ratios(right, wrong, "tofu") == pytest.approx([2.5])  # .5 / sqrt(.1 x .4)
    assert forget_ratios(right, wrong, "openunlearning") == pytest.approx([2.5])
    assert option_probability(right, wrong, "tofu") == pytest.approx([0.5])
    assert option_probability(np.array([800.0]), np.array([[800.0]]), "openunlearning").tolist() == [0.0]


def legacy_utility(sets: dict[str, TofuScores]) -> float:
    """`get_model_utility` of locuslab/tofu, number by number."""
    nine: list[float] = []
    for name, one in sets.items():
        true, false = np.exp(-one.answer), np.exp(-one.wrong)
        nine.append(float(np.mean(true if name == "retain" else true / (true + false.sum(1)))))
        nine.append(float(one.rouge.mean()))
        ratio = np.exp(-one.wrong).mean(-1) / np.exp(-one.paraphrase)
        nine.append(float(np.mean(np.maximum(0, 1 - ratio))))
    return 9 / sum(1 / x for x in nine)


def scores(seed: int, n: int) -> TofuScores:
    generator = np.random.default_rng(seed)
    answer, paraphrase = generator.gamma(1, 1, (2, n))
    return TofuScores(answer, paraphrase, generator.gamma(3, 1, (n, 4)), generator.uniform(size=n))


def test_model_utility_is_tofus() -> None:
    sets = {"retain": scores(0, 30), "real_authors": scores(1, 20), "world_facts": scores(2, 25)}
    found = model_utility({name: utility_set(one, name) for name, one in sets.items()}, resamples=500)
    assert found.utility.value == pytest.approx(legacy_utility(sets))
    assert found.utility.low is not None and found.utility.high is not None
    assert found.utility.low < legacy_utility(sets) < found.utility.high
    assert found.sizes == {"retain": 30, "real_authors": 20, "world_facts": 25} and len(found.parts) == 9
    assert found.parts["retain.rouge"] == pytest.approx(sets["retain"].rouge.mean())


def test_model_utility_by_hand_and_edge_cases() -> None:
    values = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.4, 0.3, 0.2, 1.0])
    assert float(harmonic_mean(values)) == pytest.approx(0.4665706644723308)
    assert float(harmonic_mean(np.array([0.0, 1.0]))) == 0.0 and math.isnan(float(harmonic_mean(np.array([-1.0, 1.0]))))
    names = ("retain", "real_authors", "world_facts")
    flat = {name: UtilitySet(*(np.full(3, x) for x in values[3 * i : 3 * i + 3])) for i, name in enumerate(names)}
    assert model_utility(flat, resamples=50).utility[:3] == pytest.approx((0.4665706644723308,) * 3)
    assert model_utility(flat | {"retain": UtilitySet(np.zeros(3), np.ones(3), np.ones(3))}).utility.value == 0.0
    empty = UtilitySet(np.zeros(0), np.zeros(0), np.zeros(0))
    assert model_utility(flat | {"retain": empty}).utility.value is None
    with pytest.raises(ForgetkitError, match="world_facts"):
        model_utility({name: flat[name] for name in names[:2]})


def test_forget_series_by_hand() -> None:
    one = TofuScores(np.array([math.log(2)]), np.array([math.log(4)]), np.array([[math.log(8)] * 2]), np.array([0.3]))
    told = forget_series(one)
    assert {name: series.mean for name, series in told.items()} == pytest.approx(
        {"probability": 0.5, "rouge": 0.3, "truth": 0.5}
    )


@pytest.mark.parametrize("shape", ["bytelevel", "sentencepiece"])
def test_measured_losses_by_slow_loop(shape: str) -> None:
    tokenizer = toys.tokenizer(shape)
    model = toys.model(vocab_size=len(tokenizer))
    questions = [
        TofuItem("Who barked at the Lion?", "Toto barked", ("Dorothy did", "a cat"), "It was Toto"),
        TofuItem("Where?", "In Kansas, in the midst of the prairies", ("by the sea", "in a castle")),
    ]
    found = measure_tofu(model, tokenizer, questions, tokens=5)
    for i, item in enumerate(questions):
        texts = [item.answer, item.paraphrase or item.answer, *item.wrong]
        prompt = f"Question: {item.question}\nAnswer:"
        begin = len(encode_text(tokenizer, prompt, beginning(tokenizer)))
        for text, loss in zip(texts, [found.answer[i], found.paraphrase[i], *found.wrong[i]], strict=True):
            row = [*encode_text(tokenizer, f"{prompt} {text}", beginning(tokenizer)), tokenizer.eos_token_id]
            labels = torch.tensor([[-100] * begin + row[begin:]])
            with torch.no_grad():
                slow = model(input_ids=torch.tensor([row]), labels=labels).loss
            assert loss == pytest.approx(float(slow), rel=1e-4)
        alone = measure_tofu(model, tokenizer, [item], tokens=5)
        assert alone.wrong[0] == pytest.approx(found.wrong[i], rel=1e-5)
    assert found.paraphrase[1] == found.answer[1] != found.paraphrase[0]
    assert truth_ratio(found.paraphrase, found.wrong, "tofu").shape == (2,)


def test_uneven_or_no_wrong_answers_are_told(trained: PreTrainedModel) -> None:
    for wrong in ((("a",), ("a", "b")), ((), ())):
        questions = [TofuItem("q", "a", answers) for answers in wrong]
        with pytest.raises(ForgetkitError, match="wrong answers"):
            measure_tofu(trained, toys.tokenizer(), questions)
    empty = measure_tofu(trained, toys.tokenizer(), [TofuItem("q", "", ("a",))], tokens=2)
    assert np.isnan([empty.answer[0], empty.rouge[0]]).all() and np.isfinite(empty.wrong).all()
