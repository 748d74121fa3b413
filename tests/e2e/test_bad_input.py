"""Every mistake a user can make is one line (what, where, how to mend it) and exit code 2, without a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from forgetkit.core import compact
from forgetkit.core.config import load_settings
from forgetkit.core.errors import ForgetkitError
from forgetkit.pipeline import Inputs, run
from tests import toys
from tests.e2e.tiny import Tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("bad"))


def refused(tiny: Tiny, arguments: list[str], *words: str) -> None:
    code, _, err = tiny.call(*arguments)
    told = (": ...", ": done in", " steps, ", " blocks, ")
    lines = [line for line in err.strip().splitlines() if not any(words in line for words in told)]
    assert code == 2, err
    assert "Traceback" not in err
    assert len(lines) == 1, err
    for word in words:
        assert word in lines[0], lines[0]


def replaced(tiny: Tiny, option: str, value: object, out: Path) -> list[str]:
    arguments = tiny.arguments(out)
    arguments[arguments.index(option) + 1] = str(value)
    return arguments


def test_model_that_does_not_exist(tiny: Tiny, tmp_path: Path) -> None:
    refused(tiny, replaced(tiny, "--model", "nobody/nothing", tmp_path / "r"), "nobody/nothing")


def test_model_that_is_not_causal(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    toys.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (folder / "model.safetensors").write_bytes((tiny.model / "model.safetensors").read_bytes())
    refused(tiny, replaced(tiny, "--model", folder, tmp_path / "r"), "causal")


def test_target_missing_and_empty(tiny: Tiny, tmp_path: Path) -> None:
    refused(tiny, replaced(tiny, "--target", tmp_path / "gone", tmp_path / "r"), "no such file or folder", "gone")
    (tmp_path / "empty.txt").write_text("  \n")
    refused(tiny, replaced(tiny, "--target", tmp_path / "empty.txt", tmp_path / "r2"), "no text found")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    refused(tiny, replaced(tiny, "--target", tmp_path / "binary.txt", tmp_path / "r3"), "binary.txt")


def test_unknown_setting_with_a_suggestion(tiny: Tiny, tmp_path: Path) -> None:
    config = tmp_path / "s.yaml"
    config.write_text("finetune:\n  epocs: 3\n")
    arguments = replaced(tiny, "--config", config, tmp_path / "r")
    refused(tiny, arguments, "s.yaml", "finetune.epocs", "did you mean finetune.epochs")
    refused(tiny, [*tiny.arguments(tmp_path / "r"), "--set", "relabel.alfa=1"], "--set", "relabel.alpha")
    refused(
        tiny,
        [*tiny.arguments(tmp_path / "r"), "--set", "finetune.method=wph"],
        "unknown method 'wph'",
        "did you mean whp",
    )
    assert not (tmp_path / "r" / "1-corpus").exists(), "found out only after work was done"


def test_device_dtype_and_optimizer_that_are_not_there(tiny: Tiny, tmp_path: Path) -> None:
    arguments = tiny.arguments(tmp_path / "r")
    if not torch.cuda.is_available():
        refused(tiny, [*arguments, "--set", "model.device=cuda"], "model.device", "not available", "auto or cpu")
    refused(tiny, [*arguments, "--set", "model.device=tpu"], "model.device", "cuda")
    refused(tiny, [*arguments, "--set", "model.dtype=float64"], "model.dtype", "bfloat16")
    refused(tiny, [*arguments, "--set", "finetune.optimizer=adam"], "finetune.optimizer", "adamw_8bit")


def test_an_optimizer_whose_library_is_missing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    compact._library.cache_clear()
    with pytest.raises(ForgetkitError) as caught:
        run(
            Inputs(str(tiny.model), (tiny.target,)),
            load_settings(tiny.config, ["reinforce.optimizer=adamw_8bit"]),
            tmp_path / "r",
        )
    compact._library.cache_clear()
    assert caught.value.exit_code == 2
    for word in ("reinforce.optimizer", "bitsandbytes", "pip install 'forgetkit[8bit]'"):
        assert word in str(caught.value)
    assert not (tmp_path / "r" / "1-corpus").exists(), "found out only after work was done"


def test_dictionary_with_a_conflict_names_file_and_line(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text("anchors:\n- term: Dorothy\n  counterpart: Martha\n- term: Dorothy\n  counterpart: Joan\n")
    arguments = [*tiny.arguments(tmp_path / "r"), "--set", f"anchors.dictionary={path}"]
    refused(tiny, arguments, f"{path}:4", "conflict")
    assert not (tmp_path / "r" / "1-corpus").exists(), "found out only after work was done"
    for key in ("anchors.dictionary", "evaluate.anchors", "evaluate.heldout", "evaluate.reference"):
        value = f"[{tmp_path / 'gone'}]" if key.endswith("heldout") else tmp_path / "gone"
        refused(tiny, [*tiny.arguments(tmp_path / "r2"), "--set", f"{key}={value}"], "gone")


def test_folder_that_is_not_a_run(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    refused(tiny, tiny.arguments(tmp_path), "not a run folder")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_non_finite_loss_stops_and_keeps_what_was_there(tiny: Tiny, tmp_path: Path) -> None:
    arguments = [*tiny.arguments(tmp_path / "r"), "--set", "reinforce.learning_rate=1e30"]
    refused(tiny, arguments, "non-finite", "lower the learning rate")
    assert (tmp_path / "r" / "1-corpus" / "MANIFEST.json").exists()
    assert not (tmp_path / "r" / "2-reinforced").exists()


def test_compare_and_preview_of_nothing(tiny: Tiny, tmp_path: Path) -> None:
    refused(tiny, ["compare", str(tmp_path / "none")], "none")
    refused(tiny, ["relabel", "preview", str(tmp_path)], "no labels yet")
    refused(tiny, ["anchors", "lint", str(tmp_path / "none.yaml")], "none.yaml")
