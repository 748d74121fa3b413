"""The real command line on two ranks: the labels of one process, its losses, and a rank killed with kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import toys
from tests.e2e.test_run import weights
from tests.e2e.tiny import Tiny

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "forgetkit")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "forgetkit")
TWO = ("--set", "world_size=2")
RUNS = 20
"""Times the toy text stands in the target: more than one label shard of 256 blocks."""


class Ranks(Tiny):
    """The tiny experiment with a target long enough for several label shards."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (self.target / "one.txt").write_text(toys.TEXT * RUNS)
        text = self.config.read_text().replace("block_tokens: 32", "block_tokens: 16")
        text = text.replace("batch_blocks: 2, accumulation: 1", "batch_blocks: 4, accumulation: 2")
        text = text.replace("checkpoint_steps: 2", "checkpoint_steps: 10")
        self.config.write_text(text.replace("finetune: {epochs: 2", "finetune: {epochs: 1"))

    def launch(self, launcher: tuple[str, ...], *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
        return subprocess.Popen(
            [sys.executable, *launcher, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.root,
        )

    def copy(self, name: str, *without: str) -> Path:
        """A copy of the two ranks' run with these stages missing."""
        shutil.copytree(self.out, self.root / name, ignore=shutil.ignore_patterns(*without, ".lock"))
        return self.root / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """A run that two ranks finished undisturbed."""
    tiny = Ranks(tmp_path_factory.mktemp("ranks"))
    process = tiny.launch(TORCHRUN, *tiny.arguments(), *TWO)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("report:") == 1  # rank 0 alone speaks
    assert err.count("5-unlearned: done") == 1
    return tiny


@pytest.fixture(scope="module")
def one(done: Ranks) -> Path:
    """The same run from the same reinforced model and dictionary, but labelled and fine-tuned by one process."""
    out = done.copy("one", "4-labels", "5-unlearned", "6-evaluation", "8-report")
    code, _, err = done.call(*done.arguments(out))
    assert code == 0, err
    assert "3-anchors: kept" in err
    assert "4-labels: done" in err
    return out


def test_two_ranks_write_the_labels_of_one_byte_for_byte(done: Ranks, one: Path) -> None:
    shards = list((done.out / "4-labels" / "target").glob("*.safetensors"))
    assert len(shards) > 1
    for path in sorted(p for p in (one / "4-labels").rglob("*") if p.is_file() and p.name != "MANIFEST.json"):
        other = done.out / "4-labels" / path.relative_to(one / "4-labels")
        assert other.read_bytes() == path.read_bytes(), path.name
    assert len(list((done.out / "4-labels").rglob("*"))) == len(list((one / "4-labels").rglob("*")))


@pytest.fixture(scope="module")
def sharded(done: Ranks) -> Path:
    """The same labels, and two ranks that fine-tune shards of the model (FSDP2)."""
    out = done.copy("sharded", "5-unlearned", "6-evaluation", "8-report")
    process = done.launch(TORCHRUN, *done.arguments(out), *TWO, "--set", "finetune.fsdp=true")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "4-labels: kept" in err
    return out


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_two_ranks_take_the_steps_of_one(done: Ranks, one: Path, sharded: Path, kind: str) -> None:
    both = done.out if kind == "copies" else sharded
    logs = [
        [json.loads(line) for line in (run / "5-unlearned" / "log.jsonl").read_text().splitlines()]
        for run in (both, one)
    ]
    assert len(logs[0]) == len(logs[1]) > 30
    for name, tolerance in (("lr", 0), ("loss", 1e-4), ("grad_norm", 1e-3)):
        two, single = ([row[name] for row in log] for log in logs)
        assert two == pytest.approx(single, rel=tolerance), name
    assert logs[1][-1]["loss"] != pytest.approx(logs[1][0]["loss"], rel=1e-2)  # something was trained at all
    models = [load_file(run / "5-unlearned" / "model" / "model.safetensors") for run in (both, one)]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        assert (tensor - models[1][name]).abs().max() < 1e-4, name


def _rank(launcher: int, number: int) -> int:
    """The process of a rank among the launcher's children."""
    for entry in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={number}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
            return int(entry)
    raise AssertionError(f"no rank {number}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank through /proc")
def test_kill_9_of_one_rank_ends_the_run_and_the_same_command_ends_with_the_same_bits(done: Ranks) -> None:
    out = done.copy("killed", "5-unlearned", "6-evaluation", "8-report")
    process = done.launch(TORCHRUN, *done.arguments(out), *TWO)
    deadline = time.monotonic() + 120
    while not list(out.glob(".work-5-unlearned-*/checkpoints/checkpoint-20/MANIFEST.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(_rank(process.pid, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "another process of this run has ended" in told[0]
    assert not (out / "5-unlearned").exists()
    (state,) = out.glob(".work-5-unlearned-*/checkpoints/checkpoint-20/trainer_state.json")
    before = json.loads(state.read_text())["log_history"]
    again = done.launch(TORCHRUN, *done.arguments(out), *TWO)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "4-labels: kept" in err
    assert weights(out) == weights(done.out)
    rows = [json.loads(line) for line in (out / "5-unlearned" / "log.jsonl").read_text().splitlines()]
    assert rows[:20] == before  # with the killed run's own seconds: these steps were not taken again
    assert len(rows) > 30
    assert not list(out.glob(".tmp-*")) + list(out.glob(".work-*"))


@pytest.mark.parametrize(
    ("world", "arguments"), [("2", ()), ("", TWO), ("3", TWO)], ids=["unasked", "alone", "another number"]
)
def test_world_size_mismatch(
    done: Ranks, monkeypatch: pytest.MonkeyPatch, world: str, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    code, out, err = done.call(*done.arguments(done.root / "none"), *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: world_size: world size mismatch: ")
    assert len(err.splitlines()) == 1
    assert not (done.root / "none").exists()


def test_accelerate_launch_on_a_cpu_starts_one_process_and_is_found_out(done: Ranks) -> None:
    """It is asked for two and says nothing; without the check the run would go on alone."""
    process = done.launch(ACCELERATE, *done.arguments(done.root / "none"), *TWO)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: world_size: world size mismatch: 2 asked for, but the launcher made this process alone" in err
    assert not (done.root / "none").exists()
