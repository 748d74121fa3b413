"""Two ways to ruin a model, kept as controls: what they score shows what a metric is worth.

Neither reads the labels; both train on the original blocks alone, at the labelled positions. A forgetting metric that
such a model passes measures damage, not forgetting, unless the health check withholds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from forgetkit.core.heads import SplitHead, cross_entropy
from forgetkit.core.loop import Loss


class _Control:
    """Cross-entropy against tokens that `_targets` names, times `sign`, at the target's positions."""

    sign = 1.0

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        raise NotImplementedError

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Loss:
        """Loss of one batch (fields: `methods.base.Method`); retain positions carry none."""
        head, rows_N = SplitHead(model), batch["rows"][~batch["is_retain"]]
        vocabulary = model.get_output_embeddings().weight.shape[0]
        targets_N = self._targets(batch, rows_N, vocabulary)
        total, _ = head.loss(head.hidden(batch["input_ids"]).flatten(0, 1)[rows_N], cross_entropy(targets_N))
        return Loss(self.sign * total, torch.tensor(float(len(rows_N)), device=total.device), {})


class GradientAscent(_Control):
    """Maximise the loss of the text itself: `l = +log q[x_{i+1}]` (Jang et al. 2023, arXiv 2210.01504, equation 1)."""

    sign = -1.0

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        return batch["input_ids"].flatten()[rows_N + 1]


class RandomLabels(_Control):
    """Minimise the loss of uniformly random tokens: `l = -log q[t]`, t drawn anew each time from the global seed."""

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        return torch.randint(vocabulary, (len(rows_N),)).to(rows_N.device)
