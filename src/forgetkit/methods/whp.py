"""Component 3 of arXiv 2310.02238: cross-entropy of the model's prediction against the alternative labels.

For a label p and the model's prediction q at the same position of the ORIGINAL text:

    hard (paper):  l = -log q[label]
    soft:          l = sum_k p_k (log p_k - log q_k) + p_rest (log p_rest - log q_rest)

The soft loss is KL(p || q) with everything outside the K kept entries pooled into one outcome; since labels carry no
gradient it differs from cross-entropy by a constant, and with K = 1 and p_rest = 0 it IS the hard loss.
The value is the weighted mean over positions that carry loss: padding and masked positions do not exist for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetkit.core.heads import SplitHead
from forgetkit.core.loop import Loss

MIN_REST = 1e-6


def label_divergence(logits_NV: Tensor, ids_NK: Tensor, log_probs_NK: Tensor, log_rest_N: Tensor) -> Tensor:
    """KL(label || model) in nats at N positions; float32 [N].

    Args:
        logits_NV: the model's logits, any float dtype; [N, V].
        ids_NK: kept entries of the label; long [N, K].
        log_probs_NK: their log-probabilities; float32 [N, K].
        log_rest_N: log-mass of all other entries, -inf when there is none; float32 [N].
    """
    logits_NV = logits_NV.float()
    has_rest_N = torch.isfinite(log_rest_N)
    if ids_NK.shape[1] == 1 and not bool(has_rest_N.any()):
        # Hard labels take the very operation of plain language modelling, so the two agree bit for bit (T1).
        return F.cross_entropy(logits_NV, ids_NK[:, 0], reduction="none")
    normaliser_N = torch.logsumexp(logits_NV, dim=-1)
    model_NK = logits_NV.gather(-1, ids_NK) - normaliser_N[:, None]
    kept_N = (log_probs_NK.exp() * (log_probs_NK - model_NK)).sum(dim=-1)
    if not bool(has_rest_N.any()):
        return kept_N
    model_rest_N = torch.log1p(-model_NK.exp().sum(dim=-1).clamp(max=1 - MIN_REST))
    log_rest_N = torch.where(has_rest_N, log_rest_N, torch.zeros_like(log_rest_N))
    rest_N = log_rest_N.exp() * (log_rest_N - model_rest_N)
    return kept_N + torch.where(has_rest_N, rest_N, torch.zeros_like(rest_N))


class WhpLoss:
    """The loss as a callable `(model, batch) -> Loss`; the head is split off the model once.

    `Loss.total` is the weighted sum of `label_divergence` over the batch's labelled positions, `Loss.count` the sum
    of weights; a batch without labelled positions has total 0 and count 0.
    """

    def __init__(self) -> None:
        self._split: SplitHead | None = None

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Loss:
        """Loss of one batch (fields: `methods.base.Method`)."""
        if self._split is None or self._split.model is not model:
            self._split = SplitHead(model)
        hidden_BTH = self._split.hidden(batch["input_ids"])
        hidden_NH = hidden_BTH.flatten(0, 1)[batch["rows"]]
        loss_N = label_divergence(self._split.logits(hidden_NH), batch["ids"], batch["log_probs"], batch["log_rest"])
        weight_N, retain_N = batch["weight"], batch["is_retain"]
        logs = {
            "forget_loss": _mean(loss_N, weight_N, ~retain_N),
            "retain_loss": _mean(loss_N, weight_N, retain_N),
        }
        return Loss(
            (loss_N * weight_N).sum(),
            weight_N.sum(),
            {name: value for name, value in logs.items() if value is not None},
        )


def _mean(loss_N: Tensor, weight_N: Tensor, which_N: Tensor) -> float | None:
    mass = (weight_N * which_N).sum()
    return float((loss_N.detach() * weight_N * which_N).sum() / mass) if mass > 0 else None
