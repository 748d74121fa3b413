"""Predicted bytes against tensors that were really allocated."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from forgetkit.core import lora
from forgetkit.core.batches import lm_loss
from forgetkit.core.loop import recomputing
from forgetkit.core.optim import MasterAdamW
from forgetkit.methods.whp import WhpLoss
from forgetkit.plan import memory
from forgetkit.plan.memory import Peak
from forgetkit.plan.shape import with_layers
from forgetkit.relabel.build import Labeller, combined, plain_blocks
from forgetkit.settings import FinetuneSettings, LoraSettings, ReinforceSettings, RelabelSettings, TrainSettings
from tests import toys
from tests.unit.relabel.test_build import corpus

ROWS, TOKENS, KEPT, VOCABULARY = 3, 40, 8, 600
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointing": {"gradient_checkpointing": True},
    "lora": {"adapter": "lora", "lora": LoraSettings(rank=4)},
    "lora checkpointing": {"adapter": "lora", "gradient_checkpointing": True},
}


def config(layers: int = 3) -> Any:
    return AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=0,
    )


def batch() -> dict[str, Tensor]:
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % VOCABULARY
    at = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)[:, :-1].flatten()
    share = torch.full((len(at), KEPT), -3.0)
    return {
        "input_ids": ids,
        "valid": torch.ones_like(ids, dtype=torch.bool),
        "rows": at,
        "ids": torch.arange(KEPT).expand(len(at), KEPT).contiguous(),
        "log_probs": share,
        "log_rest": torch.log1p(-share.exp().sum(-1)),
        "weight": torch.ones(len(at)),
        "is_retain": torch.zeros(len(at), dtype=torch.bool),
    }


def free_gradients(net: Any) -> None:
    """As `MasterAdamW` does, whose sums are counted apart."""
    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


def really(settings: TrainSettings, dtype: torch.dtype) -> int:
    """Bytes at most alive in the loss's own forward and backward pass."""
    net = AutoModelForCausalLM.from_config(config(), dtype=dtype, attn_implementation="sdpa")
    if settings.adapter == "lora":
        net = lora.attach(net, settings.lora)
    net.train()
    free_gradients(net)
    loss = WhpLoss(1.0) if isinstance(settings, FinetuneSettings) else lm_loss
    given = batch()
    if isinstance(loss, WhpLoss):
        with torch.no_grad():
            loss(net, given)  # the head is tried out once
    with recomputing(net, settings.gradient_checkpointing), Peak() as peak:
        loss(net, given).total.backward()
    return peak.most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", [ReinforceSettings, FinetuneSettings])
@pytest.mark.parametrize("way", WAYS)
def test_a_training_step_allocates_what_was_predicted(way: str, kind: type[TrainSettings], dtype: torch.dtype) -> None:
    settings = kind(**WAYS[way])
    predicted = memory.training_step(config(), dtype, settings, ROWS, TOKENS, KEPT)
    assert predicted == pytest.approx(really(settings, dtype), rel=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_deep_models_are_extended_from_shallow_ones(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FinetuneSettings(**WAYS[way])
    extended = memory.training_step(config(20), torch.bfloat16, settings, ROWS, TOKENS, KEPT)
    monkeypatch.setattr(memory, "DEEP", 20)
    followed = memory.training_step(config(20), torch.bfloat16, settings, ROWS, TOKENS, KEPT)
    # Which moment is the fullest can change with depth.
    assert extended == pytest.approx(followed, rel=0.15)


def test_every_way_needs_less_than_the_one_before() -> None:
    steps = [memory.training_step(config(8), torch.bfloat16, FinetuneSettings(**WAYS[w]), 4, 64, KEPT) for w in WAYS]
    assert steps[1] < 0.7 * steps[0]
    assert steps[3] < 0.7 * steps[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_masters_moments_and_sums_are_the_optimisers(dtype: torch.dtype) -> None:
    net = AutoModelForCausalLM.from_config(config(), dtype=dtype)
    count = sum(p.numel() for p in net.parameters())
    optimizer = MasterAdamW(net.parameters())
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    state = [t for entry in optimizer.state.values() for t in entry.values() if t.ndim]
    beside = sum(t.untyped_storage().nbytes() for t in state if t.untyped_storage().data_ptr() not in own)
    settings = FinetuneSettings(accumulation=2)
    need = memory.training(dtype, settings, all_parameters=count, trained=count, step=0)
    assert need.optimizer == beside
    net(input_ids=batch()["input_ids"]).logits.sum().backward()
    assert need.gradients == sum(t.untyped_storage().nbytes() for t in optimizer._sums.values())
    assert need.weights == count * dtype.itemsize
    eight = memory.training(
        dtype, settings.model_copy(update={"optimizer": "adamw_8bit"}), all_parameters=count, trained=count, step=0
    )
    assert eight.weights + eight.optimizer == count * 6


def test_shards_need_what_a_rank_holds_of_them() -> None:
    settings, count = FinetuneSettings(fsdp=True), 10**9
    alone = memory.training(torch.bfloat16, FinetuneSettings(), all_parameters=count, trained=count, step=0)
    four = memory.training(torch.bfloat16, settings, all_parameters=count, trained=count, step=7, ranks=4, gathered=100)
    assert four.held == count * 16 // 4  # fp32: shard, gradient and two moments (tests/unit/core/test_distributed.py)
    assert four.step == 7 + 100 * (2 + 4)
    assert four.total < alone.total / 2


@pytest.mark.parametrize("dictionaries", [1, 4])
def test_labelling_allocates_what_was_predicted(dictionaries: int) -> None:
    text = corpus(toys.TEXT * 6, 40)
    net = toys.model("llama", VOCABULARY)
    settings = RelabelSettings(top_k=KEPT, batch_blocks=8, dictionaries=dictionaries)
    blocks = [combined([block] * dictionaries) for block, _ in zip(plain_blocks(text), range(8), strict=False)]
    labeller = Labeller(net, net, settings, pad_id=0, bos_id=None)
    with Peak() as peak:
        labeller.label(blocks)
    predicted = memory.label_batch(net.config, torch.float32, settings, 8, max(len(b.ids) for b in blocks))
    assert predicted == pytest.approx(peak.most, rel=0.25)


def test_passes_without_gradients_do_not_grow_with_depth() -> None:
    shallow, deep = (memory.forward_pass(config(n), torch.bfloat16, ROWS, TOKENS) for n in (2, 30))
    assert deep == shallow
    assert memory.forward_pass(with_layers(config(30), 2), torch.bfloat16, 2 * ROWS, TOKENS) > 1.5 * shallow


RESIDENT = """
import torch
from pathlib import Path
from tests.unit.plan.test_memory import LARGE, VOCABULARY, free_gradients, large
from forgetkit.core.batches import lm_loss
from forgetkit.plan import memory
from forgetkit.settings import ReinforceSettings
torch.set_num_threads(1)
def most(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
net, given = large()
free_gradients(net)
def step():
    lm_loss(net, given).total.backward()
    net.zero_grad()
step()
most(reset=True)
before = int(open("/proc/self/statm").read().split()[1]) * 4096
step()
predicted = memory.training_step(net.config, torch.bfloat16, ReinforceSettings(), *LARGE, 8)
print(predicted, most() - before)
"""
LARGE = (8, 128)


def large() -> tuple[Any, dict[str, Tensor]]:
    wide = AutoConfig.for_model(
        "llama", vocab_size=8000, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4
    )
    ids = torch.arange(LARGE[0] * LARGE[1]).reshape(LARGE)
    return AutoModelForCausalLM.from_config(wide, dtype=torch.bfloat16, attn_implementation="sdpa").train(), {
        "input_ids": ids,
        "valid": torch.ones_like(ids, dtype=torch.bool),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_grows_by_what_was_predicted() -> None:
    """With every freed piece given back at once: what a heap keeps depends on what happened before."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESIDENT],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    predicted, measured = map(int, done.stdout.split())
    assert measured > 50e6
    assert predicted == pytest.approx(measured, rel=0.25)
