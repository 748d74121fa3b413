"""Is the text itself still in the model: verbatim continuation, exact memorisation, probability, truth ratio.

Token-level measures take the `TokenScores` of `tokens.measure_tokens`. A text or answer without tokens is "not
measured" (NaN), never 0, which would read as forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.rouge import Convention, longest_run, rouge_l
from forgetkit.evaluate.significance import estimate_mean
from forgetkit.evaluate.statistics import RESAMPLES, Estimate, Floats, Series
from forgetkit.evaluate.tokens import TokenScores, decode_text, encode_text

VERBATIM_TOKENS = 128
_TINY = 1e-10  # OpenUnlearning's guard against division by zero


def exact_memorization(scores: TokenScores) -> Floats:
    """Share of an answer's tokens that are the model's first choice, teacher-forced: EM = mean_t [argmax_t = y_t].

    One value per text [n]. Equal logits share the credit: a constant model must not be right everywhere. OpenUnlearning
    (Tirumala et al., 2022); it scores labels that end in EOS and leaves the last one out, which is the answer without
    EOS here. High for models that never saw the text (about 0.6 on TOFU): only differences tell anything.
    """
    return scores.text_means(scores.hit)


def answer_probability(mean_log_p: Floats) -> Floats:
    """exp(mean_t log p(y_t | y_<t)) = p(answer | question)^(1/tokens), one value per text [n].

    `tofu` and `openunlearning` alike; both count the EOS token after the answer (`encode_answers(..., end=True)`).
    """
    return np.asarray(np.exp(mean_log_p), dtype=np.float64)


def perplexity(loss: Series, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """exp(total loss / total tokens) over all texts, with the interval of the mean loss, exponentiated.

    loss: nats per token of every text, weighted by its tokens (`TokenScores.loss`).
    """
    mean = estimate_mean(loss, resamples=resamples, seed=seed)
    value, low, high = (None if x is None else float(np.exp(x)) for x in mean[:3])
    return Estimate(value, low, high, mean.reason)


def truth_ratio(right: Floats, wrong: Floats, convention: Literal["tofu", "openunlearning"]) -> Floats:
    """R = p(wrong answers) / p(right answer) per question [n]; 1: cannot tell them apart, 0: knows the right one.

    right [n], wrong [n, k]: mean loss per token (nats) of the paraphrased right answer and of k wrong ones;
    p = exp(-loss).
    `tofu` (locuslab/tofu, model utility): R = mean_j p_j / p. `openunlearning`: R = exp(-mean_j loss_j) / (p + 1e-10),
    the geometric mean; TOFU's own forget quality uses that one too, without the 1e-10.
    """
    right, wrong = np.asarray(right, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if wrong.ndim != 2 or wrong.shape[0] != len(right) or wrong.shape[1] == 0:
        raise ForgetkitError(
            f"losses of wrong answers of shape {list(wrong.shape)} for {len(right)} questions",
            where="truth ratio",
            remedy="give at least one wrong answer for every question, and the same number for all",
        )
    if convention == "openunlearning":
        return np.asarray(np.exp(-wrong.mean(1)) / (np.exp(-right) + _TINY), dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(right[:, None] - wrong).mean(1), dtype=np.float64)


def truth_ratio_scores(ratios: Floats, aim: Literal["closer_to_one", "right_is_likelier", "probability"]) -> Floats:
    """What is averaged over questions [n], each 0 to 1.

    `closer_to_one`: min(R, 1/R), for the forget set; `right_is_likelier`: max(0, 1 - R), for the rest (`tofu` and
    `openunlearning` alike); `probability`: 1 / (1 + R) = p / (p + p_wrong), OpenUnlearning's newer form.
    """
    if aim == "probability":
        return 1 / (1 + ratios)
    if aim == "right_is_likelier":
        return np.maximum(0, 1 - ratios)
    with np.errstate(divide="ignore"):
        return np.minimum(ratios, 1 / ratios)


@dataclass(frozen=True)
class Passage:
    """Ids of a prefix (with its BOS token, if any) and of what really follows it."""

    prefix: Sequence[int]
    suffix: Sequence[int]


def encode_passages(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    tokens: int = VERBATIM_TOKENS,
    convention: Convention = "muse",
) -> list[Passage]:
    """Passages of (prompt, truth) texts, tokenised apart.

    `muse` cuts the truth to its first `tokens` ids, of which a BOS token is one; the others keep all of it.
    """
    bos_id = beginning(tokenizer)
    limit = tokens - (bos_id is not None) if convention == "muse" else None
    return [
        Passage(encode_text(tokenizer, prompt, bos_id), encode_text(tokenizer, truth, None)[:limit])
        for prompt, truth in pairs
    ]


@dataclass(frozen=True)
class VerbatimScores:
    """Per passage [n]: ROUGE-L recall and F1 of the continuation, its longest run of ids that is in the truth.

    length: ids of the truth. NaN: a truth without words (ROUGE) or ids (run), or logits that were not finite.
    """

    recall: Floats
    f1: Floats
    run: Floats
    length: Floats


def verbatim_scores(truths: Sequence[str], made: Sequence[str | None], convention: Convention) -> tuple[Floats, Floats]:
    """ROUGE-L recall [n] and F1 [n] of continuations; NaN where the truth has no words or nothing could be made."""
    pairs = zip(truths, made, strict=True)
    found = [rouge_l(truth, "" if text is None else text, convention) for truth, text in pairs]
    kept = np.array([text is not None for text in made], dtype=bool)
    recall, f1 = (np.array([getattr(r, name) for r in found], dtype=np.float64) for name in ("recall", "f1"))
    return np.where(kept, recall, np.nan), np.where(kept, f1, np.nan)


def score_verbatim(
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage],
    made: Sequence[Sequence[int] | None],
    convention: Convention = "muse",
) -> VerbatimScores:
    """Greedy continuations (`tokens.continue_greedily`; None: logits were not finite) against what really follows.

    MUSE's VerbMem (Shi et al., 2024) is the mean F1 under `muse`, times 100; recall is the share of the truth that
    comes back, whatever else is said. The run is the longest stretch of ids reproduced without a gap, at any place.
    """
    truths = [decode_text(tokenizer, p.suffix) for p in passages]
    texts = [None if ids is None else decode_text(tokenizer, ids) for ids in made]
    recall, f1 = verbatim_scores(truths, texts, convention)
    runs = [
        float("nan") if ids is None or not len(p.suffix) else float(longest_run(p.suffix, ids))
        for p, ids in zip(passages, made, strict=True)
    ]
    return VerbatimScores(recall, f1, np.array(runs), np.array([len(p.suffix) for p in passages], dtype=np.float64))
