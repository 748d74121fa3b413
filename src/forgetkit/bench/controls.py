"""Control models: two ruined on purpose, to show that no metric here praises a ruin."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from forgetkit import corpus, finetune
from forgetkit.core import artifacts
from forgetkit.relabel.build import load_labels
from forgetkit.relabel.shards import BlockLabels, LabelShards
from forgetkit.settings import Settings

CONTROLS = ("random_labels", "gradient_ascent")
BLOCKS = 160
"""Blocks a control trains on: enough to ruin a model, cheap enough to belong to every run."""


class _First(LabelShards):
    """The labels of the first `count` blocks."""

    def __init__(self, labels: LabelShards, count: int) -> None:
        self._labels, self._first = labels, min(count, len(labels))

    def __len__(self) -> int:
        return self._first

    def __getitem__(self, block: int) -> BlockLabels:
        return self._labels[block]


def make_control(name: str, model: str, run: Path, settings: Settings, out: Path) -> Path:
    """Fine-tune `model` with the control method `name` on the run's target; returns the model's folder.

    Made again only when model, labels or settings have changed.

    Raises:
        ForgetkitError: the loss became non-finite before the end.
    """
    section = settings.finetune.model_copy(
        update={"method": name, "epochs": 1, "retain_ratio": 0.0, "snapshots": 0, "adapter": "full"}
    )
    labels = artifacts.read_manifest(run / "4-labels")
    made_from = artifacts.hash_json(
        [model, labels.fingerprint if labels else "", section.model_dump(mode="json"), settings.seed, BLOCKS]
    )
    folder, stamp = out / name, out / name / "made_from.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made_from:
        return folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target, _ = corpus.load(run / "1-corpus")
    text, _ = load_labels(run / "4-labels")
    first = dataclasses.replace(target, bounds=target.bounds[:BLOCKS])
    finetune.run(
        model,
        finetune.LabelledText(first, _First(text, BLOCKS)),
        None,
        section,
        settings.model,
        folder,
        work=folder / "work",
        seed=settings.seed,
        pad_id=0,
    )
    shutil.rmtree(folder / "work", ignore_errors=True)
    stamp.write_text(json.dumps(made_from))
    return folder / "model"
