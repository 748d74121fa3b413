"""Component 2c of arXiv 2310.02238: combine baseline and reinforced predictions into generic ones.

Shapes: N positions, V vocabulary, K kept entries.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


def generic_logits(
    baseline_NV: Tensor,
    reinforced_NV: Tensor | None,
    *,
    alpha: float,
    space: Literal["logits", "log_probs"] = "logits",
    subtract_NV: Tensor | None = None,
    largest: int | None = None,
) -> Tensor:
    """`v_generic = v_baseline - alpha * relu(v_reinforced - v_baseline)` (WHP equation 1), in fp32.

    Args:
        baseline_NV: logits of the baseline on the translated text, at the aligned positions; float [N, V].
        reinforced_NV: logits of the reinforced model on the original text, same rows; None for the dictionary alone.
        alpha: strength of the subtraction (paper: 5).
        space: 'logits' as in the paper, or 'log_probs': both sides are normalised first, so that a constant
            offset between the two models' logits cannot pass for evidence.
        subtract_NV: bool, [V], [N, 1] or [N, V]; where False nothing is subtracted. None: everywhere, as in the paper.
        largest: subtract only from so many tokens per position, those that gained most. None: from all (paper).

    Returns:
        float32 [N, V], never `baseline_NV` itself. In 'logits' space it is never above `baseline_NV`.
    """
    v_NV = baseline_NV.float()
    if space == "log_probs":
        v_NV = torch.log_softmax(v_NV, dim=-1)
    if reinforced_NV is None or alpha == 0:
        # The caller lowers entries in place, and the baseline's own values are needed after that.
        return v_NV.clone() if v_NV is baseline_NV else v_NV
    r_NV = reinforced_NV.float()
    if space == "log_probs":
        r_NV = torch.log_softmax(r_NV, dim=-1)
    gain_NV = torch.relu(r_NV - v_NV)
    if subtract_NV is not None:
        gain_NV = gain_NV * subtract_NV
    if largest is not None:
        kept_NK = gain_NV.topk(min(largest, gain_NV.shape[-1]), dim=-1)
        gain_NV = torch.zeros_like(gain_NV).scatter_(-1, kept_NK.indices, kept_NK.values)
    return v_NV - alpha * gain_NV


class TopK(NamedTuple):
    """A distribution per position as its K largest entries and the mass of the rest."""

    ids_NK: Tensor
    """Vocabulary ids, most probable first; long [N, K]."""
    log_probs_NK: Tensor
    """Their log-probabilities in nats; float32 [N, K]."""
    log_rest_N: Tensor
    """Log of the probability of all other entries; float32 [N]."""


MIN_REST = 1e-6


def soft_labels(v_NV: Tensor, top_k: int, salience_NV: Tensor | None = None) -> TopK:
    """Normalise `v_NV` (float32 [N, V]) and keep `top_k` entries plus the mass of the rest.

    Kept are the entries largest in `salience_NV` (default: the label itself). A token that a rule has lowered is no
    longer probable under the label, and pooled with the rest nothing would push it down in training: salience lets it
    be kept for what the models thought of it before (`salience`).
    """
    log_probs_NV = torch.log_softmax(v_NV, dim=-1)
    chosen_NV = log_probs_NV if salience_NV is None else torch.maximum(log_probs_NV, salience_NV)
    ids_NK = chosen_NV.topk(min(top_k, v_NV.shape[-1]), dim=-1).indices
    log_probs_NK, order_NK = log_probs_NV.gather(-1, ids_NK).sort(dim=-1, descending=True, stable=True)
    kept_N = log_probs_NK.exp().sum(dim=-1)
    return TopK(ids_NK.gather(-1, order_NK), log_probs_NK, torch.log1p(-kept_N.clamp(max=1 - MIN_REST)))


def salience(baseline_NV: Tensor, reinforced_NV: Tensor | None) -> Tensor:
    """The larger of both models' log-probabilities; float32 [N, V]."""
    b_NV = torch.log_softmax(baseline_NV.float(), dim=-1)
    if reinforced_NV is None:
        return b_NV
    return torch.maximum(b_NV, torch.log_softmax(reinforced_NV.float(), dim=-1))


def hard_labels(v_NV: Tensor) -> TopK:
    """`label = argmax_V v_generic` (WHP section 2.3): all mass on one entry. Ties go to the lowest id."""
    ids_NK = v_NV.argmax(dim=-1, keepdim=True)
    zeros_N = torch.zeros(v_NV.shape[0], dtype=torch.float32, device=v_NV.device)
    return TopK(ids_NK, zeros_N[:, None], torch.full_like(zeros_N, -float("inf")))
