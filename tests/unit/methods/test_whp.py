"""Component 3's loss: hand-computed numbers, and the faults T4 and T5."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from forgetkit.core import heads
from forgetkit.core.errors import ForgetkitError
from forgetkit.methods import available, get
from forgetkit.methods.whp import WhpLoss, label_divergence
from tests import toys

LOGITS = torch.tensor([[2.0, 1.0, 0.0]])
NONE = torch.tensor([-math.inf])


def divergence(logits: torch.Tensor, *label: torch.Tensor, reverse: float = 0.0) -> torch.Tensor:
    """The losses of the rows of these logits; [N]."""
    return label_divergence(*label, reverse=reverse)(logits.clone(), slice(0, len(logits)))[0]


def gradient(
    logits: torch.Tensor, *label: torch.Tensor, reverse: float = 0.0, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Gradient of the (weighted) sum of the losses by these logits; [N, V]."""
    own, scale = logits.detach().requires_grad_(), torch.ones(len(logits)) if weight is None else weight
    total, _ = heads._HeadLoss.apply(own, None, None, scale, label_divergence(*label, reverse=reverse))
    (found,) = torch.autograd.grad(total, own)
    return found


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(v) for v in values))
    return [v - total for v in values]


def test_hard_label_is_cross_entropy_by_hand() -> None:
    loss = divergence(LOGITS, torch.tensor([[1]]), torch.zeros(1, 1), NONE)
    assert loss.item() == pytest.approx(-log_softmax([2.0, 1.0, 0.0])[1])


def test_T3_T4_divergence_is_of_log_probabilities_not_of_raw_logits() -> None:
    p = [0.5, 0.3, 0.2]
    q = log_softmax([2.0, 1.0, 0.0])
    by_hand = sum(a * (math.log(a) - b) for a, b in zip(p, q, strict=True))
    ids = torch.tensor([[0, 1, 2]])
    log_p = torch.tensor([[math.log(a) for a in p]])
    for shift in (0.0, 50.0):  # raw logits would change with the shift
        loss = divergence(LOGITS + shift, ids, log_p, NONE)
        assert loss.item() == pytest.approx(by_hand, abs=1e-5)
    raw = sum(a * (math.log(a) - b) for a, b in zip(p, [2.0, 1.0, 0.0], strict=True))
    assert abs(raw - by_hand) > 0.5


def test_the_rest_is_one_pooled_outcome_by_hand() -> None:
    q = log_softmax([2.0, 1.0, 0.0])
    kept, rest = 0.6, 0.4
    q_rest = math.log(math.exp(q[1]) + math.exp(q[2]))
    by_hand = kept * (math.log(kept) - q[0]) + rest * (math.log(rest) - q_rest)
    loss = divergence(LOGITS, torch.tensor([[0]]), torch.tensor([[math.log(kept)]]), torch.tensor([math.log(rest)]))
    assert loss.item() == pytest.approx(by_hand, abs=1e-5)


def test_zero_exactly_at_the_label_and_positive_elsewhere() -> None:
    log_q = torch.log_softmax(LOGITS, -1)
    ids = torch.tensor([[0, 1]])
    rest = log_q[0, 2:].logsumexp(0)[None]
    assert divergence(LOGITS, ids, log_q[:, :2], rest).item() == pytest.approx(0.0, abs=1e-6)
    assert divergence(LOGITS * 2, ids, log_q[:, :2], rest).item() > 0.01


def test_gradient_flows_to_the_tail_and_is_finite_when_the_model_is_certain() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    half = torch.tensor([math.log(0.5)])
    found = gradient(logits, torch.tensor([[0]]), half[None], half)
    assert bool(torch.isfinite(found).all())
    assert bool((found[0, 1:] != 0).all())


def batch(model: Any, padding: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (2, 6))
    width = 6 + padding
    padded = torch.full((2, width), 7)
    padded[:, :6] = ids
    rows = torch.tensor([0, 2, 3, width, width + 1])
    return {
        "input_ids": padded,
        "rows": rows,
        "ids": torch.tensor([[3], [4], [5], [6], [7]]),
        "log_probs": torch.zeros(5, 1),
        "log_rest": torch.full((5,), -math.inf),
        "weight": torch.tensor([1.0, 2.0, 1.0, 0.5, 0.5]),
        "is_retain": torch.tensor([False, False, False, True, True]),
    }


@pytest.mark.parametrize("family", sorted(toys.FAMILIES))
def test_T5_padding_and_masked_positions_do_not_exist(family: str) -> None:
    model = toys.model(family, 60)
    plain, padded = (WhpLoss()(model, batch(model, extra)) for extra in (0, 9))
    assert float(plain.total) == pytest.approx(float(padded.total), rel=1e-5)
    assert float(plain.count) == float(padded.count) == 5.0
    logits = model(batch(model)["input_ids"]).logits.flatten(0, 1)[batch(model)["rows"]]
    own = F.cross_entropy(logits, torch.tensor([3, 4, 5, 6, 7]), reduction="none")
    assert float(plain.total) == pytest.approx(float((own * batch(model)["weight"]).sum()), rel=1e-4)
    assert plain.logs["forget_loss"] == pytest.approx(float((own[:3] * torch.tensor([1.0, 2, 1])).sum() / 4), rel=1e-4)
    assert plain.logs["retain_loss"] == pytest.approx(float(own[3:].mean()), rel=1e-4)


def test_a_batch_without_labels_is_zero_not_nan() -> None:
    model = toys.model("llama", 60)
    empty = {k: v if k == "input_ids" else v[:0] for k, v in batch(model).items()}
    loss = WhpLoss()(model, empty)
    assert float(loss.total) == 0.0
    assert float(loss.count) == 0.0
    assert loss.logs == {}


def test_unknown_method_is_named_with_the_nearest() -> None:
    assert "whp" in available()
    with pytest.raises(ForgetkitError, match=r"unknown method 'wph'.*did you mean whp"):
        get("wph")


def test_symmetric_is_both_divergences_by_hand() -> None:
    p, q = (0.1, 0.9), (0.4, 0.6)
    logits = torch.tensor([[math.log(0.4), math.log(0.25), math.log(0.35)]])
    label = torch.tensor([[0]]), torch.tensor([[math.log(0.1)]]), torch.tensor([math.log(0.9)])
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    back = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert divergence(logits, *label).item() == pytest.approx(forward, abs=1e-6)
    assert divergence(logits, *label, reverse=1.0).item() == pytest.approx(forward + back, abs=1e-6)


def test_symmetric_is_the_plain_loss_where_labels_are_hard() -> None:
    logits = torch.randn(3, 7)
    one = torch.tensor([[1], [4], [0]]), torch.zeros(3, 1), torch.full((3,), -math.inf)
    assert torch.equal(divergence(logits, *one, reverse=1.0), divergence(logits, *one))
    # the same labels in a batch beside soft ones: padded to their width
    ids, log_p = torch.tensor([[1, 0], [4, 0], [0, 0]]), torch.tensor([[0.0, -1e4]] * 3)
    assert torch.allclose(divergence(logits, ids, log_p, one[2], reverse=1.0), divergence(logits, *one))


@pytest.mark.parametrize("reverse", [0.0, 1.0, 0.3])
def test_gradient_in_closed_form_equals_autograd(monkeypatch: pytest.MonkeyPatch, reverse: float) -> None:
    """Against the same loss written with ordinary operations, in fp64, over several chunks, rests and none."""
    monkeypatch.setattr(heads, "CHUNK", 3)
    monkeypatch.setitem(heads.AT_ONCE, "cpu", 22)
    torch.manual_seed(0)
    logits = torch.randn(8, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.stack([torch.randperm(11)[:4] for _ in range(8)])
    log_p = torch.log_softmax(torch.randn(8, 11, dtype=torch.float64), -1)
    kept = log_p.gather(1, ids)
    rest = torch.log1p(-kept.exp().sum(1))
    kept[3], rest[3] = torch.log_softmax(kept[3], -1), -math.inf  # a label without a rest
    weight = torch.rand(8, dtype=torch.float64)
    log_q = torch.log_softmax(logits, -1).gather(1, ids)
    log_q_rest = torch.log1p(-log_q.exp().sum(1))
    plain = (kept.exp() * (kept - log_q)).sum(1)
    plain = plain + torch.where(rest > -1e9, rest.exp() * (rest.clamp(min=-1e9) - log_q_rest), torch.zeros(()).double())
    back = (log_q.exp() * (log_q - kept)).sum(1) + log_q_rest.exp() * (log_q_rest - rest.clamp(min=-1e9))
    plain = plain + reverse * torch.where(rest > -1e9, back, torch.zeros(()).double())
    (expected,) = torch.autograd.grad((plain * weight).sum(), logits)
    own, label = logits.detach().float(), (ids, kept.float(), rest.float())
    assert divergence(own, *label, reverse=reverse).tolist() == pytest.approx(plain.tolist(), abs=1e-5)
    got = gradient(own, *label, reverse=reverse, weight=weight.float())
    assert torch.allclose(got.double(), expected, atol=1e-6)


def test_a_hard_label_padded_to_the_width_of_soft_ones_keeps_its_gradient() -> None:
    """Padding repeats id 0 with probability zero, also where the label itself is id 0."""
    logits = torch.randn(2, 5, requires_grad=True)
    ids = torch.tensor([[0, 0, 0], [2, 0, 0]])
    log_p = torch.tensor([[0.0, -1e4, -1e4], [0.0, -1e4, -1e4]])
    got = gradient(logits, ids, log_p, torch.full((2,), -math.inf))
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 2]), reduction="sum"), logits)
    assert torch.allclose(got, expected, atol=1e-6)
