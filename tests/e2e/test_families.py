"""The whole pipeline on every model family, through the Python interface."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import forgetkit
from forgetkit import corpus
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


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("bos", [False, True])
def test_unlearn_with_every_tokenizer_shape_and_with_lora(tmp_path: Path, shape: str, bos: bool) -> None:
    """Tokenizers that put a BOS in front of every text shift all positions by one; adapters must be merged."""
    from tokenizers import processors

    tokenizer = copy.deepcopy(toys.tokenizer(shape))
    if bos:
        front = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", 0)]
        )
        own = tokenizer.backend_tokenizer.post_processor
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([own, front]) if own else front
    model, target, retain = tmp_path / "model", tmp_path / "target.txt", tmp_path / "retain.txt"
    toys.model("llama", len(tokenizer), seed=1).save_pretrained(model)
    tokenizer.save_pretrained(model)
    target.write_text(toys.TEXT * 2)
    retain.write_text(RETAIN * 6)
    (tmp_path / "s.yaml").write_text(SETTINGS)
    small = [
        "finetune.snapshots=1",
        "finetune.adapter=lora",
        "finetune.learning_rate=1e-2",
        "reinforce.adapter=lora",
        f"evaluate.heldout=[{retain}]",
    ]
    run = tmp_path / "run"
    forgetkit.unlearn(model, target, run, retain=retain, settings=load_settings(tmp_path / "s.yaml", small, None))
    assert corpus.load(run / "1-corpus")[0].bos_id == (0 if bos else None)
    summary = json.loads((run / "4-labels" / "summary.json").read_text())["target"]["positions"]
    # without a pre-tokenizer a token may hold the end of one word and the start of the next: more is left out
    assert summary["label"] > (0.4 if shape == "no_pretokenizer" else 0.6) * sum(summary.values()), summary
    before = load_file(model / "model.safetensors")
    after = load_file(run / "5-unlearned" / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert json.loads((run / "6-evaluation" / "results.json").read_text())["curve"]
