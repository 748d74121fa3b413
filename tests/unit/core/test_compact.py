from __future__ import annotations

import copy
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forgetkit.core import compact
from forgetkit.core.batches import lm_loss, pad_blocks
from forgetkit.core.compact import BLOCK, QUANTISED_FROM, CompactAdamW, check_available, join, split
from forgetkit.core.errors import ForgetkitError, Interrupted
from forgetkit.core.loop import train
from forgetkit.core.lora import attach
from forgetkit.core.optim import MasterAdamW
from forgetkit.settings import LoraSettings, TrainSettings
from tests import toys
from tests.unit.core.test_loop import BLOCKS, SETTINGS

# --- splitting: pure arithmetic, no library ---

LARGEST = 0x7F7F  # upper halves of a positive fp32 number: zero and subnormals, an odd and an even one, the largest
UPPER = [0x0000, 0x0001, 0x0002, 0x007F, 0x0080, 0x3F80, 0x3F81, 0x4049, LARGEST - 1, LARGEST]


def _floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.astype(np.uint32).view(np.float32))


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32)


def _check_split(master: torch.Tensor) -> None:
    weight, low = split(master)
    assert (weight.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(_bits(join(weight, low)), _bits(master))
    even = master.to(torch.bfloat16)
    tie = (_bits(master) & 0xFFFF) == 0x8000
    assert torch.equal(weight[~tie].view(torch.int16), even[~tie].view(torch.int16))
    finite = torch.isfinite(weight) & torch.isfinite(even)
    error, best = (weight.double() - master.double()).abs(), (even.double() - master.double()).abs()
    assert torch.equal(error[finite], best[finite])  # at a tie too: the other neighbour is as near


@pytest.mark.parametrize("upper", UPPER)
@pytest.mark.parametrize("sign", [0, 1])
def test_every_low_half_comes_back(upper: int, sign: int) -> None:
    _check_split(_floats((np.uint32(sign) << 31) | (np.uint32(upper) << 16) | np.arange(2**16, dtype=np.uint32)))


@given(arrays.arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
def test_any_number_comes_back(bits: np.ndarray) -> None:
    numbers = _floats(bits)
    _check_split(numbers[~torch.isnan(numbers)])


def test_ties_overflow_and_infinity() -> None:
    ties = _floats(np.array([0x3F808000, 0x3F818000, 0xBF808000], np.uint32))
    assert split(ties)[0].view(torch.int16).tolist() == [0x3F81, 0x3F82, 0xBF81 - 2**16]  # away from zero
    beyond = torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max, float("inf")])
    weight, low = split(beyond)
    assert torch.isinf(weight).all()
    assert torch.isinf(beyond.to(torch.bfloat16)).all()  # as torch's own rounding
    assert torch.equal(join(weight, low), beyond)
    assert torch.isnan(join(*split(torch.tensor([float("nan")])))).all()


def test_ties_to_even_would_not_fit_into_16_bits() -> None:
    around = _floats(np.arange(0x3F7F0000, 0x3F840000, dtype=np.uint32))
    for upper in (0x3F80, 0x3F81):
        to_even = int((around.to(torch.bfloat16).view(torch.int16) == upper).sum())
        assert to_even == (65537 if upper % 2 == 0 else 65535)
        assert int((split(around)[0].view(torch.int16) == upper).sum()) == 65536


# --- the optimizer ---


def _library() -> None:
    pytest.importorskip("bitsandbytes")


def _parameters(dtype: torch.dtype, shapes: list[tuple[int, ...]], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter((torch.randn(s, generator=generator) * 0.02).to(dtype)) for s in shapes]


def _backward(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for p in parameters:
        p.grad = None
        (p * torch.randn(p.shape, generator=generator).to(p.dtype)).sum().backward()


SMALL, LARGE = [(37, 19), (64,), (3, 5, 7)], [(70, 61), (129, 128)]  # LARGE: the last block is not full, and full


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_rounded_moments_it_is_the_plain_optimizer_bit_for_bit(dtype: torch.dtype, decay: float) -> None:
    a, b = _parameters(dtype, SMALL), _parameters(dtype, SMALL)
    plain, ours = (cls(p, lr=1e-4, weight_decay=decay) for cls, p in ((MasterAdamW, a), (CompactAdamW, b)))
    for step in range(20):
        for parameters, optimizer in ((a, plain), (b, ours)):
            _backward(parameters, step)
            optimizer.step()
    for p, q in zip(a, b, strict=True):
        assert torch.equal(plain.master(p), ours.master(q))
        assert not torch.equal(plain.master(p), plain.master(p).bfloat16().float())
        expected = split(plain.master(p))[0] if dtype == torch.bfloat16 else p
        assert torch.equal(q, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_moments_stay_close_to_exact_ones(dtype: torch.dtype) -> None:
    _library()
    start, a, b = (_parameters(dtype, LARGE) for _ in range(3))
    plain, ours = MasterAdamW(a, lr=1e-4, weight_decay=0.1), CompactAdamW(b, lr=1e-4, weight_decay=0.1)
    for step in range(30):
        _backward(a, step)
        _backward(b, step)
        plain.step()
        ours.step()
    for s, p, q in zip(start, a, b, strict=True):
        assert ours.state[q]["exp_avg"].dtype == torch.uint8
        moved = plain.master(p) - s.float()
        difference = ours.master(q) - plain.master(p)
        assert 0 < difference.norm() < 0.1 * moved.norm()


def test_pieces_of_a_parameter_are_as_good_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    _library()
    results = []
    for size in (compact.SLICE, 4 * BLOCK):
        monkeypatch.setattr(compact, "SLICE", size)
        p = _parameters(torch.bfloat16, LARGE)
        optimizer = CompactAdamW(p, lr=1e-4)
        for step in range(5):
            _backward(p, step)
            optimizer.step()
        assert {float(optimizer.state[q]["step"]) for q in p} == {5.0}
        results.append([t for q in p for t in (q.detach(), *optimizer.state[q].values())])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_a_parameter_without_a_gradient_or_with_a_zero_one_stays() -> None:
    _library()
    untouched, zero = parameters = _parameters(torch.bfloat16, [(128, 64), (128, 64)])
    before = [p.detach().clone() for p in parameters]
    optimizer = CompactAdamW(parameters, lr=1e-2)
    for _ in range(3):
        (zero * 0.0).sum().backward()
        optimizer.step()
    assert torch.equal(untouched, before[0])
    assert torch.equal(optimizer.master(zero), before[1].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_loads_back_exactly_beside_its_weights(dtype: torch.dtype) -> None:
    _library()
    first = _parameters(dtype, [*SMALL, *LARGE])
    a = CompactAdamW(first, lr=1e-4, weight_decay=0.01)
    for step in range(5):
        _backward(first, step)
        a.step()
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    b = CompactAdamW(second, lr=1.0)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for step in range(5, 8):
        for optimizer, parameters in ((a, first), (b, second)):
            _backward(parameters, step)
            optimizer.step()
    for p, q in zip(first, second, strict=True):
        assert torch.equal(p, q)
        assert a.state[p].keys() == b.state[q].keys()
        assert all(torch.equal(value, b.state[q][name]) for name, value in a.state[p].items())


def test_the_plain_optimizers_state_is_refused() -> None:
    shapes = [(128, 64)]
    for saved, other in ((MasterAdamW, CompactAdamW), (CompactAdamW, MasterAdamW)):
        state = saved(_parameters(torch.bfloat16, shapes)).state_dict()
        with pytest.raises(ForgetkitError, match="does not fit"):
            other(_parameters(torch.bfloat16, shapes)).load_state_dict(state)


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize(("optimizer_class", "expected"), [(MasterAdamW, 18.0), (CompactAdamW, 10.03)])
def test_bytes_per_parameter_are_those_of_the_table(optimizer_class: type[MasterAdamW], expected: float) -> None:
    model = toys.model("llama", vocab_size=2048).bfloat16()
    parameters = list(model.parameters())
    optimizer = optimizer_class(parameters)
    ids = torch.arange(40).reshape(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    state = [t for p in parameters for t in optimizer.state[p].values()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    held = _bytes([*parameters, *state, *optimizer._sums.values(), *gradients])
    count = sum(p.numel() for p in parameters)
    small = sum(p.numel() for p in parameters if p.numel() < QUANTISED_FROM)
    extra = 6 * small if optimizer_class is CompactAdamW else 0  # exact moments of the small ones
    assert (held - extra) / count == pytest.approx(expected, abs=0.01)


def test_release_gives_the_masters_to_the_model() -> None:
    _library()
    parameters = _parameters(torch.bfloat16, [*SMALL, *LARGE])
    optimizer = CompactAdamW(parameters, lr=1e-6)
    _backward(parameters, 0)
    optimizer.step()
    masters = [optimizer.master(p) for p in parameters]
    optimizer.release()
    assert all(torch.equal(p, m) and p.dtype == torch.float32 for p, m in zip(parameters, masters, strict=True))
    _backward(parameters, 1)
    assert all(p.grad is not None for p in parameters)  # the hooks are gone


# --- in the training loop ---

EIGHT = SETTINGS.model_copy(update={"optimizer": "adamw_8bit"})


def _collate(blocks: list[np.ndarray]) -> dict[str, torch.Tensor]:
    ids, valid = pad_blocks(blocks, 0)
    return {"input_ids": ids, "valid": valid}


def _train(folder: Path, model: torch.nn.Module, settings: TrainSettings = EIGHT, **more: object) -> list[float]:
    result = train(model, BLOCKS, _collate, lm_loss, settings, folder, seed=3, label="test", **more)  # type: ignore[arg-type]
    return [row["loss"] for row in result.log]


def _model(adapter: str) -> torch.nn.Module:
    model = toys.model("llama", vocab_size=400).bfloat16()
    return attach(model, LoraSettings(rank=4), "student") if adapter == "lora" else model


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_stopped_run_continues_exactly(tmp_path: Path, adapter: str) -> None:
    _library()

    def interrupt(step: int, model: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    one, two = _model(adapter), _model(adapter)
    whole = _train(tmp_path / "one", one)
    with pytest.raises(Interrupted):
        _train(tmp_path / "two", two, snapshot_steps=[5], on_snapshot=interrupt)
    again = _model(adapter)
    assert _train(tmp_path / "two", again) == whole
    for p, q, start in zip(one.parameters(), again.parameters(), _model(adapter).parameters(), strict=True):
        assert not p.requires_grad or p.dtype == torch.float32
        assert torch.equal(p, q)
        assert not p.requires_grad or not torch.equal(p, start.float())


def test_losses_follow_the_plain_optimizers(tmp_path: Path) -> None:
    _library()
    plain = _train(tmp_path / "a", _model("full"), SETTINGS)
    ours = _train(tmp_path / "b", _model("full"))
    assert ours[0] == plain[0]
    assert ours == pytest.approx(plain, rel=0.01)
    assert ours != plain
    assert plain[-1] < plain[0]


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    compact._library.cache_clear()
    with pytest.raises(ForgetkitError) as caught:
        _train(tmp_path, _model("full"))
    assert str(caught.value) == (
        "optimizer: adamw_8bit needs bitsandbytes, which cannot be imported - "
        "pip install 'forgetkit[8bit]', or use adamw"
    )
    compact._library.cache_clear()


def test_a_device_it_does_not_run_on_is_one_line() -> None:
    check_available("adamw", "mps", "finetune.optimizer")
    with pytest.raises(ForgetkitError, match=r"^finetune\.optimizer: adamw_8bit does not run on mps - use adamw$"):
        check_available("adamw_8bit", "mps", "finetune.optimizer")
