from __future__ import annotations

import copy

import pytest
import torch

from forgetkit.core.compact import CompactAdamW
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.optim import MasterAdamW
from tests import toys


def _parameters(dtype: torch.dtype, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(37, 19), (64,), (3, 5, 7)]
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def _backward(parameters: list[torch.nn.Parameter], step: int) -> None:
    """A backward pass that gives every parameter a random gradient."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in parameters:
        p.grad = None
        (p * torch.randn(p.shape, generator=generator).to(p.dtype)).sum().backward()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_adamw_bit_for_bit_in_fp32(decay: float) -> None:
    ours, theirs = _parameters(torch.float32), _parameters(torch.float32)
    a = MasterAdamW(ours, lr=1e-3, weight_decay=decay)
    b = torch.optim.AdamW(theirs, lr=1e-3, weight_decay=decay, fused=True)
    for step in range(20):
        for group in (*a.param_groups, *b.param_groups):
            group["lr"] = 1e-3 / (1 + step)
        _backward(ours, step)
        _backward(theirs, step)
        a.step()
        b.step()
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_bf16_masters_equal_an_fp32_run_on_the_same_gradients() -> None:
    low = _parameters(torch.bfloat16)
    high = [torch.nn.Parameter(p.detach().float()) for p in low]
    a, b = MasterAdamW(low, lr=1e-5), torch.optim.AdamW(high, lr=1e-5, weight_decay=0.0, fused=True)
    for step in range(10):
        _backward(low, step)
        for p, q in zip(low, high, strict=True):
            gradient = a._gradient(p)
            assert gradient is not None and gradient.dtype == torch.float32 and p.grad is None
            q.grad = gradient.clone()
        a.step()
        b.step()
    for p, q in zip(low, high, strict=True):
        assert torch.equal(a.state[p]["master"], q)
        assert torch.equal(p, q.to(torch.bfloat16))


def test_fp32_parameter_is_its_own_master() -> None:
    (p, *_) = parameters = _parameters(torch.float32)
    optimizer = MasterAdamW(parameters)
    assert optimizer.state[p]["master"].data_ptr() == p.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_state_loads_back_exactly(dtype: torch.dtype) -> None:
    first = _parameters(dtype)
    a = MasterAdamW(first, lr=1e-4, weight_decay=0.01)
    for step in range(5):
        _backward(first, step)
        a.step()
    saved = copy.deepcopy(a.state_dict())
    second = _parameters(dtype, seed=9)  # other weights: everything must come from the state
    b = MasterAdamW(second, lr=1.0)
    b.load_state_dict(saved)
    for optimizer, parameters in ((a, first), (b, second)):
        for step in range(5, 8):
            _backward(parameters, step)
            optimizer.step()
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
        for name in ("master", "exp_avg", "exp_avg_sq", "step"):
            assert b.state[q][name].dtype == torch.float32
            assert torch.equal(a.state[p][name], b.state[q][name]), name


def test_state_of_another_model_is_refused() -> None:
    state = MasterAdamW(_parameters(torch.float32)).state_dict()
    for parameter in (torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(37, 19))):
        with pytest.raises(ForgetkitError, match="does not fit"):
            MasterAdamW([parameter]).load_state_dict(state)
    low = MasterAdamW(_parameters(torch.float32)).state_dict()
    low["state"][0]["master"] = low["state"][0]["master"].bfloat16()
    with pytest.raises(ForgetkitError, match="does not fit"):
        MasterAdamW(_parameters(torch.float32)).load_state_dict(low)


def test_small_contributions_survive_accumulation() -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([p])
    for value in [1.0, *[1 / 1024] * 1024]:  # in bf16 every later addend would be rounded away
        (p * value).sum().backward()
    assert optimizer.normalise(2.0, 100.0) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_divides_then_clips(dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = MasterAdamW([p])
    (p * torch.tensor([30.0, 40.0], dtype=dtype)).sum().backward()
    assert optimizer.normalise(10.0, 1.0) == pytest.approx(5.0)
    gradient = optimizer._gradient(p)
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.tensor([0.6, 0.8]), check_dtype=False)
    optimizer.zero_grad()
    (p * torch.tensor([float("nan"), 1.0], dtype=dtype)).sum().backward()
    assert not optimizer.normalise(10.0, 1.0) < float("inf")


def _losses(model: torch.nn.Module) -> list[torch.Tensor]:
    ids = torch.arange(1, 61).reshape(3, 20)
    return [model(input_ids=row[None], labels=row[None]).loss for row in ids]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # both tied: one weight, two uses in a backward pass
def test_gradients_are_summed_and_freed_one_by_one_without_changing_a_bit(family: str) -> None:
    plain, model = toys.model(family).bfloat16(), toys.model(family).bfloat16()
    expected: dict[str, torch.Tensor] = {}
    for loss in _losses(plain):
        loss.backward()
        for name, p in plain.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, torch.zeros(p.shape)) + p.grad.float()
        plain.zero_grad()
    optimizer = MasterAdamW(model.parameters())
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    for loss in _losses(model):
        loss.backward()
    assert len(alive) >= 3 * 10
    assert not any(alive)
    assert {name for name, p in model.named_parameters() if optimizer._gradient(p) is not None} == expected.keys()
    for name, p in model.named_parameters():
        if name in expected:
            assert torch.equal(optimizer._gradient(p), expected[name])  # type: ignore[arg-type]


def _ten_steps(optimizer_class: type[torch.optim.Optimizer]) -> tuple[float, float]:
    """Shares of changed (masters or else weights, model weights) after ten steps at 1e-6 in bf16."""
    model = toys.model("llama", vocab_size=64).bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = optimizer_class(model.parameters(), lr=1e-6)  # type: ignore[call-arg]
    # Every token is an input and a target, else its embedding row would have a gradient of exactly zero.
    ids = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    for _ in range(10):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    masters = [optimizer.master(p) if isinstance(optimizer, MasterAdamW) else p.detach() for p in model.parameters()]
    total = sum(b.numel() for b in before)
    moved = sum(int((m.float() != b.float()).sum()) for m, b in zip(masters, before, strict=True))
    weights = sum(int((p != b).sum()) for p, b in zip(model.parameters(), before, strict=True))
    return moved / total, weights / total


@pytest.mark.parametrize("ours", [MasterAdamW, CompactAdamW])
def test_p1_masters_move_where_bf16_weights_do_not(ours: type[MasterAdamW]) -> None:
    if ours is CompactAdamW:
        pytest.importorskip("bitsandbytes")
    masters, _ = _ten_steps(ours)
    plain, _ = _ten_steps(torch.optim.AdamW)
    assert masters > 0.99
    assert plain < 0.2  # the fault this guards against


def test_release_gives_the_masters_to_the_model() -> None:
    parameters = _parameters(torch.bfloat16)
    optimizer = MasterAdamW(parameters, lr=1e-6)
    _backward(parameters, 0)
    optimizer.step()
    masters = [optimizer.state[p]["master"].clone() for p in parameters]
    optimizer.release()
    for p, master in zip(parameters, masters, strict=True):
        assert p.dtype == torch.float32
        assert torch.equal(p, master)
        assert not torch.equal(p, p.bfloat16().float())
