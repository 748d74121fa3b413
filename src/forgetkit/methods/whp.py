"""Component 3 of arXiv 2310.02238: cross-entropy of the model's prediction against the alternative labels.

For a label p and the model's prediction q at the same position of the ORIGINAL text:

    hard (paper):  l = -log q[label]
    soft:          F = sum_k p_k log(p_k / q_k) + p_rest log(p_rest / q_rest)
    symmetric:     F + B with B = sum_k q_k log(q_k / p_k) + q_rest log(q_rest / p_rest)

F is KL(p || q) with everything outside the K kept entries pooled into one outcome; since labels carry no gradient it
differs from cross-entropy by a constant, and with K = 1 and p_rest = 0 it IS the hard loss. F hardly sees what the
model still remembers (a leftover probability of .1 where the label has .01 costs it .07 nats), B does (.15); ours, and
the default. Hard labels have no B: it is infinite.
The value is the weighted mean over positions that carry loss: padding and masked positions do not exist for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from forgetkit.core.heads import RowsLoss, SplitHead, cross_entropy
from forgetkit.core.loop import Loss
from forgetkit.relabel.combine import MIN_REST


def label_divergence(ids_NK: Tensor, log_probs_NK: Tensor, log_rest_N: Tensor, reverse: float = 0.0) -> RowsLoss:
    """KL(label || model) + reverse * KL(model || label) in nats, with its gradient in closed form.

    With p and q pooled to K + 1 outcomes (index r: the rest), F = KL(p || q), B = KL(q || p), w the weight of B:

        d l / d logit_v = q_v - p_v             + w q_v (log q_v/p_v - B)       for kept v
                        = q_v (1 - p_r / q_r)   + w q_v (log q_r/p_r - B)       for the others

    Args:
        ids_NK: kept entries of the label; long [N, K].
        log_probs_NK: their log-probabilities; float32 [N, K].
        log_rest_N: log-mass of all other entries, -inf when there is none; float32 [N].
        reverse: weight of the reverse divergence; 0 is the paper's loss.
    """
    if ids_NK.shape[1] == 1 and not bool(torch.isfinite(log_rest_N).any()):
        # Hard labels take the very operation of plain language modelling, so the two agree bit for bit (T1).
        return cross_entropy(ids_NK[:, 0])
    # A label without a rest (-inf): 0 log 0 is 0 forwards, and backwards it is infinite, so it has no part.
    floor_N = log_rest_N.clamp(min=math.log(MIN_REST))
    reverse_N = reverse * torch.isfinite(log_rest_N)

    def loss(z_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        ids_CK, log_p_CK, log_r_C, w_C = ids_NK[rows], log_probs_NK[rows], log_rest_N[rows], reverse_N[rows]
        q_CV = torch.log_softmax(z_CV, dim=-1)
        model_CK = q_CV.gather(-1, ids_CK)
        rest_C = torch.log1p(-model_CK.exp().sum(dim=-1).clamp(max=1 - MIN_REST))
        ratio_CK, ratio_C = model_CK - log_p_CK, rest_C - floor_N[rows]
        forward_C = -(log_p_CK.exp() * ratio_CK).sum(dim=-1) - log_r_C.exp() * ratio_C
        back_C = (model_CK.exp() * ratio_CK).sum(dim=-1) + rest_C.exp() * ratio_C
        scale_C = 1 - (log_r_C - rest_C).exp() + w_C * (ratio_C - back_C)
        pull_CK = 1 - scale_C[:, None] + w_C[:, None] * (ratio_CK - back_C[:, None])
        kept_CK = model_CK.exp() * pull_CK - log_p_CK.exp()
        grad_CV = q_CV.exp_().mul_(scale_C[:, None]).scatter_add_(-1, ids_CK, kept_CK)
        return forward_C + w_C * back_C, grad_CV

    return loss


class WhpLoss:
    """The loss as a callable `(model, batch) -> Loss`.

    `Loss.total` is the weighted sum of `label_divergence` over the batch's labelled positions, `Loss.count` the sum
    of weights; a batch without labelled positions has total 0 and count 0.
    """

    def __init__(self, reverse: float = 0.0) -> None:
        self.reverse = reverse

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Loss:
        """Loss of one batch (fields: `methods.base.Method`)."""
        head, weight_N, retain_N = SplitHead(model), batch["weight"], batch["is_retain"]
        hidden_NH = head.hidden(batch["input_ids"]).flatten(0, 1)[batch["rows"]]
        divergence = label_divergence(batch["ids"], batch["log_probs"], batch["log_rest"], self.reverse)
        total, loss_N = head.loss(hidden_NH, divergence, weight_N)
        logs = {
            "forget_loss": _mean(loss_N, weight_N, ~retain_N),
            "retain_loss": _mean(loss_N, weight_N, retain_N),
        }
        return Loss(
            total,
            weight_N.sum(),
            {name: value for name, value in logs.items() if value is not None},
        )


def _mean(loss_N: Tensor, weight_N: Tensor, which_N: Tensor) -> float | None:
    mass = (weight_N * which_N).sum()
    return float((loss_N * weight_N * which_N).sum() / mass) if mass > 0 else None
