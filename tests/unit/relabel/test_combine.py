"""Component 2c: hand-computed numbers on a three-token vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from forgetkit.relabel.combine import (
    Space,
    generic_logits,
    hard_labels,
    in_space,
    log_frequencies,
    salience,
    shift,
    soft_labels,
)

BASE = torch.tensor([[2.0, 1.0, 0.0]])
RAISED = torch.tensor([[4.0, 0.5, 0.0]])


def test_equation_one_by_hand() -> None:
    # relu(4 - 2) = 2, relu(.5 - 1) = 0, relu(0) = 0; alpha 5: 2 - 10 = -8
    assert generic_logits(BASE, RAISED, alpha=5).tolist() == [[-8.0, 1.0, 0.0]]


def test_identity_as_minimum_and_upper_bound() -> None:
    torch.manual_seed(0)
    base, raised = torch.randn(50, 7), torch.randn(50, 7)
    v = generic_logits(base, raised, alpha=3.0)
    assert torch.allclose(v, torch.minimum(base, 4 * base - 3 * raised), atol=1e-5)
    assert bool((v <= base).all())


def combined(base: torch.Tensor, raised: torch.Tensor, space: Space) -> torch.Tensor:
    return generic_logits(in_space(base, space), in_space(raised, space), alpha=2)


def test_log_probs_are_not_fooled_by_a_constant_offset() -> None:
    shifted = RAISED + 100.0
    assert torch.allclose(combined(BASE, shifted, "log_probs"), combined(BASE, RAISED, "log_probs"), atol=1e-4)
    assert not torch.allclose(combined(BASE, shifted, "logits"), combined(BASE, RAISED, "logits"))


def test_log_probs_by_hand() -> None:
    p = [math.exp(x) for x in (2.0, 1.0, 0.0)]
    q = [math.exp(x) for x in (4.0, 0.5, 0.0)]
    lp = [math.log(x / sum(p)) for x in p]
    lq = [math.log(x / sum(q)) for x in q]
    expected = [a - 2 * max(0.0, b - a) for a, b in zip(lp, lq, strict=True)]
    assert combined(BASE, RAISED, "log_probs")[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_subtraction_restricted_to_chosen_tokens() -> None:
    only = torch.tensor([False, True, True])
    assert generic_logits(BASE, RAISED, alpha=5, subtract_NV=only).tolist() == BASE.tolist()


def test_dictionary_alone_without_reinforced_model() -> None:
    assert generic_logits(BASE, None, alpha=5).tolist() == BASE.tolist()


def test_contrast_goes_back_where_reinforcement_raised_and_where_it_lowered() -> None:
    # own - raised = (-2, .5, 0); half of it, whatever the sign
    moved = shift(BASE.clone(), RAISED, 0.5, None, 0.15)
    assert moved is not None
    assert moved.tolist() == [[-1.0, 0.25, 0.0]]


def test_frequencies_and_prior_by_hand() -> None:
    prior_V = log_frequencies(np.array([1, 1, 0], np.int32), 3)  # counts 2, 3, 1 of 6
    assert prior_V.exp().tolist() == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    alone = shift(None, None, 0.5, prior_V, 2.0)
    both = shift(BASE.clone(), RAISED, 0.5, prior_V, 2.0)
    assert alone is not None and both is not None
    assert alone.tolist() == pytest.approx([2 * math.log(x / 6) for x in (2, 3, 1)])
    assert both[0].tolist() == pytest.approx([a + b for a, b in zip((-1.0, 0.25, 0.0), alone.tolist(), strict=True)])


def test_nothing_to_add() -> None:
    assert shift(None, RAISED, 0.5, None, 1.0) is None
    assert shift(BASE.clone(), RAISED, 0.0, log_frequencies(np.array([0], np.int32), 3), 0.0) is None


def test_soft_labels_are_a_distribution() -> None:
    v = torch.tensor([[0.0, math.log(2), math.log(5)]])
    label = soft_labels(v, 2)
    assert label.ids_NK.tolist() == [[2, 1]]
    assert label.log_probs_NK.exp()[0].tolist() == pytest.approx([5 / 8, 2 / 8])
    assert label.log_rest_N.exp()[0].item() == pytest.approx(1 / 8)


def test_hard_label_is_the_argmax_with_all_mass() -> None:
    label = hard_labels(torch.tensor([[0.0, 3.0, 3.0]]))
    assert label.ids_NK.tolist() == [[1]]
    assert label.log_probs_NK.tolist() == [[0.0]]
    assert label.log_rest_N.item() == -math.inf


def test_a_lowered_token_stays_an_explicit_entry() -> None:
    """Pooled with the rest, nothing would push it down: the fault that left a fifth of the recall in place."""
    before = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]])
    lowered = before - torch.tensor([[6.0, 0.0, 0.0]])
    assert 0 not in soft_labels(lowered, 2).ids_NK[0].tolist()
    kept = soft_labels(lowered, 2, salience(before, None, "log_probs"))
    assert kept.ids_NK.tolist() == [[1, 0]]
    p = lowered.exp() / lowered.exp().sum()
    assert kept.log_probs_NK.exp()[0].tolist() == pytest.approx([float(p[0, 1]), float(p[0, 0])], rel=1e-5)


def test_salience_is_the_larger_log_probability_in_either_space() -> None:
    expected = torch.maximum(torch.log_softmax(BASE, -1), torch.log_softmax(RAISED, -1))
    for space in ("logits", "log_probs"):
        values = [in_space(x, space) for x in (BASE, RAISED)]
        assert torch.equal(salience(*values, space), expected)


def test_only_the_largest_gains_are_subtracted() -> None:
    base, raised = torch.zeros(1, 4), torch.tensor([[3.0, 1.0, 2.0, -1.0]])
    assert generic_logits(base, raised, alpha=1, largest=2).tolist() == [[-3.0, 0.0, -2.0, 0.0]]
    assert generic_logits(base, raised, alpha=1, largest=9).tolist() == generic_logits(base, raised, alpha=1).tolist()
