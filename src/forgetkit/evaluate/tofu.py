"""TOFU's two numbers: forget quality (are truth ratios distributed as in a model never trained on it?), model utility.

Maini et al., 2024. Its sets: retain, real authors, world facts (utility) and forget. Conventions `tofu`
(locuslab/tofu) and `openunlearning` differ in the mean over wrong answers; see `memorization.truth_ratio`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.memorization import answer_probability, truth_ratio, truth_ratio_scores, verbatim_scores
from forgetkit.evaluate.significance import cumulative, resampled_weights
from forgetkit.evaluate.statistics import LEVEL, RESAMPLES, Estimate, Floats, Series
from forgetkit.evaluate.tokens import continue_greedily, decode_text, encode_answers, encode_text, measure_tokens

TofuConvention = Literal["tofu", "openunlearning"]
UTILITY_SETS = ("retain", "real_authors", "world_facts")
ANSWER_TOKENS = 200
_EXACT_CELLS = 2_000_000
_CHUNK = 500
_TINY = 1e-10


def ks_counts(a: Floats, b: Floats) -> int:
    """Largest |i m - j n| over x, with i of the n values of a and j of the m of b at most x; D = this / (n m)."""
    n, m = len(a), len(b)
    values = np.concatenate([a, b])
    below = [cumulative(values, flag[None].astype(np.float64))[0] for flag in _memberships(n, m)]
    return int(np.abs(np.rint(below[0] * m - below[1] * n)).max())


def _memberships(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.arange(n + m) < n
    return first, ~first


def ks_p_value(counts: int, n: int, m: int) -> float:
    """P(D_nm >= counts / (n m)) for two samples of n and m from one continuous distribution, two-sided.

    Exact up to 2,000,000 cells n m: of all C(n + m, n) lattice paths from (0, 0) to (n, m), the share that meets
    |i m - j n| >= counts, counted with whole numbers (so 1e-239 is that and not 0). Above: Kolmogorov's limit
    2 sum_k (-1)^(k-1) exp(-2 k^2 D^2 n m / (n + m)). Equal to `scipy.stats.ks_2samp` in the exact range.
    """
    if counts <= 0:
        return 1.0
    if n * m > _EXACT_CELLS:
        scaled = (counts / (n * m)) ** 2 * n * m / (n + m)
        if scaled < 0.04:
            return 1.0  # to 11 digits; the series alternates too slowly here
        terms = [(2.0 if k % 2 else -2.0) * math.exp(-2 * k * k * scaled) for k in range(1, 101)]
        return min(1.0, max(0.0, sum(terms)))
    inside = [0] * (m + 1)
    for i in range(n + 1):
        running = 0
        for j in range(m + 1):
            running += inside[j] if i else int(j == 0)
            if abs(i * m - j * n) >= counts:
                running = 0
            inside[j] = running
    every = math.comb(n + m, n)
    return float(Fraction(every - inside[m], every))


@dataclass(frozen=True)
class ForgetQuality:
    """statistic: KS distance D (0 = the same distribution), with its interval; p as TOFU reports it, and its log10.

    n, m: questions of either model. p alone says little: for the same models it falls with the number of questions.
    """

    statistic: Estimate
    p: float | None
    log10_p: float | None
    n: int
    m: int


def forget_quality(
    unlearned: Floats, retrained: Floats, *, paired: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test between truth ratios of the unlearned [n] and a retrained model [m].

    D = sup_x |F_u(x) - F_r(x)|, p from `ks_p_value`; the same for R and 1/R. The interval is D +- c, with c the 95%
    quantile over resamples of sup_x |(F_u* - F_u)(x) - (F_r* - F_r)(x)|: the plain bootstrap of D never reaches down to
    0, and holds the truth in far fewer than 95% of cases. paired: both answered the same questions, in the same order;
    they are resampled together.
    """
    a, b = np.asarray(unlearned, dtype=np.float64), np.asarray(retrained, dtype=np.float64)
    n, m = len(a), len(b)
    if n == 0 or m == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return ForgetQuality(Estimate(None, reason="not measured, or not finite"), None, None, n, m)
    if paired and n != m:
        raise ForgetkitError(
            f"{n} questions for the unlearned model and {m} for the retrained one",
            where="forget quality",
            remedy="ask both the same questions, or compare them unpaired",
        )
    counts = ks_counts(a, b)
    distance, reach = counts / (n * m), _ks_reach(a, b, paired, resamples, seed)
    p = ks_p_value(counts, n, m)
    log10_p = math.log10(p) if p > 0 else -math.inf
    return ForgetQuality(Estimate(distance, max(0.0, distance - reach), min(1.0, distance + reach)), p, log10_p, n, m)


def _ks_reach(a: Floats, b: Floats, paired: bool, resamples: int, seed: int) -> float:
    n, m = len(a), len(b)
    values = np.concatenate([a, b])
    first, second = (flag.astype(np.float64) for flag in _memberships(n, m))
    base = cumulative(values, (first / n - second / m)[None])
    generator = np.random.default_rng(seed)
    found: list[Floats] = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        one = resampled_weights(np.arange(n), np.full(n, 1 / n), size, generator)
        other = one if paired else resampled_weights(np.arange(m), np.full(m, 1 / m), size, generator)
        found.append(np.abs(cumulative(values, np.hstack([one, -other])) - base).max(1))
    return float(np.quantile(np.concatenate(found), LEVEL))


def forget_ratios(right: Floats, wrong: Floats, convention: TofuConvention = "tofu") -> Floats:
    """Truth ratios [n] that forget quality compares, from mean losses right [n] and wrong [n, k] (nats per token).

    `tofu`: exp(mean_j wrong_j - right), 1/R with the geometric mean; `openunlearning`: 1 / (R + 1e-10).
    """
    if convention == "tofu":
        return np.asarray(np.exp(np.asarray(wrong).mean(1) - right), dtype=np.float64)
    return 1 / (truth_ratio(right, wrong, "openunlearning") + _TINY)


def option_probability(right: Floats, wrong: Floats, convention: TofuConvention = "tofu") -> Floats:
    """p / (p + sum_j p_j) per question [n] from mean losses right [n] and wrong [n, k]; p = exp(-loss).

    For real authors and world facts, whose answers are short. `openunlearning` adds 1e-10 to the denominator.
    """
    p, others = np.exp(-np.asarray(right)), np.exp(-np.asarray(wrong)).sum(1)
    return np.asarray(p / (p + others + (_TINY if convention == "openunlearning" else 0.0)), dtype=np.float64)


@dataclass(frozen=True)
class TofuItem:
    """A question of a TOFU set. paraphrase: the right answer in other words, where the set has it; wrong: k answers."""

    question: str
    answer: str
    wrong: tuple[str, ...]
    paraphrase: str | None = None


@dataclass(frozen=True)
class TofuScores:
    """Per question [n]: mean loss per token of the answer, its paraphrase and wrong answers [n, k]; ROUGE-L recall."""

    answer: Floats
    paraphrase: Floats
    wrong: Floats
    rouge: Floats


@dataclass(frozen=True)
class UtilitySet:
    """Per question [n], each 0 to 1 and the higher the better: probability, ROUGE-L recall, truth ratio score."""

    probability: Floats
    rouge: Floats
    truth: Floats


def utility_set(scores: TofuScores, name: str, convention: TofuConvention = "tofu") -> UtilitySet:
    """The three numbers of one utility set per question; `retain` takes plain answer probabilities, others options'."""
    probability = (
        answer_probability(-scores.answer)
        if name == "retain"
        else option_probability(scores.answer, scores.wrong, convention)
    )
    ratios = truth_ratio(scores.paraphrase, scores.wrong, convention)
    return UtilitySet(probability, scores.rouge, truth_ratio_scores(ratios, "right_is_likelier"))


def harmonic_mean(values: Floats) -> Floats:
    """Harmonic mean over the first axis of values [k, ...]; 0 where any is 0, NaN where any is negative or NaN."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((values < 0).any(0), np.nan, len(values) / (1 / values).sum(0))


@dataclass(frozen=True)
class ModelUtility:
    """Harmonic mean of the nine, with its interval; parts: each of the nine by "set.number"; sizes: questions."""

    utility: Estimate
    parts: dict[str, float]
    sizes: dict[str, int]


def model_utility(sets: Mapping[str, UtilitySet], *, resamples: int = RESAMPLES, seed: int = 0) -> ModelUtility:
    """TOFU's model utility: harmonic mean of {retain, real authors, world facts} x {probability, ROUGE, truth ratio}.

    Interval: questions resampled within each set, the three numbers together. One of nine at 0 makes it 0. Raises
    ForgetkitError where a set is missing.
    """
    if missing := [name for name in UTILITY_SETS if name not in sets]:
        raise ForgetkitError(
            f"model utility lacks {', '.join(missing)}",
            where="TOFU",
            remedy=f"give all of {', '.join(UTILITY_SETS)}",
        )
    tables = {name: np.stack([sets[name].probability, sets[name].rouge, sets[name].truth]) for name in UTILITY_SETS}
    counts = {name: table.shape[1] for name, table in tables.items()}
    if not all(counts.values()) or not all(np.isfinite(table).all() for table in tables.values()):
        return ModelUtility(Estimate(None, reason="not measured, or not finite"), {}, counts)
    nine = np.concatenate([table.mean(1) for table in tables.values()])
    generator = np.random.default_rng(seed)
    draws = np.concatenate([_resampled_means(table, resamples, generator) for table in tables.values()])
    low, high = np.quantile(harmonic_mean(draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    names = [f"{name}.{number}" for name in UTILITY_SETS for number in ("probability", "rouge", "truth")]
    utility = Estimate(float(harmonic_mean(nine)), float(low), float(high))
    return ModelUtility(utility, dict(zip(names, nine.tolist(), strict=True)), counts)


def _resampled_means(table: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means [3, resamples] of table [3, n] with its columns resampled."""
    n = table.shape[1]
    parts = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        parts.append(table @ resampled_weights(np.arange(n), np.full(n, 1 / n), size, generator).T)
    return np.concatenate(parts, axis=1)


def forget_series(scores: TofuScores, convention: TofuConvention = "tofu") -> dict[str, Series]:
    """What TOFU tells of its forget set, per question: probability, ROUGE-L recall, truth ratio (closer to one)."""
    ratios = truth_ratio(scores.paraphrase, scores.wrong, convention)
    values = {
        "probability": answer_probability(-scores.answer),
        "rouge": scores.rouge,
        "truth": truth_ratio_scores(ratios, "closer_to_one"),
    }
    n = len(ratios)
    return {name: Series(value, np.ones(n), np.arange(n, dtype=np.int64)) for name, value in values.items()}


def measure_tofu(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[TofuItem],
    template: str = "Question: {question}\nAnswer:",
    tokens: int = ANSWER_TOKENS,
) -> TofuScores:
    """Losses of all answers and ROUGE-L recall (stemmed) of a greedy answer of at most `tokens` ids.

    template: what stands before " answer", with {question}; the benchmark's chat models were trained with their own.
    The EOS token after an answer is scored with it, as TOFU and OpenUnlearning do. Without a paraphrase the answer
    stands for it (real authors, world facts). Raises ForgetkitError where questions have unlike numbers of wrong
    answers, or none.
    """
    counts = {len(item.wrong) for item in questions}
    if len(counts) > 1 or 0 in counts:
        raise ForgetkitError(
            f"questions with {sorted(counts)} wrong answers",
            where="TOFU",
            remedy="give every question the same number of wrong answers, at least one",
        )
    k = counts.pop() if counts else 1
    prompts = [template.replace("{question}", item.question) for item in questions]
    answers = [[item.answer, item.paraphrase or item.answer, *item.wrong] for item in questions]
    pairs = [(prompt, f" {text}" if text else "") for prompt, row in zip(prompts, answers, strict=True) for text in row]
    rows, starts = encode_answers(tokenizer, pairs, end=True)
    losses = -measure_tokens(model, rows, starts, "answers").mean_log_p.reshape(len(questions), k + 2)
    bos_id = beginning(tokenizer)
    encoded = [encode_text(tokenizer, prompt, bos_id) for prompt in prompts]
    made = continue_greedily(model, encoded, tokens, tokenizer.eos_token_id, "questions")
    texts = [None if ids is None else decode_text(tokenizer, ids) for ids in made]
    recall, _ = verbatim_scores([item.answer for item in questions], texts, "tofu")
    return TofuScores(losses[:, 0], losses[:, 1], losses[:, 2:], recall)
