"""Teacher-forced scores per token, next-token scores and greedy continuations of any token sequences.

What memorisation, attacks and knowledge are computed from: one forward pass serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.progress import progress
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.forward import (
    check_vocabulary,
    check_window,
    forward_logits,
    keeping,
    length_batches,
    vocabulary_size,
)
from forgetkit.evaluate.statistics import Floats, Ints, Series

Ids = Sequence[int]
_ROWS = 16
_ELEMENTS = 2**22  # logits alive as fp32 copies at one time


@dataclass(frozen=True)
class TokenScores:
    """Scores of the N scored tokens of n texts, text after text; NaN where logits were not finite.

    log_p [N]: log-probability of the true token, nats. hit [N]: 1 where it is the most probable one, 1/k in a tie of k.
    mean, variance [N]: of the log-probability of a token drawn from the model at that place (mean = -entropy).
    bounds int64[n + 1]: text i owns [bounds[i], bounds[i+1]).
    """

    log_p: Floats
    hit: Floats
    mean: Floats
    variance: Floats
    bounds: Ints

    @property
    def counts(self) -> Ints:
        """Scored tokens per text [n]."""
        return np.diff(self.bounds)

    @property
    def mean_log_p(self) -> Floats:
        """Mean log-probability per token of every text [n], nats; NaN for a text without scored tokens."""
        return self.text_means(self.log_p)

    def text_means(self, values: Floats) -> Floats:
        """Per-text means [n] of values [N] per token; NaN for a text without scored tokens."""
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        sums = np.bincount(owner, weights=values, minlength=len(self.counts))
        with np.errstate(invalid="ignore"):
            return sums / np.where(self.counts > 0, self.counts, np.nan)

    def split(self, values: Floats) -> list[Floats]:
        """Values [N] per token as one array per text."""
        return [values[low:high] for low, high in zip(self.bounds[:-1], self.bounds[1:], strict=True)]

    def loss(self) -> Series:
        """Nats per token over the texts that have any, weighted by their tokens, each a cluster of its own."""
        kept = np.flatnonzero(self.counts)
        return Series(-self.mean_log_p[kept], self.counts[kept].astype(np.float64), kept.astype(np.int64))


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, bos_id: int | None) -> list[int]:
    """Ids of `text` after the BOS token, if any; no other special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return ([] if bos_id is None else [bos_id]) + ids


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], *, end: bool = False
) -> tuple[list[list[int]], list[int]]:
    """Ids of prompt + answer, and where each answer begins, for (prompt, answer) pairs.

    Both are tokenised as one text: a token that spans the border counts as the answer's. end: the EOS token follows
    every answer that is not empty and is scored with it, as in TOFU and OpenUnlearning. An empty answer has no tokens.
    """
    bos_id, eos_id = beginning(tokenizer), tokenizer.eos_token_id
    rows, starts = [], []
    for prompt, answer in pairs:
        whole, alone = (encode_text(tokenizer, text, bos_id) for text in (prompt + answer, prompt))
        common = next((i for i, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), len(alone))
        starts.append(min(common, len(whole)))
        rows.append(whole + ([int(eos_id)] if end and answer and eos_id is not None else []))
    return rows, starts


def scored_from(rows: Sequence[Ids], starts: Sequence[int] | None) -> list[int]:
    """Where each row's scored tokens begin, at most its end; 1 by default, all that has something before it.

    Raises ForgetkitError where a first scored token has nothing before it.
    """
    wanted = [1] * len(rows) if starts is None else starts
    begins = [min(start, len(row)) for start, row in zip(wanted, rows, strict=True)]
    if any(begin < 1 and len(row) for row, begin in zip(rows, begins, strict=True)):
        raise ForgetkitError(
            "the first token of a text cannot be scored, as nothing stands before it",
            where="evaluate",
            remedy="put a prompt before the answer",
        )
    return begins


def measure_tokens(
    model: PreTrainedModel, rows: Sequence[Ids], starts: Sequence[int] | None = None, label: str = "tokens"
) -> TokenScores:
    """Score tokens [starts[i], len(rows[i])) of every row of ids, each from all tokens before it.

    starts: see `scored_from`. Rows are batched by length and padded on the right; padding is masked and enters no
    number. Raises ForgetkitError for ids outside the vocabulary and rows longer than the context window.
    """
    begins = scored_from(rows, starts)
    counts = [len(row) - begin for row, begin in zip(rows, begins, strict=True)]
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    scores = np.full((4, int(bounds[-1])), np.nan)
    scored = [i for i, count in enumerate(counts) if count]
    if scored:
        check_vocabulary(model, max(max(rows[i]) for i in scored))
    lengths = [len(rows[i]) for i in scored]
    with progress(label, len(scored), "texts") as bar:
        for batch in length_batches(lengths, lengths, vocabulary_size(model), equal=False):
            own = [scored[k] for k in batch]
            ids, mask = _pad([rows[i] for i in own])
            keep = ids.shape[1] - min(begins[i] for i in own) + 1
            logits = forward_logits(model, ids, mask, keep)
            for row, i in enumerate(own):
                first = begins[i] - 1 - (ids.shape[1] - keep)
                truth = ids[row, begins[i] : len(rows[i])].to(logits.device)
                scores[:, bounds[i] : bounds[i + 1]] = _token_scores(logits[row, first : first + counts[i]], truth)
            bar.advance(len(own))
    return TokenScores(scores[0], scores[1], scores[2], scores[3], bounds)


def _pad(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids and mask, Long[B, T], padded on the right."""
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _token_scores(logits_KV: Tensor, truth_K: Tensor) -> Floats:
    """[4, K]: log-probability, hit, mean and variance of the log-probability; in chunks, as fp32 copies are large."""
    size = max(1, _ELEMENTS // logits_KV.shape[1])
    parts = [_score_chunk(*both) for both in zip(torch.split(logits_KV, size), torch.split(truth_K, size), strict=True)]
    return np.asarray(torch.cat(parts, 1).cpu().numpy(), dtype=np.float64)


def _score_chunk(logits_KV: Tensor, truth_K: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits_KV.float(), -1)
    own = log_p.gather(-1, truth_K[:, None])
    best = log_p.amax(-1, keepdim=True)
    hit = (own == best)[:, 0] / (log_p == best).sum(-1)
    p = log_p.exp()
    mean = -torch.special.entr(p).sum(-1)
    variance = torch.where(p > 0, p * (log_p - mean[:, None]) ** 2, 0.0).sum(-1)
    scores = torch.stack([own[:, 0].double(), hit.double(), mean.double(), variance.double()])
    scores[:, ~torch.isfinite(logits_KV).all(-1)] = float("nan")
    return scores


def measure_next(model: PreTrainedModel, rows: Sequence[Ids], choices: Sequence[Ids], label: str = "choices") -> Floats:
    """Log-probabilities [n, K] that choices[i] (single tokens) come right after rows[i]; NaN beyond its own number.

    Rows of one batch have equal length, so nothing is padded. Non-finite logits give NaN.
    """
    scores = np.full((len(rows), max(map(len, choices), default=0)), np.nan)
    if rows:
        check_vocabulary(model, max(max(max(row), max(ids)) for row, ids in zip(rows, choices, strict=True)))
    lengths, kept = [len(row) for row in rows], [1] * len(rows)
    with progress(label, len(rows), "prompts") as bar:
        for batch in length_batches(lengths, kept, vocabulary_size(model), equal=True):
            logits = forward_logits(model, torch.tensor([list(rows[i]) for i in batch]), keep=1)[:, 0].float()
            log_p = torch.log_softmax(logits, -1).double().cpu().numpy()
            log_p[~torch.isfinite(logits).all(-1).cpu().numpy()] = np.nan
            for row, i in enumerate(batch):
                scores[i, : len(choices[i])] = log_p[row, list(choices[i])]
            bar.advance(len(batch))
    return scores


def continue_greedily(
    model: PreTrainedModel, prompts: Sequence[Ids], tokens: int, eos_id: int | None, label: str = "continuations"
) -> list[list[int] | None]:
    """Greedy continuation of every prompt by at most `tokens` ids, up to its EOS token; None: logits not finite.

    With a KV cache, batched by length and without padding: a batch begins with as many tokens as its shortest prompt
    has, and where a longer prompt goes on, its own token takes the place of the predicted one.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ForgetkitError("nothing to continue: an empty prompt", where="evaluate", remedy="give a longer prompt")
    made: list[list[int] | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with progress(label, len(prompts), "prompts") as bar:
        while order:
            shortest = len(prompts[order[0]])
            batch = [i for i in order[:_ROWS] if len(prompts[i]) - shortest <= tokens]  # at most twice the steps
            order = order[len(batch) :]
            for i, ids in zip(batch, _greedy(model, [prompts[i] for i in batch], tokens, eos_id), strict=True):
                made[i] = ids
            bar.advance(len(batch))
    return made


def _greedy(model: PreTrainedModel, prompts: list[Ids], tokens: int, eos_id: int | None) -> list[list[int] | None]:
    """One batch of `continue_greedily`, prompts in order of length."""
    check_window(model, len(prompts[-1]) + tokens, "a continuation")
    made: list[list[int]] = [[] for _ in prompts]
    going, finite = [True] * len(prompts), [True] * len(prompts)
    at = len(prompts[0])
    step = torch.tensor([list(prompt[:at]) for prompt in prompts], device=model.device)
    mask, past = torch.ones_like(step), None
    with torch.inference_mode():
        while any(going):
            out = model(input_ids=step, attention_mask=mask, past_key_values=past, use_cache=True, **keeping(model, 1))
            past, logits = out.past_key_values, out.logits[:, -1].float()
            predicted, sound = logits.argmax(-1).tolist(), torch.isfinite(logits).all(-1).tolist()
            for i, prompt in enumerate(prompts):
                if at < len(prompt):
                    predicted[i] = prompt[at]
                elif going[i]:
                    finite[i] &= sound[i]
                    ended = predicted[i] == eos_id
                    made[i] += [] if ended else [predicted[i]]
                    going[i] = finite[i] and not ended and len(made[i]) < tokens
            at += 1
            step = torch.tensor(predicted, device=model.device)[:, None]
            mask = torch.cat([mask, torch.ones_like(step)], 1)
    return [ids if sound else None for ids, sound in zip(made, finite, strict=True)]


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """Text of ids without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
