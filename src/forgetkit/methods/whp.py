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
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetkit.core.heads import SplitHead
from forgetkit.core.loop import Loss
from forgetkit.relabel.combine import MIN_REST

CHUNK = 512
"""Rows of full-vocabulary fp32 values alive at one time."""


class _PooledDivergence(torch.autograd.Function):
    """Both divergences with their gradients in closed form, so that nothing of size [N, V] is kept in fp32.

    With p and q pooled to K + 1 outcomes (index r: the rest), F = KL(p || q), B = KL(q || p), w the weight of B:

    d l / d logit_v = q_v - p_v             + w q_v (log q_v/p_v - B)       for kept v
                    = q_v (1 - p_r / q_r)   + w q_v (log q_r/p_r - B)       for the others
    """

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, ids_NK: Tensor, log_probs_NK: Tensor, log_rest_N: Tensor, reverse: float
    ) -> Tensor:
        """Loss of N labels; float32 [N]."""
        loss_N = torch.empty(len(ids_NK), dtype=torch.float32, device=logits_NV.device)
        normaliser_N, back_N, log_rest_model_N = (torch.empty_like(loss_N) for _ in range(3))
        # A label without a rest (-inf): 0 log 0 is 0 forwards, and backwards it is infinite, so it has no part.
        floor_N = log_rest_N.clamp(min=math.log(MIN_REST))
        reverse_N = reverse * torch.isfinite(log_rest_N)
        for rows in _chunks(len(ids_NK)):
            z_CV = logits_NV[rows].float()
            normaliser_N[rows] = torch.logsumexp(z_CV, dim=-1)
            model_CK = z_CV.gather(-1, ids_NK[rows]) - normaliser_N[rows, None]
            log_rest_model_N[rows] = torch.log1p(-model_CK.exp().sum(dim=-1).clamp(max=1 - MIN_REST))
            ratio_CK, ratio_C = model_CK - log_probs_NK[rows], log_rest_model_N[rows] - floor_N[rows]
            loss_N[rows] = -(log_probs_NK[rows].exp() * ratio_CK).sum(dim=-1) - log_rest_N[rows].exp() * ratio_C
            back_N[rows] = (model_CK.exp() * ratio_CK).sum(dim=-1) + log_rest_model_N[rows].exp() * ratio_C
        ctx.save_for_backward(
            logits_NV, ids_NK, log_probs_NK, log_rest_N, floor_N, normaliser_N, log_rest_model_N, back_N, reverse_N
        )
        return loss_N + reverse_N * back_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient by the logits, in their dtype."""
        (logits_NV, ids_NK, log_probs_NK, log_rest_N, floor_N, normaliser_N, log_rest_model_N, back_N, w_N) = (
            ctx.saved_tensors
        )
        grad_N = grad_outputs[0]
        grad_NV = torch.empty_like(logits_NV)
        scale_N = 1 - (log_rest_N - log_rest_model_N).exp() + w_N * (log_rest_model_N - floor_N - back_N)
        for rows in _chunks(len(ids_NK)):
            q_CV = logits_NV[rows].float() - normaliser_N[rows, None]
            model_CK = q_CV.gather(-1, ids_NK[rows])
            q_CV.exp_()
            pull_CK = 1 - scale_N[rows, None] + w_N[rows, None] * (model_CK - log_probs_NK[rows] - back_N[rows, None])
            kept_CK = model_CK.exp() * pull_CK - log_probs_NK[rows].exp()
            q_CV.mul_((scale_N[rows] * grad_N[rows])[:, None])
            q_CV.scatter_add_(-1, ids_NK[rows], kept_CK * grad_N[rows, None])
            grad_NV[rows] = q_CV.to(grad_NV.dtype)
        return grad_NV, None, None, None, None


def _chunks(n: int) -> Iterator[slice]:
    return (slice(low, low + CHUNK) for low in range(0, n, CHUNK))


def label_divergence(
    logits_NV: Tensor, ids_NK: Tensor, log_probs_NK: Tensor, log_rest_N: Tensor, reverse: float = 0.0
) -> Tensor:
    """KL(label || model) + reverse * KL(model || label) in nats at N positions; float32 [N].

    Args:
        logits_NV: the model's logits, any float dtype; [N, V].
        ids_NK: kept entries of the label; long [N, K].
        log_probs_NK: their log-probabilities; float32 [N, K].
        log_rest_N: log-mass of all other entries, -inf when there is none; float32 [N].
        reverse: weight of the reverse divergence; 0 is the paper's loss.
    """
    if ids_NK.shape[1] == 1 and not bool(torch.isfinite(log_rest_N).any()):
        # Hard labels take the very operation of plain language modelling, so the two agree bit for bit (T1).
        return F.cross_entropy(logits_NV.float(), ids_NK[:, 0], reduction="none")
    loss_N: Tensor = _PooledDivergence.apply(logits_NV, ids_NK, log_probs_NK, log_rest_N, reverse)  # type: ignore[no-untyped-call]
    return loss_N


class WhpLoss:
    """The loss as a callable `(model, batch) -> Loss`; the head is split off the model once.

    `Loss.total` is the weighted sum of `label_divergence` over the batch's labelled positions, `Loss.count` the sum
    of weights; a batch without labelled positions has total 0 and count 0.
    """

    def __init__(self, reverse: float = 0.0) -> None:
        self.reverse = reverse
        self._split: SplitHead | None = None

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Loss:
        """Loss of one batch (fields: `methods.base.Method`)."""
        if self._split is None or self._split.model is not model:
            self._split = SplitHead(model)
        hidden_BTH = self._split.hidden(batch["input_ids"])
        hidden_NH = hidden_BTH.flatten(0, 1)[batch["rows"]]
        logits_NV = self._split.logits(hidden_NH)
        loss_N = label_divergence(logits_NV, batch["ids"], batch["log_probs"], batch["log_rest"], self.reverse)
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
