"""Deterministic floors of speed and memory: counted, not timed, so they hold on any machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed_arms
from forgetkit import finetune
from forgetkit.core.models import load_model
from forgetkit.core.progress import Progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.finetune import LabelCollator, LabelledText, training_order
from forgetkit.methods.whp import WhpLoss
from forgetkit.relabel.build import Labeller, PreparedBlock, anchor_token_ids, prepare_blocks, write_labels
from forgetkit.relabel.consistency import Status
from forgetkit.relabel.shards import LabelShards
from forgetkit.settings import ModelSettings, RelabelSettings
from tests import toys
from tests.unit.relabel.test_build import DICTIONARY, corpus
from tests.unit.test_finetune import CPU32, settings, source, text_as_labels

VOCABULARY, CHUNK = 4000, 8
FP32 = 4


def prepared(text: BlockedCorpus, chosen: RelabelSettings) -> list[PreparedBlock]:
    return list(prepare_blocks(text, DICTIONARY, toys.tokenizer(), chosen))


def pair(vocab_size: int = VOCABULARY, attention: str = "sdpa") -> list[Any]:
    """Baseline and reinforced model; FLOPs need attention 'eager', as torch counts none of its CPU kernel's."""
    found = [toys.model("llama", vocab_size, seed=seed) for seed in (1, 2)]
    for model in found:
        model.set_attn_implementation(attention)
    return found


class Allocations(TorchDispatchMode):
    """Sizes in bytes of the storages that torch operations make: the largest, and how many large ones live at once."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.largest, self.most_alive = large, 0, 0
        self._alive = list[StorageWeakRef]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            # In inference mode composite operations arrive whole, and would hide what they allocate.
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in old:
                self._made(tensor.untyped_storage())
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        self.largest = max(self.largest, storage.nbytes())
        if storage.nbytes() >= self.large:
            self._alive = [*(ref for ref in self._alive if not ref.expired()), StorageWeakRef(storage)]
            self.most_alive = max(self.most_alive, len(self._alive))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": "hard", "space": "logits", "alpha": 5.0, "mask_inside_anchors": True},
        {"subtract": "anchor_tokens"},
        {"subtract": "near_anchors"},
        {"subtract": "largest_gains"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "default",
)
def test_labelling_never_allocates_more_than_one_chunk_of_logits(changes: dict[str, Any]) -> None:
    chosen = RelabelSettings(chunk_positions=CHUNK, **changes)
    blocks = prepared(corpus(), chosen)[:4]
    ids = anchor_token_ids(DICTIONARY, toys.tokenizer())
    labeller = Labeller(*pair(), chosen, pad_id=0, bos_id=None, anchor_tokens=ids)
    chunk = CHUNK * VOCABULARY * FP32
    with Allocations(large=chunk) as seen:
        labels = labeller.label(blocks)
    positions = sum(int((block.status <= Status.INNER).sum()) for block in labels)
    assert seen.largest == chunk  # and not less, or nothing was seen
    assert seen.most_alive <= 10 < positions // CHUNK


def hard_labels(blocks: list[PreparedBlock], folder: Path) -> LabelShards:
    labeller = Labeller(*pair(400), speed_arms.PAPER, pad_id=0, bos_id=None)
    with Progress("labels", len(blocks), quiet=True) as bar:
        write_labels(iter(blocks), len(blocks), labeller, folder, progress=bar)
    return LabelShards(folder)


def shifted(labels: LabelShards, index: int) -> np.ndarray:
    """A block's labels as Hugging Face models take them: at the next token's place, -100 where there is none."""
    one = labels[index]
    return np.concatenate([[-100], np.where(one.status <= Status.INNER, one.ids[:, 0].astype(np.int64), -100)[:-1]])


def test_loss_curve_equals_the_trainers_with_full_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own plain arm: one batch of 8 where ours is two of 4, full logits, its own loss and optimiser."""
    monkeypatch.setattr(speed_arms, "RATE", 1e-3)
    text = corpus(toys.TEXT * 20, 40)
    labels = hard_labels(prepared(text, speed_arms.PAPER), tmp_path / "l")
    chosen = settings(**{**speed_arms.TRAIN, "learning_rate": 1e-3}, method="whp", anchor_weight=1.0, clip_norm=1.0)
    path = source(tmp_path / "m", seed=5)
    finetune.run(
        path, LabelledText(text, labels), None, chosen, CPU32, tmp_path / "o", work=tmp_path / "w", seed=0, pad_id=0
    )
    ours = [json.loads(line)["loss"] for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    order = [i for i, _ in training_order(len(text), 0, chosen, seed=0)]
    rows = [{"input_ids": text[i].ids, "labels": shifted(labels, i)} for i in order]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    theirs = speed_arms.hugging_face_train(load_model(path, CPU32), rows, tmp_path / "n", "D")
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(ours) > 10
    assert min(ours) < 0.95 * max(ours)


def flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def head(rows: int, model: Any) -> int:
    """FLOPs of the language-model head on so many rows."""
    weight = model.get_output_embeddings().weight
    return 2 * rows * weight.shape[0] * weight.shape[1]


def test_labelling_costs_the_plain_way_less_the_head_at_unlabelled_positions() -> None:
    blocks, models = prepared(corpus(), speed_arms.PAPER)[:8], pair(attention="eager")
    labeller = Labeller(*models, speed_arms.PAPER, pad_id=0, bos_id=None)
    made: dict[str, Any] = {}
    own = flops(lambda: made.update(own=labeller.label(blocks)))
    plain = flops(lambda: made.update(plain=speed_arms.script_labels(*models, blocks, None)))
    labelled = 0
    for ours, theirs in zip(made["own"], made["plain"], strict=True):
        has = ours.status <= Status.INNER
        assert ours.ids[has, 0].tolist() == theirs[has].tolist()
        labelled += int(has.sum())
    grid = len(blocks) * (max(len(b.ids) for b in blocks) + max(len(b.target_ids) for b in blocks))
    assert 0 < 2 * labelled < grid
    assert own <= plain - head(grid - 2 * labelled, models[0])


def test_a_step_of_fine_tuning_costs_the_plain_step_less_the_head_at_unlabelled_positions(tmp_path: Path) -> None:
    text = corpus()
    labels = hard_labels(prepared(text, speed_arms.PAPER), tmp_path)
    items = training_order(len(text), 0, settings(epochs=1), seed=0)[:4]
    batch = LabelCollator(LabelledText(text, labels), None, settings(method="whp"), pad_id=0)(items)
    rows = [{"input_ids": text[i].ids, "labels": shifted(labels, i)} for i, _ in items]
    full, model = speed_arms.collate(rows), pair(400, "eager")[0]
    loss = WhpLoss()
    loss(model, batch)  # the head is tried out once, on eight tokens: a cost of the run, not of the step
    own = flops(lambda: loss(model, batch).total.backward())
    plain = flops(lambda: model(**full).loss.backward())
    # forwards once, backwards twice: by the states and by the weights
    assert own <= plain - 3 * head(full["labels"].numel() - len(batch["rows"]), model)
    assert len(batch["rows"]) == int((full["labels"] >= 0).sum())


def test_ten_steps_at_1e_6_reach_the_saved_weights_of_a_bf16_run(tmp_path: Path) -> None:
    """The counterpart of `test_p1` for the whole stage: what the masters gained must survive release and saving."""
    text = corpus(block_tokens=32)
    path = source(tmp_path / "m")
    labelled = LabelledText(text, text_as_labels(tmp_path / "l", text))
    ten = settings(
        method="whp", epochs=10, batch_blocks=len(text), learning_rate=1e-6, schedule="constant", warmup_steps=0
    )
    bf16 = ModelSettings(dtype="bfloat16", device="cpu")
    told = finetune.run(path, labelled, None, ten, bf16, tmp_path / "o", work=tmp_path / "w", seed=0, pad_id=0)
    assert told["steps"] == 10
    before = load_file(Path(path) / "model.safetensors")
    after = load_file(tmp_path / "o" / "model" / "model.safetensors")
    total = moved = visible = 0
    for name, saved in after.items():
        begun = before[name].bfloat16()
        total += begun.numel()
        moved += int((saved != begun.float()).sum())
        visible += int((saved.bfloat16() != begun).sum())
    assert moved / total > 0.9
    assert visible / total < 0.2
