"""Component 3: order, weights, and the bit-for-bit test against plain language modelling."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forgetkit import finetune
from forgetkit.core.batches import epoch_order, lm_loss, pad_blocks
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.loop import train
from forgetkit.core.models import load_model
from forgetkit.core.progress import Progress
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.finetune import LabelCollator, LabelledText, snapshot_steps, training_order
from forgetkit.methods.whp import WhpLoss
from forgetkit.relabel.build import Labeller, plain_blocks, write_labels
from forgetkit.relabel.shards import LabelShards
from forgetkit.settings import FinetuneSettings, ModelSettings, RelabelSettings
from tests import toys

CPU32 = ModelSettings(dtype="float32", device="cpu")


def source(folder: Path, seed: int = 0) -> str:
    toys.model("llama", 400, seed=seed).save_pretrained(folder)
    toys.tokenizer("bytelevel").save_pretrained(folder)
    return str(folder)


def corpus() -> BlockedCorpus:
    document = Document("a", "a", toys.TEXT, hashlib.sha256(toys.TEXT.encode()).hexdigest(), "utf-8", ())
    return block_documents([document], toys.tokenizer("bytelevel"), 32)


def text_as_labels(folder: Path, text: BlockedCorpus) -> LabelShards:
    labeller = Labeller(toys.model("llama", 400), None, RelabelSettings(), pad_id=0, bos_id=None)
    with Progress("labels", len(text), quiet=True) as progress:
        write_labels(plain_blocks(text), len(text), labeller, folder, text_only=True, progress=progress)
    return LabelShards(folder)


def settings(**changes: Any) -> FinetuneSettings:
    values = {
        "epochs": 2,
        "learning_rate": 1e-3,
        "batch_blocks": 4,
        "accumulation": 1,
        "snapshots": 0,
        "retain_ratio": 0.0,
    }
    return FinetuneSettings(**{**values, **changes})


def test_T1_T2_labels_that_are_the_text_equal_plain_language_modelling(tmp_path: Path) -> None:
    """A label shifted by one or two tokens, or not shifted, cannot pass: every weight must agree bit for bit."""
    text, chosen = corpus(), settings()
    path = source(tmp_path / "model")
    order = training_order(len(text), 0, chosen, seed=3)
    labelled = load_model(path, CPU32)
    collate = LabelCollator(LabelledText(text, text_as_labels(tmp_path / "l", text)), None, chosen, pad_id=0)
    train(labelled, order, collate, WhpLoss(), chosen, tmp_path / "a", seed=0, label="labels")

    def plain_batch(items: list[finetune.Item]) -> dict[str, torch.Tensor]:
        input_ids, valid = pad_blocks([text[i].ids for i, _ in items], 0, None)
        return {"input_ids": input_ids, "valid": valid}

    plain = load_model(path, CPU32)
    train(plain, order, plain_batch, lm_loss, chosen, tmp_path / "b", seed=0, label="plain")
    for (name, a), (_, b) in zip(labelled.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    moved = load_model(path, CPU32)
    assert any(not torch.equal(a, b) for a, b in zip(labelled.parameters(), moved.parameters(), strict=True))


def test_order_uses_every_block_once_an_epoch_and_deals_retain_blocks_evenly() -> None:
    order = training_order(10, 7, settings(retain_ratio=1.5, epochs=2), seed=0)
    assert sorted(t for t, _ in order[:10]) == list(range(10))
    assert sorted(t for t, _ in order[10:]) == list(range(10))
    dealt = [r for _, many in order for r in many]
    assert len(dealt) == 30
    assert sorted(dealt[:7]) == list(range(7))
    assert {len(many) for _, many in order} == {1, 2}
    assert training_order(10, 7, settings(retain_ratio=1.5, epochs=2), seed=0) == order
    assert training_order(10, 7, settings(retain_ratio=1.5, epochs=2), seed=1) != order


def test_retain_mass_is_retain_weight_however_many_blocks_carry_it(tmp_path: Path) -> None:
    text = corpus()
    labels = text_as_labels(tmp_path / "l", text)
    full = [i for i in range(len(text)) if len(text[i].ids) == 32]
    for ratio, per in ((1.0, 1), (2.0, 2)):
        collate = LabelCollator(
            LabelledText(text, labels),
            LabelledText(text, labels),
            settings(retain_ratio=ratio, retain_weight=0.5),
            pad_id=0,
        )
        batch = collate([(full[0], tuple(full[1 : 1 + per]))])
        forget = float(batch["weight"][~batch["is_retain"]].sum())
        assert float(batch["weight"][batch["is_retain"]].sum()) == pytest.approx(0.5 * forget)


def test_collator_rows_point_at_the_tokens_with_and_without_bos(tmp_path: Path) -> None:
    import dataclasses

    text = corpus()
    labels = text_as_labels(tmp_path / "l", text)
    for bos in (None, 0):
        own = dataclasses.replace(text, bos_id=bos)
        batch = LabelCollator(LabelledText(own, labels), None, settings(), pad_id=0)([(0, ()), (1, ())])
        flat = batch["input_ids"].flatten()
        # the label of a position is the text's next token, so it stands one further right in the flat batch
        assert torch.equal(flat[batch["rows"] + 1], batch["ids"][:, 0])


def test_mixed_label_widths_in_one_batch() -> None:
    narrow = finetune._widen(torch.zeros(2, 1), 3, "log_probs")
    assert narrow.exp().sum(1).tolist() == [1.0, 1.0]
    assert finetune._widen(torch.ones(2, 1, dtype=torch.long), 3, "ids").tolist() == [[1, 0, 0]] * 2


def test_snapshot_steps_are_inside_the_run() -> None:
    assert snapshot_steps(10, 4) == [2, 4, 6, 8]
    assert snapshot_steps(3, 4) == [1, 2]
    assert snapshot_steps(5, 0) == []


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_run_writes_a_plain_model_and_its_snapshots(tmp_path: Path, adapter: str) -> None:
    text = corpus()
    path = source(tmp_path / "model")
    labelled = LabelledText(text, text_as_labels(tmp_path / "l", text))
    out = tmp_path / "out"
    chosen = settings(snapshots=2, adapter=adapter, learning_rate=1e-2, warmup_steps=0)
    summary = finetune.run(path, labelled, None, chosen, CPU32, out, work=tmp_path / "w", seed=0, pad_id=0)
    assert summary["steps"] == math.ceil(len(text) * 2 / 4)
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == ["step-1", "step-3"]
    before, after = (
        load_file(Path(path) / "model.safetensors"),
        load_file(out / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved, "nothing was trained"
    if adapter == "lora":
        assert not any("embed" in name for name in moved)
    middle = load_file(out / "snapshots" / "step-1" / "model.safetensors")
    assert any(not torch.equal(middle[k], after[k]) and not torch.equal(middle[k], before[k]) for k in moved)
    assert (out / "model" / "tokenizer.json").read_bytes() == (Path(path) / "tokenizer.json").read_bytes()


def test_no_epochs_is_refused(tmp_path: Path) -> None:
    text = corpus()
    labelled = LabelledText(text, text_as_labels(tmp_path / "l", text))
    with pytest.raises(ForgetkitError, match=r"finetune\.epochs"):
        finetune.run(
            "nowhere",
            labelled,
            None,
            settings(epochs=0),
            CPU32,
            tmp_path / "o",
            work=tmp_path,
            seed=0,
            pad_id=0,
        )


def test_epoch_order_is_a_permutation_per_epoch() -> None:
    assert sorted(epoch_order(5, 2, 0)[5:].tolist()) == list(range(5))
    assert np.array_equal(epoch_order(5, 3, 0)[:10], epoch_order(5, 2, 0))
