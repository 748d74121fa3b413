"""Component 2c of arXiv 2310.02238: combine baseline and reinforced predictions into generic ones.

Shapes: N positions, V vocabulary, K kept entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Space = Literal["logits", "log_probs"]


def in_space(logits_NV: Tensor, space: Space) -> Tensor:
    """A model's logits in fp32, as they are (paper) or normalised to log-probabilities; [N, V].

    Log-probabilities keep a constant offset between two models' logits from passing for evidence.
    """
    return logits_NV.float() if space == "logits" else torch.log_softmax(logits_NV.float(), dim=-1)


def generic_logits(
    baseline_NV: Tensor,
    reinforced_NV: Tensor | None,
    *,
    alpha: float,
    subtract_NV: Tensor | None = None,
    largest: int | None = None,
) -> Tensor:
    """`v_generic = v_baseline - alpha * relu(v_reinforced - v_baseline)` (WHP equation 1).

    Args:
        baseline_NV: the baseline on the translated text, at the aligned positions, in its space; float32 [N, V].
        reinforced_NV: the reinforced model on the original text, same rows, same space; None for the dictionary alone.
        alpha: strength of the subtraction (paper: 5).
        subtract_NV: bool, [V], [N, 1] or [N, V]; where False nothing is subtracted. None: everywhere, as in the paper.
        largest: subtract only from so many tokens per position, those that gained most. None: from all (paper).

    Returns:
        float32 [N, V], never `baseline_NV` itself and never above it.
    """
    if reinforced_NV is None or alpha == 0:
        # The caller lowers entries in place, and the baseline's own values are needed after that.
        return baseline_NV.clone()
    gain_NV = (reinforced_NV - baseline_NV).clamp_(min=0)
    if subtract_NV is not None:
        gain_NV.mul_(subtract_NV)
    if largest is not None:
        kept_NK = gain_NV.topk(min(largest, gain_NV.shape[-1]), dim=-1)
        gain_NV.zero_().scatter_(-1, kept_NK.indices, kept_NK.values)
    return torch.sub(baseline_NV, gain_NV, alpha=alpha)


def shift(
    own_NV: Tensor | None, reinforced_NV: Tensor | None, contrast: float, prior_V: Tensor | None, prior: float
) -> Tensor | None:
    """What is added to the generic values of every dictionary: `contrast (own - reinforced) + prior log frequency`.

    Ours, the paper has neither. Both models read the ORIGINAL text here, so that their difference is what reading it
    once more changes and nothing else; in equation 1 it is mixed with what translating changes, and what reinforcement
    lowers is lost. Subtracted, it leads from the baseline the way back (the task arithmetic of arXiv 2212.04089, in
    log-probabilities).

    Args:
        own_NV: the baseline on the original text, in its space; float32 [N, V], overwritten. None: no contrast.
        reinforced_NV: the reinforced model on the same rows, same space; None: no contrast.
        contrast, prior: the two strengths.
        prior_V: log frequencies (`log_frequencies`); float32 [V]. None: no prior.

    Returns:
        float32, broadcastable to [N, V]; None where there is nothing to add.
    """
    moved: Tensor | None = None
    if own_NV is not None and reinforced_NV is not None and contrast > 0:
        moved = own_NV.sub_(reinforced_NV).mul_(contrast)
    if prior_V is not None and prior > 0:
        moved = prior * prior_V if moved is None else moved.add_(prior_V, alpha=prior)
    return moved


def log_frequencies(ids: NDArray[np.int32], vocab_size: int) -> Tensor:
    """Log of every token's share of a text, each counted once more than it occurs; float32 [V].

    Args:
        ids: the text's tokens; [n].
    """
    counts = np.bincount(ids, minlength=vocab_size) + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()


def average(predictions: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Mean in probability of the generic predictions under several dictionaries; ours, the paper has one.

    What one set of counterparts brings along ("Martha" for "Dorothy") differs from the next and averages out.

    Args:
        predictions: (generic values, `salience` or None) of the same positions, each float32 [N, V]; at least one, and
            with several the first is overwritten.

    Returns:
        log of the mean probability, and every token's largest salience; one alone comes back as it is.
    """
    every = iter(predictions)
    mean_NV, salient_NV = next(every)
    count = 1
    for other_NV, other_salient_NV in every:
        mean_NV = torch.softmax(mean_NV, dim=-1) if count == 1 else mean_NV
        mean_NV += torch.softmax(other_NV, dim=-1)
        if salient_NV is not None and other_salient_NV is not None:
            torch.maximum(salient_NV, other_salient_NV, out=salient_NV)
        count += 1
        del other_NV, other_salient_NV  # or they are alive while the next ones are made
    if count > 1:
        mean_NV.div_(count).clamp_min_(torch.finfo(torch.float32).tiny).log_()
    return mean_NV, salient_NV


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


def salience(baseline_NV: Tensor, reinforced_NV: Tensor | None, space: Space) -> Tensor:
    """The larger of both models' log-probabilities; values as `in_space` gave them, float32 [N, V]."""
    both = [v for v in (baseline_NV, reinforced_NV) if v is not None]
    if space == "logits":
        both = [torch.log_softmax(v, dim=-1) for v in both]
    return both[0] if len(both) == 1 else torch.maximum(*both)


def hard_labels(v_NV: Tensor) -> TopK:
    """`label = argmax_V v_generic` (WHP section 2.3): all mass on one entry. Ties go to the lowest id."""
    ids_NK = v_NV.argmax(dim=-1, keepdim=True)
    zeros_N = torch.zeros(v_NV.shape[0], dtype=torch.float32, device=v_NV.device)
    return TopK(ids_NK, zeros_N[:, None], torch.full_like(zeros_N, -float("inf")))
