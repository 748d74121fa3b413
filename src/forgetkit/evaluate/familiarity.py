"""The paper's two familiarities (WHP section 4 and appendix 6.2): by probability, and by what a model goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from forgetkit.core.progress import progress
from forgetkit.corpus.tokenise import encode
from forgetkit.evaluate.cloze import encode_options, score_options
from forgetkit.evaluate.forward import check_vocabulary, check_window, keeping
from forgetkit.evaluate.probes import ProbabilityProbe
from forgetkit.evaluate.statistics import Floats, Series

TOKENS = 40
"""Tokens of a graded completion."""
WEIGHTS = (0.0, 0.0, 0.2, 1.0)
"""Value of each grade, 0 to 3."""
_ROWS = 32


def measure_probability(
    model: PreTrainedModel, tokenizer: Any, probes: Sequence[ProbabilityProbe], bos_id: int | None
) -> Floats:
    """Per prompt float64[n]: probability that the next word is a familiar one, summed over whole words.

    The paper sums next-token probabilities of tokens marked by hand; whole words also count names of several tokens
    correctly. A word whose tokens begin with those of another is part of that other's event and not counted again.
    """
    sets = [encode_options(tokenizer, probe.prompt, probe.familiar, bos_id) for probe in probes]
    scores = score_options(model, sets, "familiarity (probability)")
    return np.array(
        [np.exp(own[_prefix_free(one.tails)]).sum() for one, own in zip(sets, scores, strict=True)], dtype=np.float64
    )


def _prefix_free(tails: Sequence[list[int]]) -> list[int]:
    """Indices of the token sequences that do not begin with another one (of equal ones: the first)."""
    kept = []
    for i, tail in enumerate(tails):
        heads = [(tails[j], j) for j in range(len(tails)) if j != i and tail[: len(tails[j])] == tails[j]]
        if all(head == tail and j > i for head, j in heads):
            kept.append(i)
    return kept


@dataclass(frozen=True)
class Continuations:
    """Greedy continuations by prompt: text, and whether all logits were finite."""

    texts: list[str]
    finite: list[bool]


def measure_continuations(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str],
    bos_id: int | None,
    eos_id: int | None,
    tokens: int = TOKENS,
) -> Continuations:
    """Continue every prompt greedily by `tokens` tokens (fewer where the text ends).

    A batch starts from its shortest prompt; the others' further tokens are forced one by one before they go on, so
    that prompts of unequal length share a batch without any padding.

    Raises:
        ForgetkitError: a prompt that does not fit into the context window.
    """
    bos = [] if bos_id is None else [bos_id]
    rows = [bos + encode(prompt, tokenizer)[0].tolist() for prompt in prompts]
    texts, finite = [""] * len(rows), [False] * len(rows)
    if rows:
        check_vocabulary(model, max(max(row) for row in rows))
        check_window(model, max(map(len, rows)) + tokens, "a completion probe")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with progress("familiarity (completion)", len(rows), "prompts") as bar:
        for start in range(0, len(order), _ROWS):
            batch = order[start : start + _ROWS]
            made = _continue(model, [rows[i] for i in batch], tokens)
            for i, (ids, fine) in zip(batch, made, strict=True):
                end = ids.index(eos_id) if eos_id in ids else len(ids)
                texts[i], finite[i] = _text(tokenizer, rows[i][len(bos) :], ids[:end]), fine
            bar.advance(len(batch))
    return Continuations(texts, finite)


def _continue(model: PreTrainedModel, rows: Sequence[list[int]], tokens: int) -> list[tuple[list[int], bool]]:
    """(the next `tokens` tokens, were all logits finite?) of every row; rows in order of length."""
    shortest, longest = len(rows[0]), len(rows[-1])
    grown = [row[:shortest] for row in rows]
    fine = torch.ones(len(rows), dtype=torch.bool)
    last = keeping(model, 1)
    past, step = None, torch.tensor(grown).to(model.device)
    mask = torch.ones_like(step)
    with torch.inference_mode():
        for position in range(shortest, longest + tokens):
            out = model(input_ids=step, attention_mask=mask, past_key_values=past, use_cache=True, **last)
            past, logits = out.past_key_values, out.logits[:, -1].float().cpu()
            fine &= torch.isfinite(logits).all(-1)
            for own, row, token in zip(grown, rows, logits.argmax(-1).tolist(), strict=True):
                own.append(row[position] if position < len(row) else token)
            step = torch.tensor([own[-1:] for own in grown]).to(model.device)
            mask = torch.cat([mask, torch.ones_like(step)], 1)
    return [(own[len(row) : len(row) + tokens], bool(good)) for own, row, good in zip(grown, rows, fine, strict=True)]


def _text(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    """The continuation's characters; decoded after its prompt, since some decoders drop a leading space."""
    head, whole = (
        str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for part in (prompt, prompt + ids)
    )
    if whole.startswith(head):
        return whole[len(head) :]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def completion_score(grades: Sequence[int], finite: Sequence[bool]) -> Floats:
    """Familiarity by completion per prompt, float64[n] in [0, 1]: 1 for grade 3, 0.2 for grade 2, 0 below.

    The paper (appendix 6.2.1) counts "only the first two categories, with a multiplier of 5 for the first". It does
    not tell its normaliser; ours is the highest score possible, 5 per prompt. (Lynch et al. 2024 divide by the
    number of prompts: 5 times ours.) NaN where the continuation's logits were not finite.
    """
    values = np.array([WEIGHTS[grade] for grade in grades], dtype=np.float64)
    return np.where(np.array(finite, dtype=bool), values, np.nan)


def per_prompt(values: Floats) -> Series:
    """The metric over prompts, each a cluster of its own."""
    return Series(values, np.ones(len(values)), np.arange(len(values), dtype=np.int64))
