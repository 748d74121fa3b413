"""Membership inference: can a text of the target be told from one that was never trained on?

Every score is the larger, the more a text looks like training data (OpenUnlearning's scores are these times -1). AUROC
is then P(score of a member > score of a non-member), ties half: 0.5 = cannot be told apart, 1 = every member is
recognised; below 0.5 the "forgotten" texts stand out by being unlikely, which gives them away as well. Members are the
target's texts, non-members texts of the same kind and time that no model saw: where these differ in author or date, the
attack measures that difference, and only the reference model's AUROC beside it tells.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.progress import progress
from forgetkit.evaluate.forward import check_vocabulary, check_window
from forgetkit.evaluate.significance import Sizes, cumulative, resampled_weights, sizes
from forgetkit.evaluate.statistics import LEVEL, RESAMPLES, Estimate, Floats, Ints, Series
from forgetkit.evaluate.tokens import Ids, TokenScores, scored_from

K = 0.4
"""Share of a text's tokens in min-k, as MUSE and OpenUnlearning have it."""
FPR = 0.01
_LEAST_VARIANCE = 1e-6
_CHUNK = 500
_UNMEASURED = "not measured, or not finite"


def loss_scores(scores: TokenScores) -> Floats:
    """Mean log-probability per token [n]: minus the loss. Yeom et al., 2018."""
    return scores.mean_log_p


def zlib_scores(scores: TokenScores, texts: Sequence[str]) -> Floats:
    """Mean log-probability over the bytes of the zlib-compressed text [n]. Carlini et al., 2021."""
    size = np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts], dtype=np.float64)
    return scores.mean_log_p / size


def min_k_scores(scores: TokenScores, k: float = K) -> Floats:
    """Mean of the lowest max(1, floor(k n)) log-probabilities of each text's n tokens [n]. Shi et al., 2024.

    `muse` and `openunlearning` alike, but for texts of fewer than 1/k tokens, which MUSE makes NaN.
    """
    return _lowest(scores, scores.log_p, k)


def min_k_plus_plus_scores(scores: TokenScores, k: float = K) -> Floats:
    """As min-k, of (log p_t - mu_t) / sigma_t: how the token compares with what the model expected there.

    mu, sigma^2: mean and variance of log p over the model's own next-token distribution, sigma^2 at least 1e-6.
    Zhang et al., 2024; `openunlearning`.
    """
    sigma = np.sqrt(np.maximum(scores.variance, _LEAST_VARIANCE))
    return _lowest(scores, (scores.log_p - scores.mean) / sigma, k)


def _lowest(scores: TokenScores, values: Floats, k: float) -> Floats:
    if not 0 < k <= 1:
        raise ForgetkitError(f"min-k with k = {k}", where="evaluate", remedy="give a share above 0 and up to 1")
    parts = scores.split(values)
    means = [
        float(np.sort(part)[: max(1, int(k * len(part)))].mean()) if len(part) and not np.isnan(part).any() else np.nan
        for part in parts
    ]
    return np.array(means, dtype=np.float64)


def reference_scores(
    scores: TokenScores, reference: TokenScores, kind: Literal["difference", "ratio"] = "difference"
) -> Floats:
    """How much likelier a text is than a model that never saw it finds it [n]. Carlini et al., 2021.

    With mean losses L and L_ref: `difference` = L_ref - L (`openunlearning`), `ratio` = -L / L_ref. Raises
    ForgetkitError where the two count tokens differently: means over different tokens cannot be compared.
    """
    if not np.array_equal(scores.bounds, reference.bounds):
        raise ForgetkitError(
            "the model and the reference model cut the texts into different tokens",
            where="reference attack",
            remedy="give a reference model with the same tokenizer",
        )
    if kind == "difference":
        return scores.mean_log_p - reference.mean_log_p
    with np.errstate(divide="ignore", invalid="ignore"):
        return scores.mean_log_p / -reference.mean_log_p


def measure_gradient_norms(
    model: PreTrainedModel,
    rows: Sequence[Ids],
    starts: Sequence[int] | None = None,
    norm: Literal["openunlearning", "global"] = "openunlearning",
) -> Floats:
    """Norm of the gradient of each row's mean loss with respect to the weights [n]; NaN without scored tokens.

    Training data has small gradients, so the score is minus this. `openunlearning`: the L2 norm of each parameter
    tensor, averaged over tensors (theirs runs with dropout on, this one does not); `global`: L2 norm over all weights.
    One row at a time, so there is no padding; memory of one gradient. The model is left as it was.
    """
    begins = scored_from(rows, starts)
    trainable = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in trainable]
    norms = np.full(len(rows), np.nan)
    try:
        for parameter in trainable:
            parameter.requires_grad_(True)
        with progress("gradient norms", len(rows), "texts") as bar:
            for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
                if len(row) > begin:
                    norms[i] = _gradient_norm(model, trainable, row, begin, norm)
                bar.advance(1)
    finally:
        for parameter, flag in zip(trainable, before, strict=True):
            parameter.requires_grad_(flag)
    return norms


def _gradient_norm(
    model: PreTrainedModel, parameters: list[torch.nn.Parameter], row: Ids, begin: int, norm: str
) -> float:
    check_window(model, len(row), "a measurement")
    check_vocabulary(model, max(row))
    ids = torch.tensor([list(row)], device=model.device)
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, begin - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, begin:])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    each = torch.stack([g.float().norm() for g in gradients if g is not None]).double()
    return float(each.mean() if norm == "openunlearning" else each.norm())


def attack_scores(
    scores: TokenScores,
    texts: Sequence[str],
    *,
    reference: TokenScores | None = None,
    gradient_norms: Floats | None = None,
    k: float = K,
) -> dict[str, Floats]:
    """Every attack's score per text [n]; those that need a reference model or gradients only where these are given."""
    made = {
        "loss": loss_scores(scores),
        "zlib": zlib_scores(scores, texts),
        "min_k": min_k_scores(scores, k),
        "min_k_plus_plus": min_k_plus_plus_scores(scores, k),
    }
    if gradient_norms is not None:
        made["gradient_norm"] = -gradient_norms
    if reference is not None:
        made["reference_difference"] = reference_scores(scores, reference)
        made["reference_ratio"] = reference_scores(scores, reference, "ratio")
    return made


@dataclass(frozen=True)
class Attack:
    """One attack on one model. tpr: share of members recognised while at most 1% of non-members are taken for one.

    p: two-sided, of "members and non-members are alike" (labels of whole clusters permuted); None: not measured.
    """

    auroc: Estimate
    tpr: Estimate
    p: float | None
    members: Sizes
    nonmembers: Sizes


def auroc(members: Series, nonmembers: Series) -> float:
    """P(member > non-member) + P(equal) / 2, of scores weighted by their units' weights."""
    return float(_auroc(*_both(members, nonmembers))[0])


def tpr_at_fpr(members: Series, nonmembers: Series, fpr: float = FPR) -> float:
    """Largest share of members at or above a threshold that at most `fpr` of non-members reach; not interpolated."""
    return float(_tpr(*_both(members, nonmembers), fpr)[0])


def _both(members: Series, nonmembers: Series) -> tuple[Floats, Floats]:
    values = np.concatenate([members.values, nonmembers.values])
    return _shares(values, members.weights[None], nonmembers.weights[None])


def _shares(values: Floats, member_weights: Floats, nonmember_weights: Floats) -> tuple[Floats, Floats]:
    """Shares [B, U] of members and of non-members at or below each distinct score of values [n + m]."""
    n, m = member_weights.shape[1], nonmember_weights.shape[1]
    rows = len(member_weights)
    padded = (np.hstack([member_weights, np.zeros((rows, m))]), np.hstack([np.zeros((rows, n)), nonmember_weights]))
    below = [cumulative(values, weights) for weights in padded]
    return below[0] / below[0][:, -1:], below[1] / below[1][:, -1:]


def _auroc(member: Floats, nonmember: Floats) -> Floats:
    gained = np.diff(member, axis=1, prepend=0.0)
    lower = np.hstack([np.zeros((len(nonmember), 1)), nonmember[:, :-1]])
    return np.asarray((gained * (lower + nonmember) / 2).sum(1))


def _tpr(member: Floats, nonmember: Floats, fpr: float) -> Floats:
    reached = 1 - np.hstack(
        [np.zeros((len(member), 1)), member]
    )  # share at or above each distinct score, then above all
    alarms = 1 - np.hstack([np.zeros((len(nonmember), 1)), nonmember])
    return np.asarray(np.where(alarms <= fpr + 1e-12, reached, 0.0).max(1))


def _draws(pairs: Sequence[tuple[Series, Series]], resamples: int, seed: int, fpr: float) -> tuple[Floats, Floats]:
    """AUROC and TPR [len(pairs), resamples] of several models' scores of the same texts, clusters resampled alike."""
    generator = np.random.default_rng(seed)
    (members, nonmembers), done = pairs[0], 0
    area, rate = np.empty((2, len(pairs), resamples))
    while done < resamples:
        size = min(_CHUNK, resamples - done)
        weights = [resampled_weights(s.groups, s.weights, size, generator) for s in (members, nonmembers)]
        for i, (own, other) in enumerate(pairs):
            shares = _shares(np.concatenate([own.values, other.values]), weights[0], weights[1])
            area[i, done : done + size], rate[i, done : done + size] = _auroc(*shares), _tpr(*shares, fpr)
        done += size
    return area, rate


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def attack(
    members: Series, nonmembers: Series, *, fpr: float = FPR, resamples: int = RESAMPLES, seed: int = 0
) -> Attack:
    """AUROC and TPR at `fpr` with bootstrap intervals (95%, percentile; members and non-members resampled by clusters).

    The rate is withheld below 1/fpr non-members: one of them alone is more than `fpr`. Give the document of a text as
    its group: texts of one book are not independent.
    """
    told = sizes(members), sizes(nonmembers)
    if not (members.finite and nonmembers.finite):
        missing = Estimate(None, reason=_UNMEASURED)
        return Attack(missing, missing, None, *told)
    area, rate = _draws([(members, nonmembers)], resamples, seed, fpr)
    spread = min(told[0].clusters, told[1].clusters) > 1
    value = auroc(members, nonmembers)
    found = Estimate(value, *(_interval(area[0]) if spread else (None, None)))
    reason = f"{len(nonmembers.values)} non-members cannot resolve a false-positive rate of {fpr:.0%}"
    tpr = Estimate(None, reason=reason)
    if len(nonmembers.values) * fpr >= 1 - 1e-9:
        tpr = Estimate(tpr_at_fpr(members, nonmembers, fpr), *(_interval(rate[0]) if spread else (None, None)))
    return Attack(found, tpr, _permutation_p(members, nonmembers, value, resamples, seed), *told)


def _permutation_p(members: Series, nonmembers: Series, observed: float, resamples: int, seed: int) -> float:
    """(1 + permutations of the clusters' labels with |AUROC - 0.5| as large) / (1 + permutations)."""
    values = np.concatenate([members.values, nonmembers.values])
    weights = np.concatenate([members.weights, nonmembers.weights])
    own, other = (np.unique(s.groups, return_inverse=True)[1] for s in (members, nonmembers))
    groups: Ints = np.concatenate([own, other + own.max() + 1])
    clusters, inside = int(groups.max()) + 1, int(own.max()) + 1
    generator = np.random.default_rng([seed, 1])
    hits = done = 0
    while done < resamples:
        size = min(_CHUNK, resamples - done)
        ranks = generator.permuted(np.tile(np.arange(clusters), (size, 1)), axis=1)
        chosen = (ranks < inside)[:, groups]
        shares = [cumulative(values, weights * mask) for mask in (chosen, ~chosen)]
        area = _auroc(shares[0] / shares[0][:, -1:], shares[1] / shares[1][:, -1:])
        hits += int((np.abs(area - 0.5) >= abs(observed - 0.5) - 1e-9).sum())
        done += size
    return (1 + hits) / (resamples + 1)


def auroc_difference(
    unlearned: tuple[Series, Series], reference: tuple[Series, Series], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """AUROC(unlearned) - AUROC(reference) of (members, non-members), texts resampled alike; 0 = as if never trained."""
    if not all(series.finite for pair in (unlearned, reference) for series in pair):
        return Estimate(None, reason=_UNMEASURED)
    _check_same(unlearned, reference)
    area, _ = _draws([unlearned, reference], resamples, seed, FPR)
    return Estimate(auroc(*unlearned) - auroc(*reference), *_interval(area[0] - area[1]))


def _check_same(a: tuple[Series, Series], b: tuple[Series, Series]) -> None:
    if not all(np.array_equal(x.groups, y.groups) for x, y in zip(a, b, strict=True)):
        raise ForgetkitError(
            "the two models were attacked with different texts", where="evaluate", remedy="use the same texts for both"
        )


def privleak_value(auc: float, reference_auc: float) -> float:
    """100 (A - A_ref) / A_ref with A = 1 - AUROC; arguments are AUROC in this module's direction.

    Sign: -100 (A_ref near 0.5) = members still recognised, under-unlearned; 0 = as the retrained model; positive =
    members look *less* likely than unseen text, over-unlearned. NaN for A_ref = 0. MUSE, equation of PrivLeak:
    its AUC has min-40% scores of holdout above those of forget texts, so it is A. `openunlearning` writes
    ((1 - auc) - (1 - ref)) / (1 - ref) with auc in our direction: the same number.
    """
    base = 1 - reference_auc
    return 100 * ((1 - auc) - base) / base if base > 0 else float("nan")


def privleak(
    unlearned: tuple[Series, Series],
    reference: tuple[Series, Series],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """PrivLeak in percent (sign: `privleak_value`), with its bootstrap interval; MUSE's with min-k scores, k = 0.4.

    unlearned, reference: (members, non-members) scores of the unlearned and of the retrained model for the same texts.
    OpenUnlearning puts 0.5 where there is no retrained model; nothing is told here without one.
    """
    if not all(series.finite for series in (*unlearned, *reference)):
        return Estimate(None, reason=_UNMEASURED)
    _check_same(unlearned, reference)
    (area, bases), _ = _draws([unlearned, reference], resamples, seed, FPR)
    base = auroc(*reference)
    if base >= 1 or (bases >= 1).any():
        return Estimate(None, reason="the reference model recognises every member, so nothing can be divided by")
    return Estimate(privleak_value(auroc(*unlearned), base), *_interval(100 * (bases - area) / (1 - bases)))
