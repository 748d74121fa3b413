"""The loss through the head: its value, its three gradients, what it keeps alive."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from forgetkit.core import heads
from forgetkit.core.heads import SplitHead, cross_entropy
from tests import toys


class Toy(torch.nn.Module):
    """A head with a bias over hidden states that are given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(6, 40).to(dtype)


def toy(dtype: torch.dtype) -> tuple[SplitHead, torch.nn.Linear]:
    module = Toy(dtype)
    split = SplitHead.__new__(SplitHead)
    split._head, split.split = module.head, True
    return split, module.head


@pytest.mark.parametrize(("chunk", "at_once"), [(2048, 2**19), (7, 80), (1, 1)])
def test_value_and_gradients_are_those_of_autograd(chunk: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK", chunk)
    monkeypatch.setitem(heads.AT_ONCE, "cpu", at_once)
    split, head = toy(torch.float32)
    hidden, weight = torch.randn(20, 6, requires_grad=True), torch.rand(20)
    targets = torch.randint(0, 40, (20,))
    total, losses = split.loss(hidden, cross_entropy(targets), weight)
    inputs = (hidden, head.weight, head.bias)
    found = torch.autograd.grad(3 * total, inputs)
    plain = F.cross_entropy(head(hidden), targets, reduction="none")
    expected = torch.autograd.grad(3 * (plain * weight).sum(), inputs)
    torch.testing.assert_close(losses, plain.detach())
    torch.testing.assert_close(total, (plain * weight).sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not losses.requires_grad


def test_bf16_sums_its_chunks_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand chunks must not be worse than one: a bf16 sum of them would be."""
    split, head = toy(torch.bfloat16)
    hidden, targets = torch.randn(1000, 6).bfloat16(), torch.randint(0, 40, (1000,))
    exact = torch.nn.Linear(6, 40, dtype=torch.float64)
    exact.load_state_dict({k: v.double() for k, v in head.state_dict().items()})
    F.cross_entropy(exact(hidden.double()), targets, reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert exact.weight.grad is not None
    errors = []
    for chunk in (1000, 1):
        monkeypatch.setattr(heads, "CHUNK", chunk)
        (found,) = torch.autograd.grad(split.loss(hidden, cross_entropy(targets))[0], head.weight)
        errors.append(float((found.double() - exact.weight.grad).abs().mean()))
    assert errors[1] < 1.5 * errors[0]


def test_a_frozen_head_gets_no_gradient_and_a_frozen_trunk_none_either() -> None:
    split, head = toy(torch.float32)
    head.requires_grad_(False)
    hidden = torch.randn(5, 6, requires_grad=True)
    split.loss(hidden, cross_entropy(torch.arange(5)))[0].backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    total, _ = split.loss(hidden.detach(), cross_entropy(torch.arange(5)))
    assert not total.requires_grad


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return out


def test_nothing_of_all_rows_by_the_vocabulary_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK", 16)
    split, _ = toy(torch.float32)
    hidden = torch.randn(100, 6, requires_grad=True)
    with Largest() as seen:
        split.loss(hidden, cross_entropy(torch.arange(100) % 40))[0].backward()
    assert seen.most <= max(16 * 40, 100 * 6)


@pytest.mark.parametrize("family", sorted(toys.FAMILIES))
def test_the_head_is_checked_once_and_keeps_no_model_alive(family: str) -> None:
    model, calls = toys.model(family), list[int]()
    model.register_forward_hook(lambda *_: calls.append(1))
    assert SplitHead(model).split is SplitHead(model).split
    assert len(calls) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_head_that_cannot_be_split_off_keeps_its_model() -> None:
    model = toys.model("llama")
    ids = torch.arange(3, 9)[None]
    split = SplitHead(model)
    split.split = False  # as `_agrees` finds for families that scale their logits
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    del model
    gc.collect()
    with torch.no_grad():
        assert torch.equal(split.logits(split.hidden(ids)), expected)
