"""A recorded trajectory on a tiny fp32 model: labels and losses must not drift unnoticed.

Record anew, on a clean tree only:  python -m tests.invariant.test_golden
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetkit import finetune
from forgetkit.finetune import LabelledText
from forgetkit.relabel.build import build_labels, load_labels
from forgetkit.settings import RelabelSettings
from tests import toys
from tests.unit.relabel.test_build import DICTIONARY
from tests.unit.test_finetune import CPU32, corpus, settings, source

RECORD = Path(__file__).with_name("golden.json")


def trajectory(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    text, tokenizer = corpus(), toys.tokenizer("bytelevel")
    baseline, reinforced = toys.model("llama", 400, seed=0), toys.model("llama", 400, seed=2)
    build_labels(text, text, DICTIONARY, tokenizer, baseline, reinforced, RelabelSettings(top_k=8), folder / "l")
    target, retain = load_labels(folder / "l")
    assert retain is not None
    first = target[0]
    finetune.run(
        source(folder / "m", seed=5),  # not the labels' own model: a loss near zero would be all rounding
        LabelledText(text, target),
        LabelledText(text, retain),
        settings(retain_ratio=1.0, epochs=3),
        CPU32,
        folder / "o",
        work=folder / "w",
        seed=0,
        pad_id=0,
    )
    rows = [json.loads(line) for line in (folder / "o" / "log.jsonl").read_text().splitlines()]
    return {
        "status": first.status.tolist(),
        "labels": first.ids[:, 0].tolist(),
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
    }


def test_trajectory_is_the_recorded_one(tmp_path: Path) -> None:
    recorded, now = json.loads(RECORD.read_text()), trajectory(tmp_path)
    assert now["status"] == recorded["status"]
    assert now["labels"] == recorded["labels"]
    # another processor sums in another order: 1e-4 is far above that, and far below any change of the method
    assert now["loss"] == pytest.approx(recorded["loss"], rel=1e-4)
    assert now["grad_norm"] == pytest.approx(recorded["grad_norm"], rel=1e-3)
    assert len(now["loss"]) > 5


if __name__ == "__main__":
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    if [line for line in changed.splitlines() if not line.endswith("golden.json")]:
        sys.exit("the tree has uncommitted changes: commit them first, so that the record has a name")
    with tempfile.TemporaryDirectory() as place:
        RECORD.write_text(json.dumps(trajectory(Path(place)), indent=1, allow_nan=False) + "\n")
