"""The whole pipeline on every model family, through the Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import forgetkit
from forgetkit.core.config import load_settings
from tests import toys
from tests.e2e.tiny import RETAIN, SETTINGS


@pytest.mark.parametrize("family", sorted(toys.FAMILIES))
def test_unlearn(tmp_path: Path, family: str) -> None:
    model, target, retain = tmp_path / "model", tmp_path / "target.txt", tmp_path / "retain.txt"
    toys.model(family, 400, seed=1).save_pretrained(model)
    toys.tokenizer("bytelevel").save_pretrained(model)
    target.write_text(toys.TEXT * 2)
    retain.write_text(RETAIN * 6)
    (tmp_path / "s.yaml").write_text(SETTINGS)
    small = ["finetune.snapshots=0", "finetune.epochs=1", f"evaluate.heldout=[{retain}]", "evaluate.completions=1"]
    results = forgetkit.unlearn(
        model, target, tmp_path / "run", retain=retain, settings=load_settings(tmp_path / "s.yaml", small, None)
    )
    out = tmp_path / "run" / "5-unlearned" / "model"
    net = AutoModelForCausalLM.from_pretrained(out)
    assert net.config.model_type == AutoModelForCausalLM.from_pretrained(model).config.model_type
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    assert any(not torch.equal(before[k], after[k]) for k in before)
    # A random toy is not healthy, so its scores are withheld; that they were measured is what can be asked.
    assert results["texts"]["target"]["blocks_measured"] > 0
    assert results["models"]["unlearned"]["health"]["status"] in ("healthy", "unhealthy")
