"""Loading and saving models and tokenizers: local folders or the Hub cache, safetensors only.

No remote code runs. Every refusal is one line. Nothing is downloaded unless
`ModelSettings.allow_download` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from forgetkit.core import distributed
from forgetkit.core.artifacts import hash_file
from forgetkit.core.attention import use_products
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.sharded import gathered, is_sharded, shard
from forgetkit.settings import ModelSettings

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.*", "*.tiktoken", "tekken.json",
)  # fmt: skip
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_HARMLESS = frozenset({"_name_or_path", "_commit_hash"})
_LOAD_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers is seen to raise for a broken folder."""


def redact(text: str) -> str:
    """``text`` without URL credentials, Hub or API tokens."""
    text = re.sub(r"(?<=://)[^\s/@]*@", "***@", text)
    return re.sub(r"\b(hf_|sk-)[A-Za-z0-9_-]{4,}|(?<=Bearer )\S+", "***", text)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


# --- where a model is ----------------------------------------------------------------------------------


def local_folder(source: str | Path, settings: ModelSettings | None = None) -> Path:
    """The folder that holds ``source``: itself, or its snapshot in the local Hub cache.

    Raises ForgetkitError when there is neither and nothing may be, or could be, downloaded.
    """
    settings = settings or ModelSettings()
    folder = Path(source)
    with contextlib.suppress(OSError):  # a name too long for a path is not a folder
        if str(source) and folder.is_dir():
            return folder
    shown = redact(str(source))
    if not isinstance(source, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise ForgetkitError("no such model folder", shown)
    try:
        return Path(
            huggingface_hub.snapshot_download(
                source,
                revision=settings.revision,
                local_files_only=not settings.allow_download,
                allow_patterns=[*_MODEL_FILES, *_TOKENIZER_FILES, *_LICENCE_FILES],
            )
        )
    except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        if settings.allow_download:
            remedy = "check the name, the revision, access rights and the network"
            raise ForgetkitError(f"could not be fetched ({type(error).__name__})", shown, remedy) from error
        remedy = "give a model folder, or permit the download with --set model.allow_download=true"
        raise ForgetkitError("no such folder, and not in the local Hub cache", shown, remedy) from error


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Files directly in ``folder`` that match, sorted by name."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        adapter = (path.parent / "adapter_config.json").exists()
        remedy = "this is an adapter; merge it into its base model first" if adapter else ""
        raise ForgetkitError("no such file; not a model folder", str(path), remedy) from error
    except (ValueError, RecursionError) as error:
        raise ForgetkitError("not readable as JSON", str(path)) from error
    if not isinstance(value, dict):
        raise ForgetkitError("expected a JSON object", str(path))
    return value


def _refuse_code(value: object, path: Path) -> None:
    """Refuse keys through which a configuration can make a library fetch or run code (CVE-2026-4372)."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        if not isinstance(item, dict):
            continue
        for key, below in item.items():
            remedy = "only architectures that transformers itself contains can be used"
            if key == "auto_map" and below:
                raise ForgetkitError("needs remote code (auto_map), which is never run", str(path), remedy)
            hub_kernel = "implementation" in key and "/" in json.dumps(below)
            if hub_kernel or (key.startswith("_") and key not in _HARMLESS and isinstance(below, str | dict)):
                raise ForgetkitError(f"key {redact(key)[:60]!r} is not allowed", str(path), "remove that key")
            pending.append(below)


def _checked_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a causal model that needs no code of its own; raises ForgetkitError otherwise."""
    path = folder / "config.json"
    config = _read_json(path)
    _refuse_code(config, path)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ForgetkitError("has no model_type", str(path))
    if config.get("quantization_config"):
        raise ForgetkitError("the model is quantised and cannot be trained", str(path), "use the full weights")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    names = [known] if isinstance(known, str) else list(known or ())
    given = config.get("architectures") or names
    causal = any(a in names or str(a).endswith(("ForCausalLM", "LMHeadModel")) for a in given)
    if not names or not causal or config.get("is_encoder_decoder"):
        what = ", ".join(str(a)[:60] for a in given) or kind[:60]
        raise ForgetkitError(f"not a causal language model that transformers knows: {what}", str(path))
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; raises ForgetkitError when they are missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) and "/" not in n for n in named.values()):
            raise ForgetkitError("has no usable weight_map", str(index))
        files = sorted({folder / name for name in named.values()})
    else:
        files = [folder / "model.safetensors"]
    for path in files:
        if not path.is_file():
            pickled = _matching(folder, ("*.bin", "*.pt", "*.pth"))
            remedy = "only safetensors are read, never pickles; convert the weights first" if pickled else ""
            raise ForgetkitError("weights are missing", str(path), remedy)
    return files


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name -> {dtype, shape, data_offsets}; checks the file's length."""
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = path.stat().st_size
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != 8 + length + end:
            raise ValueError("wrong length")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ForgetkitError("damaged safetensors file", str(path), "copy or download the model again") from error
    return dict(header)


def check_source(source: str | Path, settings: ModelSettings | None = None) -> Path:
    """The folder of a model that can be read and trained, as far as configuration and weight headers tell.

    Raises ForgetkitError, as `load_model` and `load_tokenizer` would; reads no weights.
    """
    folder = local_folder(source, settings)
    _checked_config(folder)
    source_dtype(folder)
    load_tokenizer(folder)
    return folder


def source_dtype(source: str | Path, settings: ModelSettings | None = None) -> torch.dtype:
    """The dtype in which the input checkpoint stores most of its weights, by the safetensors headers."""
    folder = local_folder(source, settings)
    counts: dict[str, int] = {}
    for path in _weight_files(folder):
        for entry in _header(path).values():
            counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + math.prod(entry["shape"])
    most = max(counts, key=lambda name: counts[name], default="none")
    if most not in _FLOATS:
        raise ForgetkitError(f"weights are stored as {most}", str(folder), "use a checkpoint in bf16, fp16 or fp32")
    return _FLOATS[most]


def model_fingerprint(source: str | Path, settings: ModelSettings | None = None) -> str:
    """SHA-256 over names and contents of configuration, weights and tokenizer files (not where they lie)."""
    folder = local_folder(source, settings)
    digest = hashlib.sha256()
    for path in _matching(folder, (*_MODEL_FILES, *_TOKENIZER_FILES)):
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def tokenizer_fingerprint(source: str | Path, settings: ModelSettings | None = None) -> str:
    """SHA-256 over names and contents of the tokenizer files alone."""
    digest = hashlib.sha256()
    for path in _matching(local_folder(source, settings), _TOKENIZER_FILES):
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


# --- tokenizers ----------------------------------------------------------------------------------------


def load_tokenizer(source: str | Path, settings: ModelSettings | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in ``source``; refused when it cannot tell which characters a token covers."""
    folder = local_folder(source, settings)
    if not _matching(folder, _TOKENIZER_FILES):
        raise ForgetkitError("no tokenizer files", str(folder))
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            _refuse_code(_read_json(folder / name), folder / name)
    try:
        with _silence():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise ForgetkitError(f"tokenizer cannot be loaded: {_one_line(error)}", str(folder)) from error
    if not getattr(tokenizer, "is_fast", False):
        remedy = "use a model that comes with a tokenizer.json"
        raise ForgetkitError("the tokenizer gives no character offsets, which labels need", str(folder), remedy)
    return tokenizer


# --- models --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' bars and advice off the terminal; our own checks say what matters."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def resolve_device(name: str = "auto", dtype: torch.dtype | str = torch.float32) -> torch.device:
    """The device ``name`` means here ('auto': CUDA, else MPS, else CPU).

    Raises ForgetkitError when there is no such device, or it cannot multiply matrices of ``dtype``.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present.get(name, False):
        raise ForgetkitError(f"device {name!r} is not available here", "model.device", "use auto or cpu")
    try:
        # Tried, not looked up: which dtypes work depends on the card, the driver and the build of torch.
        one = torch.ones(1, 1, device=name).to(as_dtype(dtype))
        (one @ one).float().item()
    except (RuntimeError, TypeError) as error:
        shown = str(as_dtype(dtype)).removeprefix("torch.")
        raise ForgetkitError(f"{name} cannot compute in {shown} here", "model.dtype", "use float32") from error
    return torch.device(name)


def load_model(
    source: str | Path,
    settings: ModelSettings | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    fsdp: bool = False,
) -> PreTrainedModel:
    """A causal model in eval mode on the resolved device, in ``dtype`` or else ``settings.dtype``, cache off.

    With ``fsdp`` it is cut over the ranks (`core.sharded`), all of which must call this.

    Raises ForgetkitError when it does not exist, is no causal model, needs remote code, has damaged,
    incomplete or non-finite weights, has fewer embedding rows than its tokenizer has tokens, or does not fit;
    when there is no such device, or none for this dtype.
    """
    settings = settings or ModelSettings()
    chosen = as_dtype(dtype or settings.dtype)
    device = resolve_device(settings.device, chosen)
    folder = local_folder(source, settings)
    _checked_config(folder)
    for path in _weight_files(folder):
        _header(path)
    try:
        with _silence():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=chosen,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        if not fsdp:
            model.to(device)
    except torch.OutOfMemoryError as error:
        raise ForgetkitError(f"the model does not fit on {device}", str(folder), "use model.device=cpu") from error
    except _LOAD_ERRORS as error:
        raise ForgetkitError(f"model cannot be loaded: {_one_line(error)}", str(folder)) from error
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            name = sorted(str(key) for key in info[kind])[0]
            raise ForgetkitError(f"{len(info[kind])} weights are {kind.split('_')[0]}, e.g. {name}", str(folder))
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise ForgetkitError("weights contain NaN or infinity", str(folder), "copy or download the model again")
    if _matching(folder, _TOKENIZER_FILES):
        check_vocabulary(model, load_tokenizer(folder), str(folder))
    model.eval()
    model.config.use_cache = False
    use_products(model)
    if fsdp:
        shard(model, device.type)
    return model


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str = "") -> None:
    """Raises ForgetkitError when the tokenizer has ids for which the model has no embedding row."""
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > rows:
        what = f"the tokenizer has {tokens} tokens, the model {rows} embedding rows"
        raise ForgetkitError(what, where, "use the tokenizer that belongs to the model")


def as_dtype(name: torch.dtype | str) -> torch.dtype:
    """``torch.bfloat16`` for ``"bfloat16"``, and so on; never 'auto' (trap P2)."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    assert isinstance(found, torch.dtype) and found.is_floating_point, name
    return found


def save_model(
    model: PreTrainedModel, tokenizer_source: str | Path, out: Path, dtype: torch.dtype | str | None = None
) -> None:
    """Write a plain Hugging Face folder: safetensors in ``dtype`` (None: the input's), and the rest.

    On several ranks rank 0 writes; a sharded model is gathered first, so all of them must call this.

    Tokenizer, generation config and licence files are copied byte for byte from ``tokenizer_source``, the
    model that training started from; config.json is the input's, with the dtype brought up to date.
    """
    source = local_folder(tokenizer_source)
    target = source_dtype(source) if dtype is None else as_dtype(dtype)
    writes = distributed.is_main()
    if not writes and not is_sharded(model):
        return
    cast: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in cast:  # tied weights must stay one tensor, or they are written twice
            kind = target if value.is_floating_point() else value.dtype
            full = gathered(value)
            cast[id(value)] = full.to("cpu", kind) if writes else full.new_empty(0)
        state[name] = cast[id(value)]
    if not writes:
        return
    out.mkdir(parents=True, exist_ok=True)
    with _silence():
        model.save_pretrained(out, state_dict=state)
    for path in _matching(source, (*_TOKENIZER_FILES, *_LICENCE_FILES, "generation_config.json")):
        shutil.copyfile(path, out / path.name)
    config = _read_json(source / "config.json")
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(target).removeprefix("torch.")
    for name in _HARMLESS:
        config.pop(name, None)
    text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
