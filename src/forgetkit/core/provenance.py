"""What a result depends on besides its inputs: versions, threads, seeds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random

import numpy as np
import torch

import forgetkit
from forgetkit.core import distributed

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions of forgetkit, Python and the libraries that results depend on, and the platform."""
    found = {"forgetkit": forgetkit.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    found["platform"] = f"{platform.system()}-{platform.machine()}"
    return found


def available_cores() -> int:
    """Cores this process may use (which in a container can be fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def pin_threads(threads: int) -> int:
    """Fix torch's CPU threads (0 = all cores, shared among the ranks here) and choose deterministic algorithms.

    Returns the resolved number: sums differ in the last bit between thread counts, so bit-exact repetition needs it.
    """
    assert threads >= 0, threads
    resolved = threads or max(1, available_cores() // distributed.ranks_here())
    torch.set_num_threads(resolved)
    if distributed.world() > 1:
        # Where it is unset, accelerate sets torch's threads to a number of its own.
        os.environ.setdefault("OMP_NUM_THREADS", str(resolved))
    # read by cuBLAS when the first CUDA context is made; harmless without CUDA
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory guards against reading it unwritten; it costs 8% of a training step and decides no bit.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return resolved


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (every device's)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # the legacy global generator, which libraries still use
    torch.manual_seed(seed)
