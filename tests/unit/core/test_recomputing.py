"""Recomputed activations: the same bits, less memory (counted, not timed)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from forgetkit.core.batches import lm_loss
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.loop import recomputing, train
from forgetkit.core.lora import attach, merge
from forgetkit.methods.whp import WhpLoss
from forgetkit.settings import LoraSettings
from tests import toys
from tests.unit.core.test_loop import BLOCKS, SETTINGS, _collate

ON = SETTINGS.model_copy(update={"gradient_checkpointing": True})


def _model(family: str, adapter: str, dtype: torch.dtype = torch.float32) -> Any:
    model = toys.model(family, dropout=0.1).to(dtype)
    return attach(model, LoraSettings(rank=2), "student") if adapter == "lora" else model


class Peak(TorchDispatchMode):
    """The most bytes that are alive at one time in storages which torch operations make inside."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in old:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: pair for key, pair in self._alive.items() if not pair[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 with dropout: the same masks must come again
def test_training_takes_the_same_course(tmp_path: Path, family: str, adapter: str, dtype: torch.dtype) -> None:
    one, two = _model(family, adapter, dtype), _model(family, adapter, dtype)
    kept = train(one, BLOCKS, _collate, lm_loss, SETTINGS, tmp_path / "a", seed=3, label="test")
    recomputed = train(two, BLOCKS, _collate, lm_loss, ON, tmp_path / "b", seed=3, label="test")
    assert [row["loss"] for row in kept.log] == [row["loss"] for row in recomputed.log]
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    start = _model(family, adapter).parameters()
    assert any(not torch.equal(p, q.float()) for p, q in zip(one.parameters(), start, strict=True))
    modules = list(two.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in modules)
    if adapter == "lora":
        two = merge(two)
    assert not any(module._forward_hooks for module in two.modules())


def _deep(adapter: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        **{**toys.FAMILIES["llama"], "num_hidden_layers": 8, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0},
    )
    model = AutoModelForCausalLM.from_config(config)
    return attach(model, LoraSettings(rank=2), "student") if adapter == "lora" else model


def _soft_batch(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    n = ids.numel()
    return {
        "input_ids": ids,
        "rows": torch.arange(n),
        "ids": torch.stack([ids.flatten(), (ids.flatten() + 1) % 64], 1),
        "log_probs": torch.full((n, 2), -1.0),
        "log_rest": torch.full((n,), -1.33),
        "weight": torch.ones(n),
        "is_retain": torch.zeros(n, dtype=torch.bool),
    }


@pytest.mark.parametrize("loss", ["lm", "whp"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_far_fewer_activations_are_alive(adapter: str, loss: str) -> None:
    ids = torch.arange(4 * 96).reshape(4, 96) % 64
    batch = {"input_ids": ids, "valid": torch.ones_like(ids, dtype=torch.bool)} if loss == "lm" else _soft_batch(ids)
    found: dict[bool, tuple[int, list[torch.Tensor]]] = {}
    for on in (False, True):
        model = _deep(adapter).train()
        function = lm_loss if loss == "lm" else WhpLoss(reverse=1.0)
        with recomputing(model, on):
            function(model, batch)  # the head is tried out once
            with Peak() as peak:
                function(model, batch).total.backward()
        found[on] = peak.most, [p.grad for p in model.parameters() if p.grad is not None]
    assert found[True][0] < 0.4 * found[False][0]
    assert len(found[True][1]) == len(found[False][1]) >= 8 * 7
    assert all(torch.equal(g, h) for g, h in zip(found[True][1], found[False][1], strict=True))


def test_a_model_that_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.model("llama")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    refusal = r"^gradient_checkpointing: llama models cannot .* - set it to false$"
    with pytest.raises(ForgetkitError, match=refusal), recomputing(model, True):
        pass
