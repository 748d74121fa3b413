"""Next-token loss and entropy per block, and the distance between two models' predictions, in nats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import check_vocabulary, forward_logits, length_batches, vocabulary_size
from forgetkit.evaluate.statistics import Floats, Ints, Series


def sample_blocks(corpus: BlockedCorpus, n: int) -> list[int]:
    """At most `n` block indices, evenly spread over the text; blocks with nothing to predict are left out."""
    need = 1 if corpus.bos_id is not None else 2
    usable = np.flatnonzero(corpus.bounds[:, 2] - corpus.bounds[:, 1] >= need)
    if len(usable) <= n:
        return [int(i) for i in usable]
    middle = (np.arange(n) + 0.5) * len(usable) / n
    return [int(i) for i in usable[middle.astype(np.int64)]]


@dataclass(frozen=True)
class BlockLosses:
    """Per block [n]: summed loss and summed entropy of the predictions (nats), positions predicted.

    nonfinite: positions whose logits were not all finite (their block's sums are NaN).
    """

    loss: Floats
    entropy: Floats
    count: Floats
    nonfinite: int

    def series(self, what: str = "loss") -> Series:
        """Nats per token ('loss' or 'entropy'), blocks weighted by tokens, each a cluster of its own."""
        totals = {"loss": self.loss, "entropy": self.entropy}[what]
        return Series(totals / self.count, self.count, np.arange(len(totals), dtype=np.int64))


def _batches(corpus: BlockedCorpus, indices: list[int], vocabulary: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(positions in `indices`, ids Long[B, T] padded on the right, lengths [B]) in order of length."""
    bos = [] if corpus.bos_id is None else [corpus.bos_id]
    rows = [bos + np.asarray(corpus[i].ids).tolist() for i in indices]
    lengths = [len(row) for row in rows]
    for batch in length_batches(lengths, lengths, vocabulary, equal=False):
        width = max(lengths[i] for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : lengths[i]] = torch.tensor(rows[i])
        yield batch, ids, torch.tensor([lengths[i] for i in batch])


def _mask(ids: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()


def measure_losses(
    model: PreTrainedModel, corpus: BlockedCorpus, indices: list[int], label: str = "loss"
) -> BlockLosses:
    """Teacher-forced loss on the given blocks. Padding is on the right, masked, and never enters a sum."""
    loss, entropy, count = (np.zeros(len(indices)) for _ in range(3))
    nonfinite = 0
    if indices:
        check_vocabulary(model, int(corpus.ids.max()))
    with progress(label, len(indices), "blocks") as bar:
        for batch, ids, lengths in _batches(corpus, indices, vocabulary_size(model)):
            logits = forward_logits(model, ids, _mask(ids, lengths))
            for row, i in enumerate(batch):
                size = int(lengths[row])
                own = logits[row, : size - 1].float()  # row by row: the fp32 copy stays one block large
                log_p = torch.log_softmax(own, -1)
                targets = ids[row, 1:size].to(own.device)
                loss[i] = -log_p.gather(-1, targets[:, None]).double().sum().item()
                entropy[i] = torch.special.entr(log_p.exp()).sum(-1).double().sum().item()
                count[i] = size - 1
                nonfinite += int((~torch.isfinite(own).all(-1)).sum())
            bar.advance(len(batch))
    return BlockLosses(loss, entropy, count, nonfinite)


@dataclass(frozen=True)
class BlockDivergence:
    """Per block [n]: summed KL(reference || model) in nats, positions with the same top token, positions."""

    divergence: Floats
    agreement: Floats
    count: Floats

    def series(self, what: str) -> Series:
        """Mean per token ('divergence' or 'agreement'), blocks as clusters."""
        totals = {"divergence": self.divergence, "agreement": self.agreement}[what]
        groups: Ints = np.arange(len(totals), dtype=np.int64)
        return Series(totals / self.count, self.count, groups)


def measure_divergence(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    corpus: BlockedCorpus,
    indices: list[int],
    label: str = "KL",
) -> BlockDivergence:
    """KL(reference || model) = sum_v p_R(v) (log p_R(v) - log p_M(v)) and top-1 agreement per position.

    Both models see the same batch; an entry the reference gives no probability at all contributes zero.
    """
    kl, agree, count = (np.zeros(len(indices)) for _ in range(3))
    vocabulary = min(vocabulary_size(reference), vocabulary_size(model))  # padded vocabularies may differ in size
    with progress(label, len(indices), "blocks") as bar:
        for batch, ids, lengths in _batches(corpus, indices, max(vocabulary_size(reference), vocabulary_size(model))):
            mask = _mask(ids, lengths)
            first, second = forward_logits(reference, ids, mask), forward_logits(model, ids, mask)
            for row, i in enumerate(batch):
                size = int(lengths[row]) - 1
                log_r = torch.log_softmax(first[row, :size, :vocabulary].float(), -1)
                log_m = torch.log_softmax(second[row, :size, :vocabulary].float(), -1).to(log_r.device)
                p = log_r.exp()
                terms = torch.where(p == 0, torch.zeros_like(p), p * (log_r - log_m))
                kl[i] = terms.sum(-1).double().sum().item()
                agree[i] = float((log_r.argmax(-1) == log_m.argmax(-1)).sum())
                count[i] = size
            bar.advance(len(batch))
    return BlockDivergence(kl, agree, count)
