"""T6 and P2: how many copies of the weights are alive, and in which dtype they are."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from forgetkit import finetune, reinforce
from forgetkit.core.batches import lm_loss
from forgetkit.core.loop import Loss
from forgetkit.core.models import load_model
from forgetkit.finetune import LabelledText
from forgetkit.methods.base import Method
from forgetkit.methods.whp import WhpLoss
from forgetkit.relabel.build import Labeller, build_labels
from forgetkit.settings import ModelSettings, ReinforceSettings, RelabelSettings, Settings
from tests import toys
from tests.unit.relabel.test_build import DICTIONARY
from tests.unit.test_finetune import CPU32, corpus, settings, source, text_as_labels


def copies() -> int:
    """Distinct storages of embedding matrices among all live parameters: one per model."""
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, torch.nn.Parameter) and tuple(o.shape) == (400, 32)]
    return len({p.untyped_storage().data_ptr() for p in found})


def test_T6_fine_tuning_holds_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus()
    labelled = LabelledText(text, text_as_labels(tmp_path / "l", text))
    path = source(tmp_path / "m")
    before, seen = copies(), []

    class Counting(WhpLoss):
        def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Loss:
            seen.append(copies())
            return super().__call__(model, batch)

    monkeypatch.setattr(finetune, "get", lambda name: Method(name, Counting))
    finetune.run(path, labelled, None, settings(), CPU32, tmp_path / "o", work=tmp_path / "w", seed=0, pad_id=0)
    assert {n - before for n in seen} == {1}


def test_T6_reinforcing_holds_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before, seen = source(tmp_path / "m"), copies(), []

    def counting(model: Any, batch: dict[str, torch.Tensor]) -> Loss:
        seen.append(copies())
        return lm_loss(model, batch)

    monkeypatch.setattr(reinforce, "lm_loss", counting)
    chosen = ReinforceSettings(epochs=1, batch_blocks=4, learning_rate=1e-3)
    reinforce.run(path, corpus(), chosen, CPU32, tmp_path / "o", work=tmp_path / "w", seed=0)
    assert {n - before for n in seen} == {1}


def test_T6_labelling_copies_neither_model(tmp_path: Path) -> None:
    before, seen = copies(), []
    pair = toys.model("llama", 400, seed=1), toys.model("llama", 400, seed=2)
    pair[0].model.register_forward_hook(lambda *_: seen.append(copies()))
    build_labels(corpus(), corpus(), DICTIONARY, toys.tokenizer(), *pair, RelabelSettings(), tmp_path)
    assert {n - before for n in seen} == {2}


@pytest.mark.parametrize(("alpha", "contrast", "models"), [(0.0, 0.0, 1), (1.0, 0.0, 2), (0.0, 0.4, 2)])
def test_T6_labelling_uses_every_model_it_holds(tmp_path: Path, alpha: float, contrast: float, models: int) -> None:
    """The reinforced model is run exactly when alpha or contrast makes it count; the baseline alone otherwise."""
    settings = RelabelSettings(alpha=alpha, contrast=contrast)
    used: set[str] = set()
    baseline, reinforced = toys.model("llama", 400, seed=1), toys.model("llama", 400, seed=2)
    for name, model in (("baseline", baseline), ("reinforced", reinforced)):
        model.model.register_forward_hook(lambda *_, name=name: used.add(name))
    labeller = Labeller(baseline, reinforced, settings, pad_id=0, bos_id=None)
    assert (labeller.reinforced is not None) == (models == 2)
    used.clear()
    build_labels(corpus(), None, DICTIONARY, toys.tokenizer(), baseline, reinforced, settings, tmp_path)
    assert "baseline" in used
    assert ("reinforced" in used) == (models == 2)


def test_P2_dtype_is_always_explicit(tmp_path: Path) -> None:
    assert Settings().model.dtype in ("float32", "bfloat16")
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"dtype": "auto"})
    toys.model("llama", 400).half().save_pretrained(tmp_path / "half")
    toys.tokenizer().save_pretrained(tmp_path / "half")
    for name in ("float32", "bfloat16"):
        model = load_model(tmp_path / "half", ModelSettings.model_validate({"dtype": name, "device": "cpu"}))
        assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}
