from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import (
    load_model,
    load_tokenizer,
    local_folder,
    model_fingerprint,
    redact,
    resolve_device,
    save_model,
    source_dtype,
)
from forgetkit.settings import ModelSettings
from tests import toys

CPU = ModelSettings(device="cpu", dtype="float32")


def build(folder: Path, family: str = "llama", vocab_size: int = 400) -> Path:
    toys.model(family, vocab_size).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | changes))


@pytest.mark.parametrize("family", toys.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source, out = build(tmp_path / "in", family), tmp_path / "out"
    (source / "tokenizer_config.json").write_text((source / "tokenizer_config.json").read_text().replace("\n", "  \n"))
    (source / "LICENSE").write_text("terms")
    model = load_model(source, CPU)
    assert not model.training and model.config.use_cache is False and model.dtype == torch.float32
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, source, out, dtype)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config == json.loads((source / "config.json").read_text()) | {"dtype": config["dtype"]}
    assert set(load_file(out / "model.safetensors")) == set(load_file(source / "model.safetensors"))
    assert source_dtype(out) == dtype
    again = load_model(out, CPU).state_dict()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), "saving must not change the model"
        assert torch.equal(again[name], value.to(dtype).float()), name


def test_save_keeps_the_inputs_dtype(tmp_path: Path, folder: Path) -> None:
    save_model(load_model(folder, CPU), folder, tmp_path / "half", "bfloat16")
    model = load_model(tmp_path / "half", CPU)
    assert model.dtype == torch.float32
    save_model(model, tmp_path / "half", tmp_path / "out")
    assert source_dtype(tmp_path / "out") == torch.bfloat16
    first, second = (
        load_file(tmp_path / "half/model.safetensors"),
        load_file(tmp_path / "out/model.safetensors"),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_dtype_is_the_settings_unless_overridden(folder: Path) -> None:
    assert load_model(folder, ModelSettings(device="cpu")).dtype == torch.bfloat16
    assert load_model(folder, ModelSettings(device="cpu"), dtype=torch.float32).dtype == torch.float32
    assert load_model(folder, CPU).config._attn_implementation == "sdpa"


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def poison(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "damaged safetensors"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 500), "damaged safetensors"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged safetensors"),
    "missing weight": (drop_weight, r"1 weights are missing, e\.g\. model\.norm\.weight"),
    "NaN": (poison, "NaN"),
    "pickle": (only_pickle, "never pickles"),
    "adapter": (adapter, "merge it"),
    "remote code": (lambda f: edit(f / "config.json", auto_map={"AutoConfig": "c.C"}), "remote code"),
    "remote tokenizer": (lambda f: edit(f / "tokenizer_config.json", auto_map={"x": "y"}), "remote code"),
    "kernel": (lambda f: edit(f / "config.json", _attn_implementation_internal="o/kernel"), "not allowed"),
    "inner kernel": (
        lambda f: edit(f / "config.json", text_config={"attn_implementation": "o/k"}),
        "not allowed",
    ),
    "masked model": (
        lambda f: edit(f / "config.json", model_type="bert", architectures=["BertForMaskedLM"]),
        "not a causal",
    ),
    "encoder-decoder": (
        lambda f: edit(f / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "not a causal",
    ),
    "unknown type": (lambda f: edit(f / "config.json", model_type="nothing_like_it"), "not a causal"),
    "no type": (lambda f: edit(f / "config.json", model_type=3), "model_type"),
    "quantised": (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "quantised"),
    "other shape": (lambda f: edit(f / "config.json", hidden_size=64), "cannot be loaded|mismatched"),
    "bad value": (lambda f: edit(f / "config.json", hidden_size="many"), "cannot be loaded"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(folder: Path, name: str) -> None:
    damage, expected = REFUSED[name]
    damage(folder)
    with pytest.raises(ForgetkitError, match=expected) as caught:
        load_model(folder, CPU)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    small = build(tmp_path / "small", vocab_size=300)
    with pytest.raises(ForgetkitError, match="tokens, the model 300 embedding rows"):
        load_model(small, CPU)


def test_model_without_tokenizer_loads(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert load_model(folder, CPU).dtype == torch.float32
    with pytest.raises(ForgetkitError, match="no tokenizer files"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "source", ["nobody/nothing-here", "no/such/folder", "https://user:secret@host/model", "", "x" * 5000]
)
def test_absent_models_need_no_network_and_leak_nothing(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for load in (local_folder, load_model, load_tokenizer, model_fingerprint, source_dtype):
        with pytest.raises(ForgetkitError) as caught:
            load(source)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_local_models_need_no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_model(str(folder), CPU)
    load_tokenizer(str(folder))


def test_cached_hub_model_is_found_and_saved_as_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, original: Path
) -> None:
    repo = tmp_path / "hub" / "models--who--what"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    shutil.copytree(original, repo / "blobs")
    (repo / "snapshots" / "c0ffee").mkdir(parents=True)
    for path in (repo / "blobs").iterdir():
        (repo / "snapshots" / "c0ffee" / path.name).symlink_to(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert local_folder("who/what") == repo / "snapshots" / "c0ffee"
    assert model_fingerprint("who/what") == model_fingerprint(original)
    save_model(load_model("who/what", CPU), "who/what", tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    with pytest.raises(ForgetkitError, match="allow_download"):
        local_folder("who/what", ModelSettings(revision="other"))


def test_fingerprint_sees_every_file_that_matters_and_not_the_place(folder: Path, original: Path) -> None:
    first = model_fingerprint(folder)
    assert first == model_fingerprint(original) == model_fingerprint(str(folder) + "/")
    (folder / "README.md").write_text("words")
    assert model_fingerprint(folder) == first
    seen = {first}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        seen.add(model_fingerprint(folder))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    seen.add(model_fingerprint(folder))
    (folder / "tokenizer_config.json").rename(folder / "special_tokens_map.json")
    seen.add(model_fingerprint(folder))
    assert len(seen) == 7


def test_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a": 1, "b": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CTRLTokenizer", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ForgetkitError, match="no character offsets"):
        load_tokenizer(tmp_path)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ForgetkitError, match="not available"):
            resolve_device("cuda")


def test_a_dtype_that_the_device_lacks_is_one_line(folder: Path) -> None:
    for dtype in ("float32", "bfloat16", torch.bfloat16):
        assert resolve_device("cpu", dtype) == torch.device("cpu")
    with pytest.raises(ForgetkitError) as caught:  # a CPU stores these floats, and cannot multiply them
        load_model(folder, CPU, dtype="float8_e8m0fnu")
    assert str(caught.value) == "model.dtype: cpu cannot compute in float8_e8m0fnu here - use float32"


def test_redact() -> None:
    shown = redact("https://u:pw@h/x hf_abcdefgh sk-12345678 Authorization: Bearer abc.def")
    assert shown == "https://***@h/x *** *** Authorization: Bearer ***"
