"""What this machine can and cannot do, as data: `forgetkit doctor` shows it, tests read it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from forgetkit.core.config import PRESETS


class Check(NamedTuple):
    """One finding; ``remedy`` is empty when all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str


def checks(folder: Path = Path()) -> list[Check]:
    """All findings, in a fixed order. ``folder``: where runs will be written (for free disk space)."""
    return [
        _python(),
        _library("torch", (2, 10)),
        _library("transformers", (5, 3)),
        _cores(),
        _bf16(),
        _memory(),
        _disk(folder),
        _gpu(),
        _optional("openai", "anchor extraction by a language model", "pip install 'forgetkit[llm]'"),
        _optional("lm_eval", "the utility tasks of evaluate --suite paper", "pip install 'forgetkit[eval]'"),
        _optional("bitsandbytes", "the optimizer adamw_8bit", "pip install 'forgetkit[8bit]'"),
        _presets(),
        _demo(),
    ]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - an installer can be told to ignore the requirement
        return Check("python", "fail", found, "use Python 3.11 or newer")
    return Check("python", "ok", found, "")


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version text such as ``2.13.0+cpu``; (0, 0) when it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _library(name: str, minimum: tuple[int, int]) -> Check:
    wanted = ".".join(map(str, minimum))
    remedy = f"pip install '{name}>={wanted}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", remedy)
    if release(found) < minimum:
        return Check(name, "fail", f"{found}, too old (older ones have known security faults)", remedy)
    return Check(name, "ok", found, "")


def _cores() -> Check:
    from forgetkit.core.provenance import available_cores

    cores = available_cores()
    remedy = "expect long runs; use a small model" if cores < 2 else ""
    return Check("cores", "warn" if cores < 2 else "ok", str(cores), remedy)


def _bf16() -> Check:
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Check("bf16", "ok", "CUDA", "")
        return Check("bf16", "warn", "this GPU only emulates it", "--set model.dtype=float32")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Check("bf16", "warn", "unknown on this system", "if runs are slow, --set model.dtype=float32")
    features = sorted({"amx_bf16", "avx512_bf16", "bf16"} & set(text.split()))
    if features:
        return Check("bf16", "ok", ", ".join(features), "")
    return Check("bf16", "warn", "no hardware support", "--set model.dtype=float32 may be faster")


def _memory() -> Check:
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return Check("memory", "warn", "unknown", "pip install psutil")
    state = psutil.virtual_memory()
    found = f"{state.available / 2**30:.1f} of {state.total / 2**30:.1f} GiB free"
    if state.available < 4 * 2**30:
        return Check("memory", "warn", found, "training all weights needs 16 bytes per parameter and more")
    return Check("memory", "ok", found, "")


def _disk(folder: Path) -> Check:
    place = next((p for p in (folder.absolute(), *folder.absolute().parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 2**30
    found = f"{free:.1f} GiB free"
    if free < 1:
        return Check("disk", "fail", found, "free some space or choose another run folder")
    if free < 10:
        return Check("disk", "warn", found, "a run keeps several copies of the model; fewer with finetune.snapshots=0")
    return Check("disk", "ok", found, "")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check("gpu", "ok", f"{torch.cuda.get_device_name(0)}, {total:.0f} GiB", "")
    if torch.backends.mps.is_available():
        return Check("gpu", "ok", "Apple MPS", "")
    return Check("gpu", "warn", "none", "everything runs on the CPU; choose a small model")


def _optional(module: str, purpose: str, remedy: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(module, "warn", f"not installed (only needed for {purpose})", remedy)
    return Check(module, "ok", importlib.metadata.version(module), "")


def _presets() -> Check:
    folder = resources.files("forgetkit") / "presets"
    missing = [name for name in PRESETS.values() if name and not (folder / name).is_file()]
    if missing:
        return Check("presets", "fail", f"missing: {', '.join(missing)}", "install forgetkit again")
    return Check("presets", "ok", ", ".join(sorted(PRESETS)), "")


def _demo() -> Check:
    folder = resources.files("forgetkit") / "demo" / "assets"
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if not names:
        return Check("demo", "fail", "bundled demo files are missing", "install forgetkit again")
    return Check("demo", "ok", f"{len(names)} files", "")
