"""Cloze items: does the model prefer the true continuation of a prompt to false ones of the same type?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.progress import progress
from forgetkit.corpus.tokenise import encode
from forgetkit.evaluate.forward import LOGITS_ELEMENTS, check_vocabulary, check_window, keeping, vocabulary_size
from forgetkit.evaluate.probes import Cloze
from forgetkit.evaluate.statistics import Floats, Ints, Series

_ROWS = 64  # options whose copies of the prompt's keys and values are alive at one time


@dataclass(frozen=True)
class Options:
    """One prompt's tokens and those of every option after it."""

    prompt: list[int]
    tails: list[list[int]]


def encode_options(tokenizer: Any, prompt: str, options: Sequence[str], bos_id: int | None) -> Options:
    """Tokens of the prompt, and of " " + option for every option, as the tokenizer cuts them in their context.

    The boundary is before the first token that reaches beyond the prompt, the same one for all options: where a
    token joins the prompt's end with an option's beginning (or the prompt's own tokens depend on what follows), the
    end of the prompt is counted to every option, so that their probabilities stay comparable.

    Raises:
        ForgetkitError: no token is left before the boundary; a tokenizer without offsets.
    """
    rows, boundaries = [], []
    for option in options:
        ids, offsets = encode(f"{prompt} {option}", tokenizer)
        rows.append(ids.tolist())
        boundaries.append(int(np.argmax(offsets[:, 1] > len(prompt))))
    shared = min(boundaries)
    while any(row[:shared] != rows[0][:shared] for row in rows):
        shared -= 1
    bos = [] if bos_id is None else [bos_id]
    if not bos and not shared:
        raise ForgetkitError(f"no token before the answer: {prompt!r}", "evaluate.probes", "use a longer prompt")
    return Options(bos + rows[0][:shared], [row[shared:] for row in rows])


def score_options(model: PreTrainedModel, sets: Sequence[Options], label: str) -> list[Floats]:
    """Log-probability (nats) of every option's tokens after its prompt: per set, float64[options].

    A prompt is forwarded once and its keys and values are shared by its options. Prompts of one batch have equal
    length, and options are padded on the right, so no score depends on padding. Non-finite logits give NaN.
    """
    scores = [np.full(len(one.tails), np.nan) for one in sets]
    if sets:
        check_vocabulary(model, max(max(row) for one in sets for row in (one.prompt, *one.tails)))
        check_window(model, max(len(one.prompt) + max(map(len, one.tails)) for one in sets), "a probe")
    with progress(label, len(sets), "prompts") as bar:
        for batch in _batches(sets, vocabulary_size(model)):
            for i, own in zip(batch, _score(model, [sets[i] for i in batch]), strict=True):
                scores[i] = own
            bar.advance(len(batch))
    return scores


def _batches(sets: Sequence[Options], vocabulary: int) -> Iterator[list[int]]:
    """Sets of equal prompt length, few enough for the budgets of rows and logits."""
    batch: list[int] = []
    rows = width = 0
    for i in sorted(range(len(sets)), key=lambda i: (len(sets[i].prompt), i)):
        more, widest = len(sets[i].tails), max(map(len, sets[i].tails))
        full = rows + more > _ROWS or (rows + more) * max(width, widest) * vocabulary > LOGITS_ELEMENTS
        if batch and (full or len(sets[i].prompt) != len(sets[batch[0]].prompt)):
            yield batch
            batch, rows, width = [], 0, 0
        batch.append(i)
        rows, width = rows + more, max(width, widest)
    if batch:
        yield batch


def _score(model: PreTrainedModel, sets: Sequence[Options]) -> list[Floats]:
    """The scores of one batch, whose prompts have equal length."""
    owners = torch.tensor([row for row, one in enumerate(sets) for _ in one.tails])
    tails = [tail for one in sets for tail in one.tails]
    lengths = torch.tensor([len(tail) for tail in tails])
    ids = torch.zeros(len(tails), int(lengths.max()), dtype=torch.long)
    for row, tail in enumerate(tails):
        ids[row, : len(tail)] = torch.tensor(tail)
    prompts = torch.tensor([one.prompt for one in sets]).to(model.device)
    with torch.inference_mode():
        out = model(input_ids=prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **keeping(model, 1))
        first = torch.log_softmax(out.logits[:, -1].float(), -1).cpu()
        total = first[owners, ids[:, 0]].double()
        longer = torch.nonzero(lengths > 1)[:, 0]
        if len(longer):
            out.past_key_values.batch_select_indices(owners[longer].to(model.device))
            total[longer] += _rest(model, ids[longer], lengths[longer], out.past_key_values, prompts.shape[1])
    ends = np.cumsum([len(one.tails) for one in sets])[:-1]
    return np.split(total.numpy(), ends)


def _rest(model: PreTrainedModel, ids: Tensor, lengths: Tensor, past: Any, seen: int) -> Tensor:
    """Log-probability [B] of the tokens of ids Long[B, T] after their first, given `seen` cached tokens."""
    inputs = ids[:, :-1].to(model.device)
    mask = torch.ones(len(ids), seen + inputs.shape[1], dtype=torch.long, device=model.device)
    logits = model(input_ids=inputs, attention_mask=mask, past_key_values=past, use_cache=True).logits
    log_p = torch.log_softmax(logits.float(), -1).cpu().gather(-1, ids[:, 1:, None])[..., 0].double()
    inside = torch.arange(1, ids.shape[1])[None] < lengths[:, None]
    return torch.where(inside, log_p, 0.0).sum(-1)


@dataclass(frozen=True)
class ClozeScores:
    """Per item [n]; log_probability [n, most options], NaN beyond an item's own, the answer's first.

    probability: P(answer) / sum over the options; correct: 1 where no option is more probable than the answer;
    rank: 1 + options more probable. A tie counts for the answer: what is left of the knowledge is never
    understated.
    """

    probability: Floats
    correct: Floats
    rank: Floats
    log_probability: Floats

    def series(self, items: Sequence[Cloze]) -> dict[str, Series]:
        """The metrics over items, clustered by source passage; accuracy also by what the answers are about."""
        groups = clusters([(item.source.file, item.source.quote) for item in items])
        about = np.array([item.about_anchor for item in items], dtype=bool)

        def over(values: Floats, rows: Any = slice(None)) -> Series:
            return Series(values[rows], np.ones(len(values[rows])), groups[rows])

        return {
            "accuracy": over(self.correct),
            "probability": over(self.probability),
            "accuracy.anchor": over(self.correct, about),
            "accuracy.other": over(self.correct, ~about),
        }


def clusters(keys: Sequence[object]) -> Ints:
    """A number per key, equal for equal keys."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def chance(items: Sequence[Cloze]) -> float | None:
    """Accuracy, and mean probability, of a model that makes no difference between options; None without items."""
    return float(np.mean([1 / len(item.options) for item in items])) if items else None


def measure_cloze(model: PreTrainedModel, tokenizer: Any, items: Sequence[Cloze], bos_id: int | None) -> ClozeScores:
    """Score every item by the summed log-probability of its options.

    Raises:
        ForgetkitError: a prompt without a token before the answer, or too long for the context window.
    """
    sets = [encode_options(tokenizer, item.prompt, item.options, bos_id) for item in items]
    scores = score_options(model, sets, "cloze")
    log_p = np.full((len(items), max(map(len, scores), default=0)), np.nan)
    for i, own in enumerate(scores):
        log_p[i, : len(own)] = own
    finite = np.array([np.isfinite(own).all() for own in scores], dtype=bool)
    rank = np.array([1.0 + (own[1:] > own[0]).sum() for own in scores])
    with np.errstate(invalid="ignore"):
        probability = np.exp([own[0] - np.logaddexp.reduce(own) for own in scores])
    nan = np.full(len(items), np.nan)
    return ClozeScores(
        probability=np.where(finite, probability, nan),
        correct=np.where(finite, rank == 1, nan),
        rank=np.where(finite, rank, nan),
        log_probability=log_p,
    )
