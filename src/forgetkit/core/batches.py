"""Blocks of token ids to tensors, the order of training, and the plain language-modelling loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetkit.core.heads import SplitHead, cross_entropy
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


def lm_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Loss:
    """Next-token cross-entropy: logits at position i against token i+1, summed over valid i+1.

    `batch`: `input_ids` long [B, T] and `valid` bool [B, T] of `pad_blocks`. Neither padding nor the values
    under the mask have any influence.
    """
    ids, valid = batch["input_ids"], batch["valid"]
    head, keep = SplitHead(model), valid[:, 1:]
    total, _ = head.loss(head.hidden(ids)[:, :-1][keep], cross_entropy(ids[:, 1:][keep]))
    return Loss(total, keep.sum(), {})
