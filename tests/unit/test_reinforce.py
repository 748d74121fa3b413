from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from forgetkit import reinforce
from forgetkit.core import lora
from forgetkit.core.batches import epoch_order
from forgetkit.core.models import load_model
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.settings import LoraSettings, ModelSettings, ReinforceSettings
from tests import toys

MODEL = ModelSettings(dtype="float32", device="cpu")
SETTINGS = ReinforceSettings(
    epochs=2, learning_rate=1e-2, warmup_steps=0, batch_blocks=4, accumulation=1, schedule="constant"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    toys.model("llama").bfloat16().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target() -> BlockedCorpus:
    text = toys.TEXT * 2
    document = Document("d", "d", text, hashlib.sha256(text.encode()).hexdigest(), "utf-8", ())
    return block_documents([document], toys.tokenizer(), 24)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return {n: p.detach() for n, p in model.named_parameters()}


def test_reinforced_model_knows_the_target_better(source: Path, target: BlockedCorpus, tmp_path: Path) -> None:
    summary = reinforce.run(source, target, SETTINGS, MODEL, tmp_path / "a", work=tmp_path / "w", seed=1)
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert summary["steps"] == len(rows) == -(-2 * len(target) // 4)
    assert summary["loss_last"] < summary["loss_first"] - 0.5
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"model", "log.jsonl"}
    before, after = _weights(source), _weights(tmp_path / "a" / "model")
    assert {p.dtype for p in after.values()} == {torch.bfloat16}  # as the source
    assert all(not torch.equal(after[n], before[n]) for n in before)
    reinforce.run(source, target, SETTINGS, MODEL, tmp_path / "b", work=tmp_path / "v", seed=1)
    again = _weights(tmp_path / "b" / "model")
    assert all(torch.equal(after[n], again[n]) for n in after)
    reinforce.run(source, target, SETTINGS, MODEL, tmp_path / "c", work=tmp_path / "u", seed=2)
    other = _weights(tmp_path / "c" / "model")
    assert any(not torch.equal(after[n], other[n]) for n in after)


def test_lora_is_merged_into_a_plain_model(source: Path, target: BlockedCorpus, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"adapter": "lora", "lora": LoraSettings(rank=4)})
    summary = reinforce.run(source, target, settings, MODEL, tmp_path / "o", work=tmp_path / "w", seed=1)
    assert summary["loss_last"] < summary["loss_first"]
    before, after = _weights(source), _weights(tmp_path / "o" / "model")
    assert before.keys() == after.keys()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed
    assert all("_proj" in n for n in changed)
    baseline, adapted = lora.pair(load_model(source, MODEL), tmp_path / "o" / "adapter")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        merged = load_model(tmp_path / "o" / "model", MODEL)(input_ids=ids).logits
        beside, plain = adapted(input_ids=ids).logits, baseline(input_ids=ids).logits
    # The saved model is rounded to the source's bf16, the adapter is not.
    assert (beside - merged).norm() < 0.2 * (beside - plain).norm()


def test_no_epochs_writes_nothing(source: Path, target: BlockedCorpus, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 0})
    summary = reinforce.run(source, target, settings, MODEL, tmp_path / "o", work=tmp_path / "w", seed=1)
    assert summary == {"steps": 0}
    assert not (tmp_path / "o").exists()


def test_every_token_is_read_once_an_epoch(target: BlockedCorpus) -> None:
    collate = reinforce.BlockCollator(target, pad_id=0)
    order = [int(i) for i in epoch_order(len(target), 1, 0)]
    batches = [collate(order[i : i + 4]) for i in range(0, len(order), 4)]
    assert sum(int(b["valid"].sum()) for b in batches) == target.n_tokens
