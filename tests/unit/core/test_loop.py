from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.batches import lm_loss, pad_blocks
from forgetkit.core.checkpoints import MANIFEST, newest_checkpoint
from forgetkit.core.errors import ForgetkitError, Interrupted
from forgetkit.core.loop import Loss, TrainResult, run_identity, train
from forgetkit.core.lora import attach
from forgetkit.settings import LoraSettings, TrainSettings
from tests import toys

Batch = dict[str, torch.Tensor]
BLOCKS = [np.random.default_rng(i).integers(1, 400, 6 + i % 5).astype(np.int32) for i in range(30)]
SETTINGS = TrainSettings(
    learning_rate=1e-3, warmup_steps=2, batch_blocks=2, accumulation=2, checkpoint_steps=2, schedule="cosine"
)  # 8 steps over BLOCKS, the last one with a single micro-batch
STEPS = 8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _collate(blocks: list[np.ndarray]) -> Batch:
    ids, valid = pad_blocks(blocks, 0)
    return {"input_ids": ids, "valid": valid}


def _train(
    folder: Path,
    model: PreTrainedModel,
    settings: TrainSettings = SETTINGS,
    blocks: Any = BLOCKS,
    **more: Any,
) -> TrainResult:
    arguments = {"collate": _collate, "loss": lm_loss, "seed": 3, "label": "test", **more}
    return train(model, blocks, arguments.pop("collate"), arguments.pop("loss"), settings, folder, **arguments)


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return toys.model("gpt2", dropout=0.1).to(dtype)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, list[torch.Tensor]]:
    torch.set_num_threads(1)
    result = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = _gpt2(dtype)
        _train(tmp_path_factory.mktemp("undisturbed"), model)
        result[dtype] = _weights(model)
    return result


# --- what is computed ---


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    blocks = [np.arange(1, n, dtype=np.int32) for n in (40, 35, 4, 5)]  # a mean of means would differ much
    one, two = toys.model("llama"), toys.model("llama")
    settings = TrainSettings(
        learning_rate=1e-3, warmup_steps=0, batch_blocks=4, accumulation=1, schedule="constant", clip_norm=0.5
    )
    big = _train(tmp_path / "a", one, settings, blocks)
    small = _train(tmp_path / "b", two, settings.model_copy(update={"batch_blocks": 2, "accumulation": 2}), blocks)
    plain = toys.model("llama")
    loss = lm_loss(plain, _collate(blocks))
    (loss.total / loss.count).backward()
    mean = (loss.total / loss.count).item()
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
    for result in (big, small):
        assert result.steps == 1
        assert result.log[0]["loss"] == pytest.approx(mean, rel=1e-5)
        assert result.log[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for p, q, start in zip(one.parameters(), two.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-5)
        assert not torch.equal(p, start)


def test_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"schedule": "linear", "weight_decay": 0.1})
    ours, hand = toys.model("llama"), toys.model("llama")
    result = _train(tmp_path, ours, settings)
    optimizer = torch.optim.AdamW(hand.parameters(), lr=1.0, weight_decay=0.1, fused=True)
    hand.train()
    for step in range(STEPS):
        rate = 1e-3 * (step / 2 if step < 2 else (STEPS - step) / (STEPS - 2))
        optimizer.param_groups[0]["lr"] = rate
        total, count = 0.0, 0
        for micro in range(0, 4, 2):
            blocks = BLOCKS[step * 4 + micro : step * 4 + micro + 2]
            if blocks:
                loss = lm_loss(hand, _collate(blocks))
                loss.total.backward()
                total, count = total + loss.total.item(), count + int(loss.count)
        gradients = [p.grad for p in hand.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, count)
        torch.nn.utils.clip_grad_norm_(hand.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert result.log[step]["lr"] == pytest.approx(rate)
        assert result.log[step]["loss"] == pytest.approx(total / count, rel=1e-4)
    for p, q in zip(ours.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_order_is_kept_and_nothing_is_left_out(tmp_path: Path) -> None:
    seen: list[int] = []

    def collate(blocks: list[int]) -> Batch:
        seen.extend(blocks)
        return _collate([BLOCKS[b] for b in blocks])

    order = [5, 3, 3, 29, 0, 7, 9]
    result = _train(tmp_path, toys.model("gpt2"), blocks=order, collate=collate)
    assert seen == order
    assert (result.steps, len(result.log)) == (2, 2)
    assert [row["step"] for row in result.log] == [1, 2]


def test_logs_of_the_loss_are_averaged(tmp_path: Path) -> None:
    values = iter([1.0, 3.0])

    def loss(model: PreTrainedModel, batch: Batch) -> Loss:
        return lm_loss(model, batch)._replace(logs={"forget": next(values)})

    result = _train(tmp_path, toys.model("gpt2"), blocks=BLOCKS[:4], loss=loss)
    assert result.log[0]["forget"] == 2.0
    assert result.log[0].keys() == {"step", "loss", "lr", "grad_norm", "seconds", "forget"}
    json.dumps(result.log, allow_nan=False)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedule(tmp_path: Path, schedule: str) -> None:
    result = _train(tmp_path, toys.model("gpt2"), SETTINGS.model_copy(update={"schedule": schedule}))
    rates = [row["lr"] / 1e-3 for row in result.log]
    after = [(s - 2) / (STEPS - 2) for s in range(2, STEPS)]
    expected = {
        "constant": [1.0 for _ in after],
        "linear": [1 - x for x in after],
        "cosine": [(1 + math.cos(math.pi * x)) / 2 for x in after],
    }
    assert rates == pytest.approx([0, 0.5, *expected[schedule]])


def test_bf16_model_ends_with_its_fp32_masters(undisturbed: dict[torch.dtype, list[torch.Tensor]]) -> None:
    weights = undisturbed[torch.bfloat16]
    assert {w.dtype for w in weights} == {torch.float32}
    matrices = [w for w in weights if w.ndim == 2 and len(w) != 256]  # most positions are never used
    assert all((w != w.bfloat16().float()).float().mean() > 0.5 for w in matrices)


def test_tied_weights_stay_tied_and_no_steps_is_no_change(tmp_path: Path) -> None:
    model = toys.model("llama").bfloat16()
    before = [w.float() for w in _weights(model)]
    result = _train(tmp_path / "none", model, blocks=[])
    assert (result.steps, result.log) == (0, [])
    assert _same(_weights(model), before)
    _train(tmp_path / "run", model, blocks=BLOCKS[:4], settings=SETTINGS.model_copy(update={"warmup_steps": 0}))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert not _same(_weights(model), before)


def test_it_does_not_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _train(tmp_path, toys.model("gpt2"), blocks=BLOCKS[:12])  # with a checkpoint
    output = capfd.readouterr()
    assert output.out == ""
    assert "train_runtime" not in output.err
    assert "shards" not in output.err


# --- P4: non-finite ---


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_p4_non_finite_stops_before_the_update(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model, calls, kept = _gpt2(dtype), 0, []

    def loss(net: PreTrainedModel, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        result = lm_loss(net, batch)
        if calls < 6:  # second micro-batch of step 3
            return result
        if kind == "loss":
            return result._replace(total=result.total * float("nan"))
        weight = next(net.parameters())
        return result._replace(total=result.total + (weight * 0.0).abs().sqrt().sum().float())

    with pytest.raises(ForgetkitError, match=f"non-finite {kind} at step 3.*learning rate"):
        _train(
            tmp_path,
            model,
            loss=loss,
            snapshot_steps=[2],
            on_snapshot=lambda _, net: kept.extend(_weights(net)),
        )
    assert _same(_weights(model), kept)
    last_good = newest_checkpoint(tmp_path, _identity(dtype))
    assert last_good is not None
    assert last_good.name == "checkpoint-2"


def _identity(dtype: torch.dtype) -> str:
    return run_identity(_gpt2(dtype), SETTINGS, len(BLOCKS), 3, "")


def test_a_micro_batch_without_positions_contributes_nothing(tmp_path: Path) -> None:
    def loss(net: PreTrainedModel, batch: Batch) -> Loss:
        if batch["input_ids"].shape[1] == 1:  # as a method might: no forward pass, no graph
            return Loss(torch.zeros(()), 0, {})
        return lm_loss(net, batch)

    single = SETTINGS.model_copy(update={"batch_blocks": 1, "warmup_steps": 0})
    empty = np.array([5], dtype=np.int32)
    for function in (loss, lm_loss):
        a, b, c = toys.model("gpt2"), toys.model("gpt2"), toys.model("gpt2")
        folder = tmp_path / function.__name__
        one = single.model_copy(update={"accumulation": 1})
        _train(folder / "alone", a, one, BLOCKS[:1], loss=function)
        _train(folder / "with", b, single, [BLOCKS[0], empty], loss=function)
        assert _same(_weights(a), _weights(b))
        result = _train(folder / "only", c, single, [empty, empty], loss=function)
        assert (result.log[0]["loss"], result.log[0]["grad_norm"]) == (0.0, 0.0)
        assert _same(_weights(c), _weights(toys.model("gpt2")))


# --- stopping and continuing ---


def _slow_loss(model: PreTrainedModel, batch: Batch) -> Loss:
    time.sleep(0.02)
    return lm_loss(model, batch)


def _child(folder: Path, dtype: torch.dtype) -> None:
    """A whole run in a process of its own; writes the final weights when it gets that far."""
    torch.set_num_threads(1)
    model = _gpt2(dtype)
    _train(folder / "work", model, loss=_slow_loss)
    torch.save(_weights(model), folder / "final.tmp")
    (folder / "final.tmp").rename(folder / "final.pt")


def _start(folder: Path, dtype: torch.dtype) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forgetkit.core.loop", "tests.toys"])
    process = context.Process(target=_child, args=(folder, dtype))
    process.start()
    return process


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kill_9_at_any_time_then_the_same_call(
    tmp_path: Path, dtype: torch.dtype, undisturbed: dict[torch.dtype, list[torch.Tensor]]
) -> None:
    work = tmp_path / "work"
    moments = [  # before any checkpoint; while one is being written; after one is valid; between two
        (work, 0.05),
        (work / "checkpoint-2", 0.0),
        (work / "checkpoint-4" / MANIFEST, 0.0),
        (work / "checkpoint-6" / MANIFEST, 0.06),
    ]
    for path, delay in moments:
        process = _start(tmp_path, dtype)
        while not path.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "final.pt").exists()
    process = _start(tmp_path, dtype)
    process.join()
    assert process.exitcode == 0
    assert _same(torch.load(tmp_path / "final.pt"), undisturbed[dtype])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_at_a_step_boundary_with_a_checkpoint(
    tmp_path: Path, number: int, undisturbed: dict[torch.dtype, list[torch.Tensor]]
) -> None:
    before = signal.getsignal(number)

    def interrupt(step: int, _: PreTrainedModel) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        _train(tmp_path, _gpt2(), snapshot_steps=[3], on_snapshot=interrupt)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoint-3" / MANIFEST).is_file()  # not a multiple of checkpoint_steps
    model = _gpt2()
    result = _train(tmp_path, model)
    assert [row["step"] for row in result.log] == list(range(1, STEPS + 1))
    assert _same(_weights(model), undisturbed[torch.float32])


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = _start(tmp_path, torch.float32)
    while not (tmp_path / "work" / "checkpoint-2").exists():
        time.sleep(0.001)
    while process.is_alive():  # far apart enough to be two deliveries, near enough to come within one step
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.003)
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    assert not (tmp_path / "final.pt").exists()


def _interrupt(step: int, model: PreTrainedModel) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_lora_continues_exactly(tmp_path: Path) -> None:
    def adapted() -> PreTrainedModel:
        return attach(_gpt2(torch.bfloat16), LoraSettings(rank=2), "student")

    one, two = adapted(), adapted()
    _train(tmp_path / "one", one)
    with pytest.raises(Interrupted):
        _train(
            tmp_path / "two",
            two,
            snapshot_steps=[5],
            on_snapshot=_interrupt,
        )
    again = adapted()
    _train(tmp_path / "two", again)
    assert _same(_weights(one), _weights(again))
    assert not _same(_weights(one), _weights(adapted()))


def test_snapshots_do_not_disturb_the_run(tmp_path: Path, undisturbed: dict[torch.dtype, list[torch.Tensor]]) -> None:
    steps: list[int] = []

    def snapshot(step: int, model: PreTrainedModel) -> None:
        steps.append(step)
        model.eval()
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        model(input_ids=torch.ones(1, 4, dtype=torch.long))

    model = _gpt2()
    _train(tmp_path, model, snapshot_steps=[1, 6, 8], on_snapshot=snapshot)
    assert steps == [1, 6, 8]
    assert _same(_weights(model), undisturbed[torch.float32])


def _stopped(folder: Path) -> None:
    """A run stopped at step 7: verified checkpoints 6 and 7."""
    with pytest.raises(Interrupted):
        _train(folder, _gpt2(), snapshot_steps=[7], on_snapshot=_interrupt)
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint-6",
        "checkpoint-7",
    ]  # the last two are kept


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit in the weights": lambda c: _flip_bit(c / "model.safetensors"),
    "flipped bit in the optimizer": lambda c: _flip_bit(c / "optimizer.pt"),
    "truncated": lambda c: os.truncate(c / "optimizer.pt", 100),
    "missing random state": lambda c: (c / "rng_state.pth").unlink(),
    "additional file": lambda c: (c / "model.bin").write_bytes(b""),
    "no manifest": lambda c: (c / MANIFEST).unlink(),
    "damaged manifest": lambda c: (c / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_set_aside(
    tmp_path: Path,
    damage: str,
    undisturbed: dict[torch.dtype, list[torch.Tensor]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _stopped(tmp_path)
    DAMAGE[damage](tmp_path / "checkpoint-7")
    (tmp_path / "checkpoint-99").mkdir()  # the empty folder that the Trainer's own search would prefer
    (tmp_path / ".old-checkpoint-4").mkdir()  # a removal that was cut short
    model = _gpt2()
    with caplog.at_level(logging.WARNING, "forgetkit"):
        _train(tmp_path, model)
    assert _same(_weights(model), undisturbed[torch.float32])
    names = {p.name for p in tmp_path.iterdir()}
    assert {".corrupt-checkpoint-7-0", ".corrupt-checkpoint-99-0"} <= names
    assert ".old-checkpoint-4" not in names
    assert "checkpoint-7 set aside" in caplog.text


def test_checkpoint_of_another_run_is_not_continued(tmp_path: Path) -> None:
    _stopped(tmp_path)
    fresh, model = _gpt2(), _gpt2()
    _train(tmp_path / "fresh", fresh, identity="other inputs")
    result = _train(tmp_path, model, identity="other inputs")
    assert len(result.log) == STEPS
    assert _same(_weights(model), _weights(fresh))
    assert (tmp_path / ".corrupt-checkpoint-7-0").is_dir()


def test_no_pickled_arguments_are_kept(tmp_path: Path) -> None:
    _stopped(tmp_path)
    assert not list(tmp_path.rglob("training_args.bin"))
    listed = json.loads((tmp_path / "checkpoint-7" / MANIFEST).read_text())["files"]
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= set(listed)
