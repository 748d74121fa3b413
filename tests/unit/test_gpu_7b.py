"""The benchmark of a 7B model, run for real with a toy shape on the CPU. What it tells of a GPU is not tested here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_7b
from benchmarks.limits import flops_per_token
from forgetkit.core import lora
from forgetkit.core.batches import lm_loss, pad_blocks
from forgetkit.core.heads import SplitHead
from forgetkit.core.loop import recomputing
from forgetkit.relabel.build import Labeller
from forgetkit.relabel.consistency import Status
from forgetkit.settings import LoraSettings, RelabelSettings

TOKENS, BLOCK = 1_000_000, 64
ARGUMENTS = [
    "--device", "cpu", "--shape", "toy", "--block", str(BLOCK), "--tokens", str(TOKENS), "--threads", "1",
    "--steps", "2", "--warmup", "1",
    "--set", "reinforce.batch_blocks=4", "--set", "reinforce.accumulation=2",
    "--set", "finetune.batch_blocks=4", "--set", "finetune.accumulation=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads, filled = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("bitsandbytes")
    out = tmp_path_factory.mktemp("bench") / "told.json"
    assert gpu_7b.main([*ARGUMENTS, "--checkpointing", "on", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_minutes_are_tokens_over_the_measured_rate(told: dict[str, Any]) -> None:
    assert set(told["arms"]) == {"full", "lora"}
    for arm in told["arms"].values():
        passes = {"reinforce": 3, "label": 1, "finetune": 2}  # the paper's epochs
        assert list(arm["stages"]) == list(passes)
        for name, stage in arm["stages"].items():
            assert stage["tokens_per_second"] == pytest.approx(stage["tokens"] / stage["seconds"])
            assert stage["minutes"] == pytest.approx(passes[name] * TOKENS / stage["tokens_per_second"] / 60)
        assert arm["minutes"] == pytest.approx(sum(stage["minutes"] for stage in arm["stages"].values()))


def test_only_the_steps_that_count_are_counted(told: dict[str, Any]) -> None:
    for arm in told["arms"].values():
        assert arm["stages"]["reinforce"]["tokens"] == 2 * 4 * 2 * BLOCK
        assert arm["stages"]["finetune"]["tokens"] == 2 * 4 * 1 * BLOCK
        assert arm["stages"]["label"]["tokens"] == 2 * 8 * BLOCK


def test_utilisation_and_memory_are_possible(told: dict[str, Any]) -> None:
    for name, arm in told["arms"].items():
        for stage in arm["stages"].values():
            assert 0 < stage["of_gemm_peak"] <= stage["of_gemm_peak_with_recomputation"] < 1
            assert 2 * told["parameters"] / 2**30 < stage["peak_memory_gib"] < 16
        for stage in (arm["stages"]["reinforce"], arm["stages"]["finetune"]):
            assert stage["gradient_checkpointing"] is True
            assert stage["of_gemm_peak"] < stage["of_gemm_peak_with_recomputation"]
            assert stage["optimizer"] == {"full": "adamw_8bit", "lora": "adamw"}[name]
            assert np.isfinite(stage["loss_last"])
        assert arm["stages"]["label"]["copies_of_the_weights"] == {"full": 2, "lora": 1}[name]


def test_the_table_tells_every_stage(told: dict[str, Any]) -> None:
    text = gpu_7b.table(told)
    for word in ("full  reinforce", "lora  finetune", "in all", "1,000,000 target tokens", told["device"]):
        assert word in text


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu_7b.main(["--device", "cuda", "--threads", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: model.device: device 'cuda' is not available here - use auto or cpu\n"


def counted(work: Any) -> tuple[int, int]:
    """FLOPs of matrix products: of all, and of the batched ones among them (eager attention)."""
    with FlopCounterMode(display=False) as counter:
        work()
    kinds = {str(kind): n for kind, n in counter.get_flop_counts()["Global"].items()}
    return counter.get_total_flops(), sum(n for kind, n in kinds.items() if "bmm" in kind)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_flops_of_a_step_are_those_torch_counts(adapter: str, recompute: bool) -> None:
    model = gpu_7b.build("toy", torch.device("cpu"))
    model.set_attn_implementation("eager")  # of its own CPU kernel torch counts nothing
    needed = flops_per_token(model, BLOCK)
    if adapter == "lora":
        model = lora.attach(model, LoraSettings(rank=1))
    ids, valid = pad_blocks([np.arange(3, 3 + BLOCK)] * 4, 0)
    SplitHead(model)  # its check runs the model once
    with recomputing(model.train(), recompute):
        total, attention = counted(lambda: lm_loss(model, {"input_ids": ids, "valid": valid}).total.backward())
    tokens = 4 * BLOCK
    frozen = adapter == "lora"
    again = recompute * tokens
    # Eager attention computes the half that causality leaves out as well.
    assert attention == 2 * (3 * tokens + again) * needed.attention
    rows = tokens - len(ids)  # the last token of a block predicts nothing
    expected = needed.training(tokens, rows, frozen=frozen) + again * gpu_7b.recomputed(needed, "toy", frozen=frozen)
    ours = expected - (3 * tokens + again) * needed.attention
    if frozen:  # the adapters, which the benchmark leaves out: rank 1, so 2 FLOPs per weight and pass
        sizes = {n: p.numel() for n, p in model.named_parameters() if "lora_" in n}
        ours += 2 * (3 * tokens + again) * sum(sizes.values())
        ours -= 2 * again * sum(size for n, size in sizes.items() if "down_proj.lora_B" in n)  # as `recomputed` says
    assert total - attention == ours


@pytest.mark.parametrize(("inside", "dictionaries"), [(True, 1), (False, 1), (False, 3)])
def test_flops_of_labelling_are_those_torch_counts(inside: bool, dictionaries: int) -> None:
    told = (f"relabel.mask_inside_anchors={str(inside).lower()}", f"relabel.dictionaries={dictionaries}")
    options = gpu_7b.parse([*ARGUMENTS, *(part for setting in told for part in ("--set", setting))])
    bench = gpu_7b.Bench(options)
    settings: RelabelSettings = bench.settings.relabel
    corpus = gpu_7b.make_corpus(4, BLOCK, 512)
    blocks = [gpu_7b.make_prepared(corpus, i, settings) for i in range(4)]
    assert any((b.plan.status == Status.INNER).any() for b in blocks) is not inside
    assert {len(b.target_ids) for b in blocks} == {BLOCK + 1}
    models = [gpu_7b.build("toy", bench.device, seed) for seed in (0, 1)]
    for model in models:
        model.set_attn_implementation("eager")
    labeller = Labeller(*models, settings, pad_id=0, bos_id=1)
    total, attention = counted(lambda: labeller.label(blocks))
    translated, original = BLOCK + 2, BLOCK + 1
    assert len(blocks[0].others) == dictionaries - 1
    tokens = 4 * (dictionaries * translated + (1 if inside else 2) * original)
    assert total - attention == bench._label_flops(blocks, labeller) - tokens * bench.needed.attention
