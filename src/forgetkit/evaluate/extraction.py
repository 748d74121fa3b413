"""Extraction strength: how much of a passage follows, greedily and without a mistake, from its beginning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import check_vocabulary, forward_logits, length_batches, vocabulary_size
from forgetkit.evaluate.statistics import Floats, Series

PASSAGE = 32
"""Predicted tokens of a passage. What comes before it in its block is given, as a prompt is."""


@dataclass(frozen=True)
class Extraction:
    """Per passage [n]: tokens at its end that are all predicted right (NaN: logits not finite), tokens, block."""

    matched: Floats
    count: Floats
    block: Floats

    def series(self) -> Series:
        """Strength per passage, clustered by block: 1 - k/T with k the tokens that must be given."""
        return Series(self.matched / self.count, np.ones(len(self.count)), self.block.astype(np.int64))


def measure_extraction(model: PreTrainedModel, corpus: BlockedCorpus, indices: list[int]) -> Extraction:
    """Extraction strength of the passages of the given blocks (OpenUnlearning, after Carlini et al. 2021).

    A block is cut into passages of `PASSAGE` predicted tokens (what is left over is left out; a shorter block is one
    passage), teacher-forced on everything before. With T predicted tokens y of a passage and the model's most probable
    tokens a: 1 - min{k : a_j = y_j for all j > k} / T. Unlike OpenUnlearning's code, the last token counts, and a
    passage whose last token is not predicted gets 0 rather than 1/T.
    """
    bos = [] if corpus.bos_id is None else [corpus.bos_id]
    rows = [bos + np.asarray(corpus[i].ids).tolist() for i in indices]
    lengths = [len(row) for row in rows]
    found: dict[int, list[tuple[float, int]]] = {}
    if rows:
        check_vocabulary(model, int(corpus.ids.max()))
    with progress("extraction strength", len(rows), "blocks") as bar:
        for batch in length_batches(lengths, lengths, vocabulary_size(model), equal=True):
            ids = torch.tensor([rows[i] for i in batch], dtype=torch.long)
            logits = forward_logits(model, ids[:, :-1])
            right = (logits.argmax(-1).cpu() == ids[:, 1:]).double()
            finite = torch.isfinite(logits).flatten(1).all(1).cpu()
            right[~finite] = float("nan")
            for row, i in enumerate(batch):
                size = min(PASSAGE, lengths[i] - 1)
                passages = right[row, : (lengths[i] - 1) // size * size].reshape(-1, size)
                found[i] = [(run, size) for run in passages.flip(1).cumprod(1).sum(1).tolist()]
            bar.advance(len(batch))
    flat = [(run, size, i) for i in range(len(rows)) for run, size in found[i]]
    matched, count, block = np.array(flat, dtype=np.float64).reshape(-1, 3).T
    return Extraction(matched, count, block)
