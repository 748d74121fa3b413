"""Two ways to ruin a model, kept as controls: what they score shows what a metric is worth.

Neither reads the labels; both train on the original blocks alone, at the labelled positions. A forgetting metric that
such a model passes measures damage, not forgetting, unless the health check withholds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetkit.core.heads import SplitHead
from forgetkit.core.loop import Loss


class _Control:
    """Cross-entropy against tokens that `_targets` names, times `sign`, at the target's positions."""

    sign = 1.0

    def __init__(self) -> None:
        self._split: SplitHead | None = None

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        raise NotImplementedError

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Loss:
        """Loss of one batch (fields: `methods.base.Method`); retain positions carry none."""
        if self._split is None or self._split.model is not model:
            self._split = SplitHead(model)
        rows_N = batch["rows"][~batch["is_retain"]]
        logits_NV = self._split.logits(self._split.hidden(batch["input_ids"]).flatten(0, 1)[rows_N]).float()
        targets_N = self._targets(batch, rows_N, logits_NV.shape[-1])
        total = self.sign * F.cross_entropy(logits_NV, targets_N, reduction="sum")
        return Loss(total, torch.tensor(float(len(rows_N)), device=total.device), {})


class GradientAscent(_Control):
    """Maximise the loss of the text itself: `l = +log q[x_{i+1}]` (Jang et al. 2023, arXiv 2210.01504, equation 1)."""

    sign = -1.0

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        return batch["input_ids"].flatten()[rows_N + 1]


class RandomLabels(_Control):
    """Minimise the loss of uniformly random tokens: `l = -log q[t]`, t drawn anew each time from the global seed."""

    def _targets(self, batch: dict[str, Tensor], rows_N: Tensor, vocabulary: int) -> Tensor:
        return torch.randint(vocabulary, (len(rows_N),)).to(rows_N.device)
