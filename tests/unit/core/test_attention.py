"""Causal attention as matrix products: the same numbers as torch's, and used exactly where it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from forgetkit.core import attention
from forgetkit.core.attention import LONGEST, NAME, causal_attention
from forgetkit.core.models import load_model, save_model
from forgetkit.settings import ModelSettings
from tests import toys


def heads(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(length)
    return [torch.randn(2, 3, length, 8, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("length", [2, 127, 128, 129, 300])
def test_values_and_gradients_are_those_of_torch(length: int) -> None:
    inputs = heads(length, torch.float64)
    weight = torch.randn(2, 3, length, 8, dtype=torch.float64)
    ours = causal_attention(*inputs, 0.3)
    gradients = torch.autograd.grad((ours * weight).sum(), inputs)
    theirs = scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3)
    expected = torch.autograd.grad((theirs * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs)
    for own, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, other)


def test_bf16_is_as_near_to_the_truth_as_torchs_kernel() -> None:
    inputs = [x.detach() for x in heads(256, torch.float64)]
    truth = scaled_dot_product_attention(*inputs, is_causal=True)
    half = [x.bfloat16() for x in inputs]
    error = (causal_attention(*half, 8**-0.5).double() - truth).square().mean().sqrt()
    other = (scaled_dot_product_attention(*half, is_causal=True).double() - truth).square().mean().sqrt()
    assert error < 2 * other


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths for which our products ran."""
    lengths: list[int] = []
    original = attention.causal_attention

    def counted(query: torch.Tensor, *more: Any) -> torch.Tensor:
        lengths.append(query.shape[2])
        return original(query, *more)

    monkeypatch.setattr(attention, "causal_attention", counted)
    return lengths


def folder(tmp_path: Path, family: str) -> Path:
    toys.model(family).bfloat16().save_pretrained(tmp_path)
    toys.tokenizer("bytelevel").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_a_bf16_model_on_a_cpu_uses_it_and_means_the_same(family: str, tmp_path: Path, calls: list[int]) -> None:
    source = folder(tmp_path, family)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        exact = load_model(source, ModelSettings(device="cpu", dtype="float32"))(input_ids=ids).logits
        assert not calls
        model = load_model(source, ModelSettings(device="cpu"))
        logits = model(input_ids=ids).logits.float()
        assert bool(calls) == (model.config._attn_implementation == NAME)
        model.set_attn_implementation("sdpa")
        other = model(input_ids=ids).logits.float()
    assert (logits - exact).abs().mean() < 2 * (other - exact).abs().mean() + 1e-4


def test_a_padded_batch_or_a_cache_or_a_long_text_takes_torchs_kernel(tmp_path: Path, calls: list[int]) -> None:
    model: Any = load_model(folder(tmp_path, "llama"), ModelSettings(device="cpu"))
    ids = torch.arange(3, 13)[None]
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        left = torch.tensor([[0, 0, *[1] * 8]])
        model(input_ids=ids, attention_mask=left)
        assert not calls
        cached = model(input_ids=ids, use_cache=True).past_key_values
        assert calls == [10] * layers
        model(input_ids=ids[:, :1], past_key_values=cached, use_cache=True)
        assert calls == [10] * layers
        query = torch.zeros(1, 1, LONGEST + 1, 2, dtype=torch.bfloat16)
        attention._forward(model.model.layers[0].self_attn, query, query, query, None)
    assert calls == [10] * layers


def test_a_saved_model_does_not_mention_it(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", "llama")
    save_model(load_model(source, ModelSettings(device="cpu")), source, tmp_path / "out")
    assert NAME not in (tmp_path / "out" / "config.json").read_text()
