"""Component 3 of arXiv 2310.02238: fine-tune the baseline on original text with the alternative labels.

The model sees the ORIGINAL blocks; only the labels come from the generic predictions (rule 4 of ALGORITHM 2d).
Retain blocks, when there are any, travel in the same batches with labels of their own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forgetkit.core import distributed, lora
from forgetkit.core.batches import epoch_order, pad_blocks
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.loop import train
from forgetkit.core.models import load_model, save_model, source_dtype
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.methods import get
from forgetkit.relabel.consistency import Role, Status
from forgetkit.relabel.shards import BlockLabels, LabelShards
from forgetkit.settings import FinetuneSettings, ModelSettings

Item = tuple[int, tuple[int, ...]]
"""One training item: a target block and the retain blocks that travel with it."""


@dataclass(frozen=True)
class LabelledText:
    """A blocked corpus and the labels of its blocks."""

    corpus: BlockedCorpus
    labels: LabelShards


def training_order(n_target: int, n_retain: int, settings: FinetuneSettings, seed: int) -> list[Item]:
    """The whole run's items in order: target blocks shuffled per epoch, retain blocks dealt out evenly.

    Retain blocks are used up before one is used again.
    """
    targets = epoch_order(n_target, settings.epochs, seed)
    wanted = int(len(targets) * settings.retain_ratio) if n_retain else 0
    deals = epoch_order(n_retain, -(-wanted // n_retain), seed + 1)[:wanted] if wanted else np.empty(0, np.int64)
    edges = np.linspace(0, wanted, len(targets) + 1).astype(int)
    return [(int(t), tuple(int(r) for r in deals[edges[i] : edges[i + 1]])) for i, t in enumerate(targets)]


class LabelCollator:
    """Items to the batch that a method's loss takes (`methods.base.Method`)."""

    def __init__(
        self, target: LabelledText, retain: LabelledText | None, settings: FinetuneSettings, pad_id: int
    ) -> None:
        self.target, self.retain, self.settings, self.pad_id = target, retain, settings, pad_id
        # Total retain weight relative to total forget weight is `retain_weight`, however many blocks carry it.
        self.retain_weight = settings.retain_weight / settings.retain_ratio if settings.retain_ratio else 0.0

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Batch of `items`; see `methods.base.Method` for its fields and shapes."""
        forget = [(self.target, i, False) for i, _ in items]
        retain = [(self.retain, r, True) for _, many in items for r in many if self.retain is not None]
        sources = [*forget, *retain]
        blocks = [text.corpus[i].ids for text, i, _ in sources if text is not None]
        bos_id = self.target.corpus.bos_id
        input_ids, _ = pad_blocks(blocks, self.pad_id, bos_id)
        parts = [
            self._rows(text.labels[i], row * input_ids.shape[1] + (bos_id is not None), is_retain)
            for row, (text, i, is_retain) in enumerate(sources)
            if text is not None
        ]
        width = max(part["ids"].shape[1] for part in parts)
        return {
            "input_ids": input_ids,
            **{
                name: torch.cat([_widen(part[name], width, name) for part in parts])
                for name in ("rows", "ids", "log_probs", "log_rest", "weight", "is_retain")
            },
        }

    def _rows(self, labels: BlockLabels, first_row: int, is_retain: bool) -> dict[str, Tensor]:
        keep = np.flatnonzero(labels.status <= Status.INNER)
        weight = np.where(labels.role[keep] == Role.OTHER, 1.0, self.settings.anchor_weight)
        return {
            "rows": torch.from_numpy(keep + first_row),
            "ids": torch.from_numpy(labels.ids[keep].astype(np.int64)),
            "log_probs": torch.from_numpy(labels.log_probs[keep].astype(np.float32)),
            "log_rest": torch.from_numpy(labels.log_rest[keep].astype(np.float32)),
            "weight": torch.from_numpy((weight * (self.retain_weight if is_retain else 1.0)).astype(np.float32)),
            "is_retain": torch.full((len(keep),), is_retain),
        }


def _widen(part: Tensor, width: int, name: str) -> Tensor:
    """Pad [N, K] to [N, width] with entries of probability zero (hard and soft labels may share a batch)."""
    if part.ndim == 1 or part.shape[1] == width:
        return part
    missing = part.new_full((part.shape[0], width - part.shape[1]), -1e4 if name == "log_probs" else 0)
    return torch.cat([part, missing], dim=1)


def snapshot_steps(total: int, count: int) -> list[int]:
    """`count` optimiser steps spread evenly over the run, the last step not among them."""
    return sorted({round(total * (i + 1) / (count + 1)) for i in range(count)} - {0, total})


def run(
    source: str,
    target: LabelledText,
    retain: LabelledText | None,
    settings: FinetuneSettings,
    model_settings: ModelSettings,
    out: Path,
    *,
    work: Path,
    seed: int,
    pad_id: int,
    identity: str = "",
) -> dict[str, Any]:
    """Fine-tune `source` and write `out/model/`, `out/snapshots/step-N/` and `out/log.jsonl`.

    Snapshots are written to `work` while training, so that a resumed run has them all. On several ranks rank 0 writes.

    Raises:
        ForgetkitError: non-finite loss (the last good checkpoint stays), unknown method, nothing to train on.
    """
    method = get(settings.method)
    items = training_order(len(target.labels), len(retain.labels) if retain else 0, settings, seed)
    if not items:
        raise ForgetkitError("no training steps", where="finetune.epochs", remedy="set it to 1 or more")
    net = load_model(source, model_settings, fsdp=settings.fsdp)
    steps = -(-len(items) // (settings.batch_blocks * settings.accumulation))
    dtype = source_dtype(source)
    if settings.adapter == "lora":
        net = lora.attach(net, settings.lora, seed=seed)

    def keep(step: int, model: Any) -> None:
        _save_snapshot(model, source, work / "snapshots" / f"step-{step}", dtype, settings)

    result = train(
        net,
        items,
        LabelCollator(target, retain, settings, pad_id),
        method.make(),
        settings,
        work / "checkpoints",
        seed=seed,
        label="fine-tune",
        snapshot_steps=snapshot_steps(steps, settings.snapshots),
        on_snapshot=keep,
        identity=identity,
    )
    told = {"steps": result.steps, "items": len(items), "loss": result.log[-1]["loss"]}
    if settings.adapter == "lora" and distributed.is_main():
        net = lora.merge(net)
    save_model(net, source, out / "model", dtype)
    if not distributed.is_main():
        return told
    if (work / "snapshots").exists():
        # Linked, not moved: should this stage be killed before it is committed, the snapshots are still in `work`.
        shutil.copytree(work / "snapshots", out / "snapshots", copy_function=os.link)
    with (out / "log.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in result.log)
    return told


def _save_snapshot(model: Any, source: str, out: Path, dtype: torch.dtype, settings: FinetuneSettings) -> None:
    """The weights at one step as a plain model folder; adapters are merged into a copy."""
    plain = lora.merge(model) if settings.adapter == "lora" else model
    save_model(plain, source, out, dtype)
