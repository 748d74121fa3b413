"""bf16 causal attention on a CPU: torch's fused kernel beside forgetkit's matrix products, in one process.

python benchmarks/attention.py [--rounds 9] [--threads N]

Arms run interleaved, forgetkit twice (the noise floor); medians of process time, and the median ratio with a 95%
bootstrap interval over rounds. Shapes are micro-batches of about 2,000 tokens of the demo model (5 heads of 64).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.speed import interval
from forgetkit.core.attention import causal_attention

HEADS, WIDTH = 5, 64
SHAPES = ((16, 128), (8, 256), (4, 512), (2, 1024))


def torchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The fused kernel, as transformers' 'sdpa' calls it."""
    return scaled_dot_product_attention(query, key, value, is_causal=True)


def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Matrix products."""
    return causal_attention(query, key, value, WIDTH**-0.5)


def seconds(arm: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> float:
    """Process time of six calls, as many as the demo model has layers."""
    began = time.process_time()
    for _ in range(6):
        with torch.set_grad_enabled(backward):
            out = arm(*inputs)
        if backward:
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    return time.process_time() - began


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arms = {"torch": torchs, "forgetkit": ours, "again": ours}
    print("| blocks x tokens | pass | torch, ms | forgetkit, ms | torch / forgetkit | forgetkit / forgetkit |")
    print("|---|---|---|---|---|---|")
    for batch, length in SHAPES:
        torch.manual_seed(0)
        # The layout in which a model hands them over: [B, T, N, D], heads swapped to the front.
        inputs = [torch.randn(batch, length, HEADS, WIDTH).bfloat16().transpose(1, 2) for _ in range(3)]
        for backward in (False, True):
            for tensor in inputs:
                tensor.requires_grad_(backward)
            took = {name: list[float]() for name in arms}
            for number in range(arguments.rounds + 1):
                for name in list(arms)[:: -1 if number % 2 else 1]:
                    took[name].append(seconds(arms[name], inputs, backward))
            rows = {name: values[1:] for name, values in took.items()}  # the first round warms up
            middle = {name: 1e3 * float(np.median(values)) for name, values in rows.items()}
            cells = []
            for other in ("torch", "again"):
                ratio = interval([a / b for a, b in zip(rows[other], rows["forgetkit"], strict=True)])
                cells.append("{:.2f}x ({:.2f} to {:.2f})".format(*ratio))
            what = "forward and backward" if backward else "forward"
            times = f"{middle['torch']:.0f} | {middle['forgetkit']:.0f}"
            print(f"| {batch} x {length} | {what} | {times} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
