"""Blocks of token ids to tensors, the order of training, and the plain language-modelling loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from forgetkit.core.loop import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def epoch_order(n: int, epochs: int, seed: int) -> NDArray[np.int64]:
    """Indices 0..n-1 shuffled anew for every epoch, concatenated: int64 [n * epochs].

    Epoch e depends on (seed, e) alone, so a run with more epochs begins with the same order.
    """
    parts = [np.random.default_rng([seed, epoch]).permutation(n) for epoch in range(epochs)]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)


def pad_blocks(blocks: Sequence[NDArray[Any]], pad_id: int, bos_id: int | None = None) -> tuple[Tensor, Tensor]:
    """Right-pad blocks into one rectangle: (input_ids long [B, T], valid bool [B, T], True at real tokens).

    `bos_id` is put before every block, and is valid. No attention mask is needed: the models are causal and
    the padding is on the right, so no real position sees it. Which positions count is told by `valid`, never
    by comparing ids with `pad_id`, as many models pad with a token that also occurs in text.
    """
    assert blocks, "no blocks"
    extra = 0 if bos_id is None else 1
    width = extra + max(len(block) for block in blocks)
    ids = torch.full((len(blocks), width), pad_id, dtype=torch.long)
    valid = torch.zeros((len(blocks), width), dtype=torch.bool)
    for row, block in enumerate(blocks):
        end = extra + len(block)
        if bos_id is not None:
            ids[row, 0] = bos_id
        ids[row, extra:end] = torch.from_numpy(np.asarray(block).astype(np.int64))
        valid[row, :end] = True
    return ids, valid


def strip_bos(output: Tensor, bos_id: int | None) -> Tensor:
    """Outputs [B, T, ...] for `pad_blocks` input in the blocks' own coordinates: without any BOS column."""
    return output if bos_id is None else output[:, 1:]


def _cross_entropy(rows_PV: Tensor, targets_P: Tensor) -> Tensor:
    return F.cross_entropy(rows_PV.float(), targets_P, reduction="none").sum()


def cross_entropy_sum(rows_PV: Tensor, targets_P: Tensor, chunk: int = 4096) -> Tensor:
    """Summed cross-entropy in nats (fp32 scalar) of logits [P, V] against token ids [P].

    At most `chunk` rows are alive in fp32. More rows than that have their log-probabilities recomputed in the
    backward pass, which costs some 15% of a small model's step.
    """
    total = rows_PV.new_zeros((), dtype=torch.float32)
    for start in range(0, rows_PV.shape[0], chunk):
        rows, targets = rows_PV[start : start + chunk], targets_P[start : start + chunk]
        if rows_PV.shape[0] > chunk and rows.requires_grad:
            part = checkpoint(_cross_entropy, rows, targets, use_reentrant=False, preserve_rng_state=False)
        else:
            part = _cross_entropy(rows, targets)
        total = total + part
    return total if rows_PV.shape[0] else rows_PV.sum().float()


def lm_loss(model: PreTrainedModel, batch: dict[str, Tensor], chunk: int = 4096) -> Loss:
    """Next-token cross-entropy: logits at position i against token i+1, summed over valid i+1.

    `batch`: `input_ids` long [B, T] and `valid` bool [B, T] of `pad_blocks`. Neither padding nor the values
    under the mask have any influence.
    """
    ids, valid = batch["input_ids"], batch["valid"]
    logits = model(input_ids=ids, use_cache=False).logits
    keep = valid[:, 1:]
    total = cross_entropy_sum(logits[:, :-1][keep], ids[:, 1:][keep], chunk)
    return Loss(total, keep.sum(), {})
