"""What a machine can do at most, and what a model needs at least: the yardsticks of the benchmarks."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forgetkit import demo
from forgetkit.core.models import load_model
from forgetkit.plan.shape import Shape
from forgetkit.settings import ModelSettings


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_peak(model: Any, rows: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of the model's own matrix products in its own dtype and place, `rows` tokens each, best of `repeats`."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    device, dtype = weights[0].device, weights[0].dtype
    inputs = {width: torch.randn(rows, width, device=device).to(dtype) for width in {w.shape[1] for w in weights}}
    best = float("inf")
    with torch.inference_mode():
        for _ in range(repeats + 1):
            synchronise(device)
            began = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            synchronise(device)
            best = min(best, time.perf_counter() - began)
    return 2 * rows * sum(w.numel() for w in weights) / best


def demo_gflops(threads: int) -> float:
    """GFLOP/s of the bundled model's matrix products in bf16, on so many CPU threads: what a time was recorded on."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = gemm_peak(load_model(demo.MODEL, ModelSettings(device="cpu", dtype="bfloat16"))) / 1e9
    torch.set_num_threads(before)
    return round(found)


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one token: in the linear layers below the head, in causal attention, and in the head."""

    linear: float
    attention: float
    head: float

    @property
    def body(self) -> float:
        """Everything below the head."""
        return self.linear + self.attention

    def training(self, tokens: float, rows: float, *, frozen: bool = False) -> float:
        """A step over `tokens`, `rows` of which reach the head: forwards once, backwards by inputs and by weights.

        `frozen` weights have no gradient of their own (LoRA; the adapters, some 1%, are left out).
        """
        passes = 2 if frozen else 3
        return tokens * (passes * self.linear + 3 * self.attention) + rows * passes * self.head


def flops_per_token(model: Any, length: int) -> Flops:
    """2 per weight, and causal attention over `length` tokens."""
    shape = Shape.of(model.config)
    return Flops(2.0 * shape.matmul, 2.0 * length * shape.attention, 2.0 * shape.head)


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stage_peak(reset: bool = False) -> int:
    """Largest resident size since the last reset, in bytes; Linux only, elsewhere since the start."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return peak_rss()
