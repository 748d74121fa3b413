"""Who takes what among ranks, what is refused, and two real processes over gloo (tests/unit/core/ranks.py)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetkit.core import distributed
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.sharded import check_shards
from forgetkit.settings import TrainSettings
from tests.unit.core import ranks

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


# --- dealing out ---


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 100))
def test_the_ranks_batches_are_the_steps_of_one_process(batch: int, accumulation: int, count: int, n: int) -> None:
    step = batch * accumulation
    if step % count:
        with pytest.raises(ForgetkitError, match="cannot be dealt out"):
            distributed.micro_batch(batch, accumulation, count)
        return
    size, each = distributed.micro_batch(batch, accumulation, count)
    assert size <= batch
    assert size * each * count == step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "world", lambda: count)
        dealt = []
        for rank in range(count):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            dealt.append(distributed.batches(n, batch, accumulation))
    steps = -(-n // step)
    assert {len(d) for d in dealt} == {steps * each}
    assert all(len(b) <= size for d in dealt for b in d)
    for s in range(steps):
        taken = [i for d in dealt for b in d[s * each : (s + 1) * each] for i in b]
        assert taken == list(range(s * step, min((s + 1) * step, n)))


def test_alone_the_batches_are_the_plain_ones() -> None:
    assert distributed.micro_batch(4, 2, 1) == (4, 2)
    assert distributed.batches(9, 4, 2) == [[0, 1, 2, 3], [4, 5, 6, 7], [8], []]
    assert list(distributed.share(3)) == [0, 1, 2]


# --- what is refused ---


def test_a_world_that_was_not_asked_for(launched: pytest.MonkeyPatch) -> None:
    with pytest.raises(ForgetkitError, match=r"1 asked for, but the launcher made 2 processes.*--set world_size=2"):
        distributed.check_world(1)
    with pytest.raises(ForgetkitError, match="8 asked for, but the launcher made 2 processes"):
        distributed.check_world(8)
    distributed.check_world(2)
    with pytest.raises(ForgetkitError, match="evaluate runs in one process"):
        distributed.alone("evaluate", 2)


def test_a_process_that_believes_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ForgetkitError, match=r"2 asked for.*this process alone.*torchrun --nproc-per-node 2"):
        distributed.check_world(2)
    distributed.check_world(1)


def test_a_launcher_that_tells_too_little(launched: pytest.MonkeyPatch) -> None:
    launched.delenv("MASTER_PORT")
    with pytest.raises(ForgetkitError, match="did not set MASTER_PORT"):
        distributed.check_world(2)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_engines_that_accelerate_would_switch_on(launched: pytest.MonkeyPatch, variable: str) -> None:
    launched.setenv(variable, "true")
    with pytest.raises(ForgetkitError, match="not supported"):
        distributed.check_world(2)


def test_autocast_from_outside(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ForgetkitError, match="autocast"):
        distributed.check_world(2)


def test_ranks_that_do_not_meet(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("RANK", "1")  # nobody listens on port 1
    launched.setattr(distributed, "MEETING", timedelta(seconds=1))
    with pytest.raises(ForgetkitError, match=r"the 2 processes did not meet at 127\.0\.0\.1:1"):
        distributed.join(2, "cpu", "")
    assert distributed.world() == 1


# --- two processes ---


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What rank 0 and rank 1 told of `ranks.py`."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    script = [str(Path(ranks.__file__)), str(folder)]
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"ranks-{i}.json").read_text()) for i in (0, 1))
    return first, second


def test_what_ranks_say_to_each_other(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for told in two:
        assert told["gather"] == [0, 10]
        assert told["broadcast"] == "from 0"
    assert [told["share"] for told in two] == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "lora", "float32-sharded", "bfloat16-sharded"])
def test_two_ranks_train_as_one_process(two: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, kind: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = kind.removesuffix("-sharded")
    one = ranks.trajectory(tmp_path, plain)
    torch.set_num_threads(before)
    assert two[0][kind] == two[1][kind]  # replicas, or the same shards gathered: the same bits
    # bf16 rounds a block's gradient differently beside another block
    tolerance = 1e-2 if plain == "bfloat16" else 1e-5
    assert len(one["loss"]) == 8
    assert two[0][kind]["loss"] == pytest.approx(one["loss"], rel=tolerance)
    assert two[0][kind]["norm"] == pytest.approx(one["norm"], rel=10 * tolerance)
    assert two[0][kind]["sum"] == pytest.approx(one["sum"], rel=tolerance)
    start = [p.detach().double().flatten()[:5].tolist() for p in ranks.model(plain).parameters() if p.requires_grad]
    assert two[0][kind]["weights"] != start


def test_gradients_that_not_every_rank_has(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for told in two:
        for both, second, none in told["uneven"]:
            assert both == pytest.approx(0.1 * (1 + 2))  # the first moment after one step is a tenth of the gradient
            assert second == pytest.approx(0.1 * 5)
            assert math.isnan(none)


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert two[0]["broken"] == two[1]["broken"]
    assert "non-finite loss at step 1" in two[0]["broken"]


def test_a_signal_to_one_rank_stops_both_and_they_continue_exactly(
    two: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    for told in two:
        assert told["stopped"] == 15
        assert told["continued"] == told["float32"]
        assert "checkpoint-6" in told["checkpoints"]


def test_shards_are_saved_by_their_ranks_and_continued_exactly(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for told in two:
        sharded = told["sharded"]
        assert sharded["stopped"] == 15
        assert {
            f"checkpoint-3/{name}" for name in ("rank-0/optimizer.pt", "rank-1/optimizer.pt", "MANIFEST.json")
        } <= set(sharded["files"])
        assert not [name for name in sharded["files"] if name.endswith(".safetensors")]
        assert sharded["continued"] == told["float32-sharded"]


def test_shards_and_recomputed_activations_go_together(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for told in two:
        assert told["recomputed"] == told["bfloat16-sharded"]


def test_shards_hold_half_of_every_weight_and_moment(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    whole = sum(p.numel() for p in ranks.model("float32").parameters())
    assert [told["held"]["weights"] for told in two] == [whole // 2, whole - whole // 2]
    assert [told["held"]["moments"] for told in two] == [2 * told["held"]["weights"] for told in two]


@pytest.mark.parametrize(
    ("more", "count", "message"),
    [
        ({}, 1, "one process has nobody to share the weights with"),
        ({"adapter": "lora"}, 2, "adapters are trained without shards"),
        ({"optimizer": "adamw_8bit"}, 2, "shards are trained by adamw"),
    ],
)
def test_shards_that_cannot_be(more: dict[str, Any], count: int, message: str) -> None:
    with pytest.raises(ForgetkitError, match=f"{message}.*finetune.fsdp|finetune.fsdp.*{message}"):
        check_shards(TrainSettings(fsdp=True, **more), count, "finetune")
    check_shards(TrainSettings(fsdp=True), 2, "finetune")
    check_shards(TrainSettings(**more), 1, "finetune")


def test_a_rank_that_ends_ends_the_others_and_one_alone_tells(two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert "another process of this run has ended" in two[0]["lost"]
    assert [told["tells"] for told in two] == [False, True]
