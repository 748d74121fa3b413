"""`--dry-run`: what a run will do, what it needs, and roughly how long it takes, before anything is done."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forgetkit.core import models
from forgetkit.core.provenance import pin_threads
from forgetkit.corpus.blocks import block_documents
from forgetkit.corpus.readers import read_paths
from forgetkit.pipeline import RETAIN_FOR_EVALUATION, STAGES, Inputs
from forgetkit.settings import Settings, TrainSettings

EFFICIENCY = 0.35
"""Share of the matrix-multiplication peak that a whole stage reaches; an assumption, hence 'rough'."""
SHARED = frozenset(stage.name for stage in STAGES if stage.shared)
"""Stages that `world_size` processes divide among them."""
MASTER_BYTES = 12
"""fp32 master weights and two Adam moments, per trained parameter."""


def parameter_count(source: str, settings: Settings) -> tuple[int, int]:
    """(all parameters, vocabulary rows) of a model, from its configuration alone."""
    config = AutoConfig.from_pretrained(models.local_folder(source, settings.model), local_files_only=True)
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in net.parameters()), int(config.get_text_config().vocab_size)


def gemm_rate(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Measured multiply-add rate in FLOP/s of a 1024-square matrix product."""
    a = torch.randn(1024, 1024, device=device).to(dtype)
    a @ a
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        float((a @ a)[0, 0])
        count += 1
    return 2 * 1024**3 * count / (time.perf_counter() - began)


def _steps(blocks: int, settings: TrainSettings) -> int:
    return -(-blocks * settings.epochs // (settings.batch_blocks * settings.accumulation))


def make_plan(inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """Documents, tokens, steps, memory and time of every stage; reads the texts, loads no weights.

    Raises:
        ForgetkitError: as reading the inputs in a real run would.
    """
    threads = pin_threads(settings.threads)
    tokenizer = models.load_tokenizer(inputs.model, settings.model)
    size = settings.corpus.block_tokens
    target = block_documents(read_paths(inputs.target, settings.corpus), tokenizer, size)
    retain_blocks = 0
    if inputs.retain:
        retain = block_documents(read_paths(inputs.retain, settings.corpus), tokenizer, size)
        retain_blocks = len(retain) * (RETAIN_FOR_EVALUATION - 1) // RETAIN_FOR_EVALUATION
    parameters, vocabulary = parameter_count(inputs.model, settings)
    dtype = models.as_dtype(settings.model.dtype)
    device = models.resolve_device(settings.model.device, dtype)
    rate = gemm_rate(dtype, device) * EFFICIENCY
    ratio = 1 + (settings.finetune.retain_ratio if retain_blocks else 0)
    labelled = len(target) + min(retain_blocks, int(len(target) * settings.relabel.max_retain_ratio))
    forward, train = 2 * parameters, 6 * parameters
    tokens = {
        "2-reinforced": (target.n_tokens * settings.reinforce.epochs, train),
        "3-anchors": (target.n_tokens * 2 * settings.anchors.model_signal, forward),
        "4-labels": ((labelled + 2 * len(target)) * size, forward),
        "5-unlearned": (int(target.n_tokens * settings.finetune.epochs * ratio), train),
        "6-evaluation": (
            (2 + bool(settings.evaluate.reference) + settings.finetune.snapshots)
            * (
                settings.evaluate.recall_places * settings.evaluate.recall_context
                + 4 * settings.evaluate.loss_blocks * size
            ),
            forward,
        ),
    }
    steps = {
        "2-reinforced": _steps(len(target), settings.reinforce),
        "5-unlearned": _steps(len(target), settings.finetune),
    }
    width = dtype.itemsize
    batch = settings.finetune.batch_blocks * ratio * size
    memory = parameters * (2 * width + MASTER_BYTES) + batch * vocabulary * (width + 8)
    disk = parameters * (2 * (2 + settings.finetune.snapshots) + 3 * (width + MASTER_BYTES))
    disk += labelled * size * (4 * settings.relabel.top_k + 4)
    return {
        "documents": len(target.documents),
        "tokens": target.n_tokens,
        "blocks": len(target),
        "retain_blocks": retain_blocks,
        "parameters": parameters,
        "device": str(device),
        "dtype": settings.model.dtype,
        "threads": threads,
        "steps": steps,
        "memory_gb": round(memory / 1e9, 2),
        "disk_gb": round(disk / 1e9, 2),
        "minutes": {
            name: round(n * flops / rate / 60 / (settings.world_size if name in SHARED else 1), 2)
            for name, (n, flops) in tokens.items()
        },
        "rough": f"time assumes {EFFICIENCY:.0%} of the matrix-product rate measured just now",
    }


def render(plan: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    total = sum(plan["minutes"].values())
    lines = [
        f"target: {plan['documents']} documents, {plan['tokens']:,} tokens, {plan['blocks']:,} blocks; "
        f"retain: {plan['retain_blocks']:,} blocks for training",
        f"model: {plan['parameters']:,} parameters; {plan['device']}, {plan['dtype']}, {plan['threads']} threads",
        f"memory: about {plan['memory_gb']} GB; disk: about {plan['disk_gb']} GB at most",
    ]
    for name, minutes in plan["minutes"].items():
        steps = f", {plan['steps'][name]:,} optimiser steps" if name in plan["steps"] else ""
        lines.append(f"  {name}: {minutes:.1f} min{steps}")
    lines += [f"in all: about {total:.0f} min ({plan['rough']})", "nothing was done (--dry-run)"]
    return "\n".join(lines)
