"""Does the model still know what the text says: short answers to questions, and multiple choice without its biases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.memorization import verbatim_scores
from forgetkit.evaluate.rouge import Convention
from forgetkit.evaluate.significance import Comparison, Sizes, compare_paired, estimate_mean, items, sizes
from forgetkit.evaluate.statistics import RESAMPLES, Estimate, Floats, Ints
from forgetkit.evaluate.tokens import continue_greedily, decode_text, encode_text, measure_next, measure_tokens

ANSWER_TOKENS = 32
_STOPS = ("\n\n", "\nQuestion", "Question:")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST_PERMUTED = 4


@dataclass(frozen=True)
class Question:
    """A question with its short answer."""

    question: str
    answer: str


def knowmem_prompt(question: str, shots: Sequence[Question] = ()) -> str:
    """MUSE's prompt: answered questions, then the question; it ends in "Answer: ", with the space."""
    shown = "".join(f"Question: {shot.question}\nAnswer: {shot.answer}\n\n" for shot in shots)
    return f"{shown}Question: {question}\nAnswer: "


def cut_answer(text: str) -> str:
    """`text` up to where the model would ask itself the next question (MUSE: an empty line or "Question:")."""
    for stop in _STOPS:
        text = text.split(stop)[0]
    return text


@dataclass(frozen=True)
class KnowmemScores:
    """Per question [n]: ROUGE-L recall and F1 of the answer, and the answer; NaN and None where not measured."""

    recall: Floats
    f1: Floats
    answers: list[str | None]


def measure_knowmem(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    shots: Sequence[Question] = (),
    tokens: int = ANSWER_TOKENS,
    convention: Convention = "muse",
) -> KnowmemScores:
    """KnowMem of MUSE (Shi et al., 2024): ROUGE-L of greedy answers of at most `tokens` ids after `shots` examples.

    MUSE's number is the mean F1 under `muse` (10 shots), times 100; `openunlearning` is the same with a stemmer.
    """
    bos_id = beginning(tokenizer)
    prompts = [encode_text(tokenizer, knowmem_prompt(q.question, shots), bos_id) for q in questions]
    made = continue_greedily(model, prompts, tokens, tokenizer.eos_token_id, "questions")
    answers = [None if ids is None else cut_answer(decode_text(tokenizer, ids)) for ids in made]
    return KnowmemScores(*verbatim_scores([q.answer for q in questions], answers, convention), answers)


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question; answer: index of the right one of its options."""

    question: str
    options: tuple[str, ...]
    answer: int


Orders = Literal["rotations", "permutations", "as_written"]


def option_orders(n: int, how: Orders = "rotations") -> Ints:
    """Orders [R, n] in which n options are shown: orders[r, position] = option.

    `rotations`: n of them; `permutations`: all n!, for up to 4 options; `as_written`: one. In the first two every
    option stands equally often at every position.
    """
    if how == "permutations":
        if n > _MOST_PERMUTED:
            raise ForgetkitError(
                f"{n} options have {math.factorial(n)} permutations",
                where="multiple choice",
                remedy="use rotations for questions of more than 4 options",
            )
        return np.array(list(itertools.permutations(range(n))), dtype=np.int64)
    rotations = (np.arange(n)[:, None] + np.arange(n)[None]) % n
    return rotations[:1] if how == "as_written" else rotations


def choice_prompt(question: str | None, options: Sequence[str], order: Sequence[int]) -> str:
    """Prompt in the form of MMLU and WMDP: question, lettered options, "Answer:"; None: options alone."""
    lines = [] if question is None else [question.strip()]
    lines += [f"{LETTERS[position]}. {options[option]}" for position, option in enumerate(order)]
    return "\n".join([*lines, "Answer:"])


def debias(log_p: Floats, orders: Ints) -> Floats:
    """Score per option [K] (nats, exp sums to 1) from log-probabilities [R, K] of the letters under orders [R, K].

    score_o = mean_r log( p_r(letter of o) / sum of p_r over letters ), normalised. A liking for a letter or position
    that multiplies its probability cancels, as every option has every position equally often (cyclic permutation,
    Zheng et al., 2024).
    """
    normal = log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True)
    placed = np.empty_like(normal)
    np.put_along_axis(placed, orders, normal, axis=1)
    mean = placed.mean(0)
    return np.asarray(mean - np.logaddexp.reduce(mean))


def credit(scores: Floats, answer: int) -> float:
    """1 if `answer` alone has the highest score, 1/k in a tie of k for it, else 0; NaN where any score is NaN."""
    if np.isnan(scores).any():
        return float("nan")
    top = scores >= scores.max() - 1e-12
    return float(top[answer] / top.sum())


@dataclass(frozen=True)
class ChoiceScores:
    """Per question [n], from the debiased scores: credit for the right option, its probability.

    plain: credit in the written order alone. agreement: share of orders whose own first choice is the debiased one.
    chance: 1 / number of options. picked [26]: how often each letter was the first choice, over all orders.
    """

    correct: Floats
    probability: Floats
    plain: Floats
    agreement: Floats
    chance: Floats
    picked: Floats

    @property
    def letter_entropy(self) -> float:
        """Entropy of the letters picked over its maximum: 1 = no favourite, 0 = always the same letter."""
        share = self.picked[self.picked > 0] / max(1.0, self.picked.sum())
        letters = round(1 / self.chance.min()) if len(self.chance) else 0
        return float(-(share * np.log(share)).sum() / math.log(letters)) if letters > 1 else float("nan")


def score_choices(choices: Sequence[Choice], log_p: Sequence[Floats], orders: Sequence[Ints]) -> ChoiceScores:
    """Scores from log-probabilities [R_i, K_i] of the letters of every question under its orders [R_i, K_i].

    The first order must be the written one.
    """
    table, picked = np.full((5, len(choices)), np.nan), np.zeros(len(LETTERS))
    for i, (choice, found, shown) in enumerate(zip(choices, log_p, orders, strict=True)):
        table[4, i] = 1 / len(choice.options)
        if not np.isfinite(found).all():
            continue
        scores = debias(found, shown)
        letters = found.argmax(1)
        firsts = shown[np.arange(len(shown)), letters]
        np.add.at(picked, letters, 1)
        table[:4, i] = (
            credit(scores, choice.answer),
            np.exp(scores[choice.answer]),
            credit(found[0], choice.answer),
            np.mean(firsts == scores.argmax()),
        )
    return ChoiceScores(table[0], table[1], table[2], table[3], table[4], picked)


def measure_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    how: Orders = "rotations",
    *,
    with_question: bool = True,
) -> ChoiceScores:
    """Letter-scored multiple choice over orders of the options; without the question: the options-only baseline.

    Letters that are one token each to the tokenizer need one forward pass per order, others one per order and letter.
    Raises ForgetkitError for an answer that is not among the options, and for fewer than two options.
    """
    orders = []
    for i, choice in enumerate(choices):
        if not (2 <= len(choice.options) <= len(LETTERS) and 0 <= choice.answer < len(choice.options)):
            raise ForgetkitError(
                f"question {i} has {len(choice.options)} options and answer {choice.answer}",
                where="multiple choice",
                remedy="give 2 to 26 options and the right one's index, counted from 0",
            )
        orders.append(option_orders(len(choice.options), how))
    prompts, bos_id = [], beginning(tokenizer)
    for choice, shown in zip(choices, orders, strict=True):
        question = choice.question if with_question else None
        prompts += [(choice_prompt(question, choice.options, order), len(order)) for order in shown.tolist()]
    rows = [[encode_text(tokenizer, f"{text} {letter}", bos_id) for letter in LETTERS[:n]] for text, n in prompts]
    found = _letter_log_p(model, rows, "multiple choice" if with_question else "options alone")
    ends = np.cumsum([len(shown) for shown in orders])
    parts = [found[end - len(o) : end, : o.shape[1]] for end, o in zip(ends, orders, strict=True)]
    return score_choices(choices, parts, orders)


def _letter_log_p(model: PreTrainedModel, rows: Sequence[Sequence[list[int]]], label: str) -> Floats:
    """Log-probabilities [n, K] of each prompt's continuations from where they part; NaN beyond its own number.

    rows[i]: ids of prompt i continued by each letter. Where these end in one token each, one forward pass tells all.
    """
    commons = [_common(several) for several in rows]
    if all(len(row) == at + 1 for several, at in zip(rows, commons, strict=True) for row in several):
        lasts = [[row[-1] for row in several] for several in rows]
        return measure_next(model, [several[0][:-1] for several in rows], lasts, label)
    every = [row for several in rows for row in several]
    starts = [at for several, at in zip(rows, commons, strict=True) for _ in several]
    scores = measure_tokens(model, every, starts, label)
    found = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    owner = np.repeat(np.arange(len(rows)), [len(several) for several in rows])
    place = np.concatenate([np.arange(len(several)) for several in rows])
    found[owner, place] = scores.mean_log_p * scores.counts
    return found


def _common(rows: Sequence[list[int]]) -> int:
    """Number of ids that all rows begin with."""
    first, shortest = rows[0], min(map(len, rows))
    return next((i for i in range(shortest) if any(row[i] != first[i] for row in rows)), shortest)


@dataclass(frozen=True)
class ChoiceSummary:
    """Debiased accuracy, beside what the options alone give away, and chance.

    gain: accuracy minus the options-only accuracy, paired: what the question adds. None: no such baseline.
    """

    accuracy: Estimate
    plain: Estimate
    options_only: Estimate
    gain: Comparison | None
    chance: float
    letter_entropy: float
    sizes: Sizes


def summarise_choices(
    scores: ChoiceScores,
    options_only: ChoiceScores | None = None,
    groups: Sequence[int] | Ints | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ChoiceSummary:
    """Means with bootstrap intervals over questions; groups int[n]: clusters, where questions share a source."""
    own = items(scores.correct, groups)
    base, gain = Estimate(None, reason="not measured"), None
    if options_only is not None:
        other = items(options_only.correct, groups)
        base = estimate_mean(other, resamples=resamples, seed=seed)
        gain = compare_paired(own, other, resamples=resamples, seed=seed)
    return ChoiceSummary(
        accuracy=estimate_mean(own, resamples=resamples, seed=seed),
        plain=estimate_mean(items(scores.plain, groups), resamples=resamples, seed=seed),
        options_only=base,
        gain=gain,
        chance=float(scores.chance.mean()) if len(scores.chance) else float("nan"),
        letter_entropy=scores.letter_entropy,
        sizes=sizes(own),
    )
