"""How long the whole method takes for a 7B model on one GPU: measured steps of every stage, extrapolated.

python benchmarks/gpu_7b.py [--arms full,lora] [--memory-gib 24] [--set reinforce.batch_blocks=16] [--out FILE]
python benchmarks/gpu_7b.py --device cpu --shape toy --set reinforce.accumulation=1 --set finetune.accumulation=1

A random-initialised model of Llama-2-7B's shape is built on the device itself; text and anchors are synthetic, for
neither their content nor the weights' values decide how long a step takes. Everything else is the package's own code
with the preset's settings: `core.loop.train` with the losses of both trainings, and the `Labeller` with both models.
The first steps are not counted. Not part of the figures: loading and saving models, anchors, evaluation.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.limits import Flops, flops_per_token, gemm_peak, stage_peak, synchronise
from forgetkit.core import lora
from forgetkit.core.batches import lm_loss
from forgetkit.core.config import load_settings
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.loop import train
from forgetkit.core.models import resolve_device
from forgetkit.core.provenance import pin_threads, versions
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.finetune import LabelCollator, LabelledText
from forgetkit.methods import get
from forgetkit.reinforce import BlockCollator
from forgetkit.relabel.build import Labeller, PreparedBlock, combined
from forgetkit.relabel.consistency import LabelPlan, Role, Status
from forgetkit.relabel.shards import BlockLabels
from forgetkit.settings import RelabelSettings, Settings, TrainSettings

SEED, PAD, BOS = 0, 0, 1
SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "toy": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
    },
}
TARGET_TOKENS = 3_100_000
"""The paper's target."""
ANCHORS_EVERY = 16
"""Tokens from one synthetic anchor to the next; half of them have been seen before in their block."""


# ---- what is measured ----


def build(shape: str, device: torch.device, seed: int = SEED) -> Any:
    """A random-initialised bf16 model, made where it is to be."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPES[shape], pad_token_id=PAD, bos_token_id=BOS, eos_token_id=2, tie_word_embeddings=False)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.config.use_cache = False
    return model.eval()


def recomputed(needed: Flops, shape: str, *, frozen: bool) -> float:
    """FLOPs per token of the layers' recomputation, which ends where nothing more is needed.

    No gradient needs the output of a layer's last product; beside a frozen one an adapter still has to be reached.
    """
    sizes = SHAPES[shape]
    last = 2.0 * sizes["num_hidden_layers"] * sizes["hidden_size"] * sizes["intermediate_size"]
    return needed.body - (0.0 if frozen else last)


def make_corpus(blocks: int, tokens: int, vocabulary: int) -> BlockedCorpus:
    """Random tokens in full blocks."""
    ids = np.random.default_rng(SEED).integers(3, vocabulary, blocks * tokens).astype(np.int32)
    low = np.arange(blocks) * tokens
    bounds = np.stack([np.zeros_like(low), low, low + tokens], axis=1)
    return BlockedCorpus((), ids, np.zeros((len(ids), 2), np.int32), bounds, BOS, tokens)


def make_prepared(corpus: BlockedCorpus, index: int, settings: RelabelSettings) -> PreparedBlock:
    """A block as `prepare_blocks` makes it of a text with an anchor every so often; translations are a bit longer."""
    random = np.random.default_rng([SEED, index])
    ids = corpus[index].ids
    n = len(ids)
    target = np.concatenate([ids, random.choice(ids, n // 50)]).astype(np.int32)
    status, role = np.full(n, Status.LABEL, np.uint8), np.full(n, Role.OTHER, np.uint8)
    begins = np.arange(ANCHORS_EVERY // 2, n, ANCHORS_EVERY)
    role[begins], status[begins[1::2]] = Role.ANCHOR_BEGINS, Status.SEEN_ANCHOR
    inner = begins + 1
    inner = inner[inner < n]
    role[inner] = Role.ANCHOR_CONTINUES
    status[inner] = Status.INSIDE_ANCHOR if settings.mask_inside_anchors else Status.INNER
    status[-1] = Status.NO_NEXT
    source = np.where(status == Status.LABEL, np.arange(n), -1).astype(np.int32)
    lowered = random.choice(ids, min(8, n), replace=False).astype(np.int32)
    start, end = np.full(len(lowered), n // 4, np.int32), np.full(len(lowered), n, np.int32)
    plan = LabelPlan(status, role, source, lowered, start, end, np.full(len(lowered), 5.0, np.float32))
    return combined([PreparedBlock(ids, target, plan)] * settings.dictionaries)


class Bench:
    """One shape on one device: its limits, and the stages one by one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = resolve_device(options.device, torch.bfloat16)
        self.settings: Settings = load_settings(None, options.set, options.preset)
        self.shape, self.steps = options.shape, options.warmup + options.steps
        if self.device.type == "cuda" and options.memory_gib:
            whole = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gib * 2**30 / whole), self.device)
        model = build(self.shape, self.device)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.needed: Flops = flops_per_token(model, options.block)
        self.gemm = gemm_peak(model, rows=self.settings.reinforce.batch_blocks * options.block)

    def _fresh(self) -> None:
        """Forget the models before, and begin to watch memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        stage_peak(reset=True)

    def _peak(self) -> float:
        """GiB: allocated on the GPU, or resident in all."""
        synchronise(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else stage_peak()
        return peak / 2**30

    def _told(self, tokens: int, seconds: float, flops: float, executed: float, passes: int, peak: float) -> Any:
        rate = tokens / seconds
        return {
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": rate,
            "minutes": passes * self.options.tokens / rate / 60,
            "of_gemm_peak": flops / seconds / self.gemm,
            "of_gemm_peak_with_recomputation": executed / seconds / self.gemm,
            "peak_memory_gib": peak,
        }

    def label(self, arm: str) -> tuple[dict[str, Any], list[BlockLabels], BlockedCorpus]:
        """Labels of both models on as many batches as there are steps; with LoRA both are one copy of the weights."""
        settings = self.settings.relabel
        corpus = make_corpus(self.steps * settings.batch_blocks, self.options.block, SHAPES[self.shape]["vocab_size"])
        blocks = [make_prepared(corpus, i, settings) for i in range(len(corpus))]
        batches = [blocks[i : i + settings.batch_blocks] for i in range(0, len(blocks), settings.batch_blocks)]
        self._fresh()
        baseline = build(self.shape, self.device)
        if arm == "lora":
            reinforced: Any = lora.attach(baseline, self.settings.reinforce.lora, seed=SEED).eval()
            baseline = lora.without_adapters(reinforced)
        else:
            reinforced = build(self.shape, self.device, SEED + 1)
        labeller = Labeller(baseline, reinforced, settings, pad_id=PAD, bos_id=BOS)
        labels, times = list[BlockLabels](), list[float]()
        for batch in batches:
            synchronise(self.device)
            began = time.perf_counter()
            labels += labeller.label(batch)
            times.append(time.perf_counter() - began)
        counted = batches[self.options.warmup :]
        flops = sum(self._label_flops(batch, labeller) for batch in counted)
        tokens = sum(len(block.ids) for batch in counted for block in batch)
        told = self._told(tokens, sum(times[self.options.warmup :]), flops, flops, 1, self._peak())
        return told | {"copies_of_the_weights": 1 if arm == "lora" else 2}, labels, corpus

    def _label_flops(self, batch: Sequence[PreparedBlock], labeller: Labeller) -> float:
        """The baseline on every translation, the reinforced model on the text, and the baseline on it as well where
        positions inside anchors get labels or it is contrasted with the reinforced model; without padding."""
        raised = labeller.reinforced is not None
        original = labeller.contrasted or any((b.plan.status == Status.INNER).any() for b in batch)
        tokens = rows = 0
        for block in batch:
            translations = 1 + len(block.others)
            tokens += translations * (len(block.target_ids) + 1) + (raised + original) * (len(block.ids) + 1)
            rows += (translations + raised + labeller.contrasted) * int((block.plan.status <= Status.INNER).sum())
        return tokens * self.needed.body + rows * self.needed.head

    def _train(
        self,
        settings: TrainSettings,
        items: Sequence[Any],
        collate: Callable[[list[Any]], dict[str, torch.Tensor]],
        loss: Any,
        rows_per_token: float,
    ) -> dict[str, Any]:
        """As many optimiser steps as wanted, by `core.loop.train`."""
        self._fresh()
        model = build(self.shape, self.device)
        if settings.adapter == "lora":
            model = lora.attach(model, settings.lora, seed=SEED)
        with tempfile.TemporaryDirectory() as folder:
            log = train(model, items, collate, loss, settings, Path(folder), seed=SEED, label="steps").log
        assert len(log) == self.steps, log
        seconds = sum(row["seconds"] for row in log[self.options.warmup :])
        # As the model sees them: a beginning-of-text token stands before each block.
        blocks = self.options.steps * settings.batch_blocks * settings.accumulation
        seen = blocks * (self.options.block + 1)
        frozen = settings.adapter == "lora"
        flops = self.needed.training(seen, rows_per_token * seen, frozen=frozen)
        executed = flops + settings.gradient_checkpointing * seen * recomputed(self.needed, self.shape, frozen=frozen)
        tokens = blocks * self.options.block
        told: dict[str, Any] = self._told(tokens, seconds, flops, executed, settings.epochs, self._peak())
        return told | {
            "optimizer": settings.optimizer,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "tokens_per_micro_batch": settings.batch_blocks * self.options.block,
            "tokens_per_step": settings.batch_blocks * settings.accumulation * self.options.block,
            "loss_last": log[-1]["loss"],
        }

    def _when_it_fits(self, settings: TrainSettings, *rest: Any) -> dict[str, Any]:
        """Without recomputation if the activations fit, else with."""
        wanted = {"on": [True], "off": [False], "auto": [False, True]}[self.options.checkpointing]
        for recompute in wanted:
            try:
                return self._train(settings.model_copy(update={"gradient_checkpointing": recompute}), *rest)
            except torch.OutOfMemoryError:
                if recompute is wanted[-1]:
                    raise
        raise AssertionError("unreachable")

    def training(self, arm: str, stage: str, labels: list[BlockLabels], corpus: BlockedCorpus) -> dict[str, Any]:
        """Reinforcement or fine-tuning, of all weights or of adapters."""
        chosen = self.settings.reinforce if stage == "reinforce" else self.settings.finetune
        count = self.steps * chosen.batch_blocks * chosen.accumulation
        settings = chosen.model_copy(
            update={
                "adapter": arm,
                "optimizer": "adamw_8bit" if arm == "full" else "adamw",
                "checkpoint_steps": 10**9,
            }
        )
        indices = [i % len(corpus) for i in range(count)]
        if stage == "reinforce":
            return self._when_it_fits(settings, indices, BlockCollator(corpus, PAD), lm_loss, 1.0)
        text: Any = LabelledText(corpus, labels)  # type: ignore[arg-type]  # a list serves as shards do
        share = float(np.mean([(one.status <= Status.INNER).sum() for one in labels])) / (self.options.block + 1)
        collate = LabelCollator(text, None, self.settings.finetune, PAD)
        loss = get(self.settings.finetune.method).make()
        return self._when_it_fits(settings, [(i, ()) for i in indices], collate, loss, share)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All stages of all arms.

    Raises ForgetkitError for a device that is not there or a setting that does not exist.
    """
    bench = Bench(options)
    arms: dict[str, Any] = {}
    for arm in options.arms.split(","):
        label, labels, corpus = bench.label(arm)
        stages = {"reinforce": bench.training(arm, "reinforce", labels, corpus), "label": label}
        stages["finetune"] = bench.training(arm, "finetune", labels, corpus)
        arms[arm] = {
            "stages": stages,
            "minutes": sum(stage["minutes"] for stage in stages.values()),
            "peak_memory_gib": max(stage["peak_memory_gib"] for stage in stages.values()),
        }
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(bench.device) if cuda else f"CPU {platform.machine()}",
        "shape": options.shape,
        "parameters": bench.parameters,
        "target_tokens": options.tokens,
        "block_tokens": options.block,
        "steps": {"measured": options.steps, "not_counted": options.warmup},
        "memory_limit_gib": options.memory_gib,
        "gemm_tflops": bench.gemm / 1e12,
        "forward_flops_per_token": {"body": bench.needed.body, "head": bench.needed.head},
        "versions": versions() | ({"cuda": str(torch.version.cuda)} if cuda else {}),
        "settings": {
            name: getattr(bench.settings, name).model_dump(mode="json") for name in ("reinforce", "relabel", "finetune")
        },
        "arms": arms,
    }


# ---- telling ----


def table(told: dict[str, Any]) -> str:
    """The result for a terminal."""
    lines = [
        f"{told['shape']} shape, {told['parameters'] / 1e9:.2f}e9 parameters, on {told['device']}; "
        f"GEMM peak {told['gemm_tflops']:.3g} TFLOP/s",
        f"{'':16}{'min':>8}{'tokens/s':>12}{'% of GEMM':>11}{'recomputed':>12}{'peak GiB':>10}",
    ]
    for arm, result in told["arms"].items():
        for name, stage in result["stages"].items():
            lines.append(
                f"{arm:6}{name:10}{stage['minutes']:8.2f}{stage['tokens_per_second']:12,.0f}"
                f"{100 * stage['of_gemm_peak']:11.1f}{'yes' if stage.get('gradient_checkpointing') else 'no':>12}"
                f"{stage['peak_memory_gib']:10.2f}"
            )
        copies = {1: "one copy", 2: "two copies"}[result["stages"]["label"]["copies_of_the_weights"]]
        lines.append(f"{arm:6}{'in all':10}{result['minutes']:8.2f}{'':35}{result['peak_memory_gib']:10.2f}")
        lines.append(f"{'':6}labels hold {copies} of the weights")
    lines.append(f"extrapolated from {told['steps']['measured']} steps to {told['target_tokens']:,} target tokens")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--arms", default="full,lora", help="what is trained: full, lora or both")
    parser.add_argument("--preset", default="paper", help="preset of settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--block", type=int, default=512, help="tokens per block")
    parser.add_argument("--tokens", type=int, default=TARGET_TOKENS, help="target tokens to extrapolate to")
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps and label batches that count")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--checkpointing", default="auto", choices=("auto", "on", "off"), help="auto: where it must be")
    parser.add_argument("--memory-gib", type=float, default=0, help="use no more of the GPU, as if it were smaller")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 = all")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit code."""
    options = parse(arguments)
    pin_threads(options.threads)
    try:
        told = measure(options)
    except ForgetkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(told))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
