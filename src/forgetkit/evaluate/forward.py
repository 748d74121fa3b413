"""Forward passes and decoding shared by the measures: no gradients, fp32 statistics, bounded memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError

LOGITS_ELEMENTS = 2**25  # logits alive at one time: 128 MiB in fp32
MAX_ROWS = 32


def vocabulary_size(model: PreTrainedModel) -> int:
    """Number of logits per position."""
    return int(model.get_output_embeddings().weight.shape[0])


def check_window(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Raise ForgetkitError where `tokens` do not fit into the model's context window."""
    window = getattr(model.config, "max_position_embeddings", None)
    if isinstance(window, int) and tokens > window:
        raise ForgetkitError(
            f"{what} needs {tokens} tokens of context, the model has {window}",
            where="evaluate",
            remedy="use smaller blocks, evaluate.recall_context or evaluate.completion_tokens",
        )


def check_vocabulary(model: PreTrainedModel, largest: int) -> None:
    """Raise ForgetkitError where a token id lies outside the model's vocabulary."""
    if largest >= vocabulary_size(model):
        raise ForgetkitError(
            f"token id {largest} is outside the model's vocabulary of {vocabulary_size(model)}",
            where="evaluate",
            remedy="measure the model with its own tokenizer",
        )


def length_batches(lengths: Sequence[int], kept: Sequence[int], vocabulary: int, *, equal: bool) -> Iterator[list[int]]:
    """Indices in batches sorted by length, small enough for the logits budget.

    kept: positions per row whose logits are kept. equal: rows of one batch have the same length and `kept`
    (no padding at all).
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], kept[i], i)):
        differs = equal and batch and (lengths[i], kept[i]) != (lengths[batch[0]], kept[batch[0]])
        widest = max([kept[i], *(kept[j] for j in batch[-1:])])
        full = (len(batch) + 1) * widest * vocabulary > LOGITS_ELEMENTS or len(batch) >= MAX_ROWS
        if batch and (differs or full):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def keeping(model: PreTrainedModel, keep: int) -> dict[str, int]:
    """Argument by which a model computes the logits of the last `keep` positions alone, if it can (0: of all)."""
    can = keep > 0 and "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": keep} if can else {}


def forward_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, keep: int = 0) -> Tensor:
    """Logits [B, T or keep, V] of ids Long[B, T], in the model's dtype; keep > 0: the last positions alone.

    Raises ForgetkitError where the sequence does not fit into the context window.
    """
    check_window(model, ids.shape[1], "a measurement")
    with torch.inference_mode():
        ids = ids.to(model.device)
        mask = torch.ones_like(ids) if mask is None else mask.to(model.device)
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **keeping(model, keep)).logits
    return logits[:, -keep:] if keep else logits


class Generation(NamedTuple):
    """Continuations of equal-length prompts.

    ids int64[B, N]; probability float64[B, N] of each chosen token under the model (temperature 1);
    lengths int64[B]: tokens before the end-of-text token; finite: whether every logit was;
    top_ids int64[B, N, K], top_probability float64[B, N, K]: the most probable tokens of each step, in order.
    """

    ids: np.ndarray
    probability: np.ndarray
    lengths: np.ndarray
    finite: bool
    top_ids: np.ndarray
    top_probability: np.ndarray


def generate(
    model: PreTrainedModel,
    prompts: Tensor,
    tokens: int,
    *,
    eos_id: int | None = None,
    seed: int | None = None,
    top: int = 0,
) -> Generation:
    """Continue prompts Long[B, T] by `tokens` tokens with a KV cache; greedy, or sampled with a seed.

    top: how many of the most probable tokens to keep of every step (at most the vocabulary).

    Own loop rather than `model.generate`: no option of the model's generation_config (penalties, temperature)
    may colour a measurement, sampling has its own generator, and a non-finite model is reported instead of
    raising.
    """
    check_window(model, prompts.shape[1] + tokens, "a continuation")
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    chosen: list[Tensor] = []
    probability: list[Tensor] = []
    top_ids: list[Tensor] = []
    top_probability: list[Tensor] = []
    finite, past, step = True, None, prompts.to(model.device)
    mask = torch.ones_like(step)
    with torch.inference_mode():
        for _ in range(tokens):
            out = model(input_ids=step, attention_mask=mask, past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits = out.logits[:, -1].float().cpu()
            if not bool(torch.isfinite(logits).all()):
                finite = False
                logits = torch.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)
            p = torch.softmax(logits, -1)
            token = torch.multinomial(p, 1, generator=generator) if generator else logits.argmax(-1, keepdim=True)
            chosen.append(token)
            probability.append(p.gather(-1, token))
            best = p.topk(min(top, p.shape[-1]), -1)
            top_ids.append(best.indices)
            top_probability.append(best.values)
            step = token.to(model.device)
            mask = torch.cat([mask, torch.ones_like(step)], 1)
    ids = torch.cat(chosen, 1).numpy()
    ended = ids == eos_id if eos_id is not None else np.zeros_like(ids, dtype=bool)
    lengths = np.where(ended.any(1), ended.argmax(1), ids.shape[1]).astype(np.int64)
    return Generation(
        ids,
        torch.cat(probability, 1).double().numpy(),
        lengths,
        finite,
        torch.stack(top_ids, 1).numpy(),
        torch.stack(top_probability, 1).double().numpy(),
    )
