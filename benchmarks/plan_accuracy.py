"""How near `forgetkit plan` comes: plans of three sizes of model beside what the runs then took.

python benchmarks/plan_accuracy.py [--quick] [--clock wall|cpu] [--rounds 3] [--out docs/plan_accuracy.json]

Every plan and every run is a process of its own. A plan is made before and after each run, and the two are averaged, so
that a machine that slows down meanwhile is seen by both; `spread` tells how far the two lie apart. Peak memory is the
kernel's (VmHWM, reset between the stages). With `--clock cpu` both sides count this process's own processor time, which
is the clock to use while other programs run; it needs one thread, and is no user's time where the disk is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, int]] = {
    "1M": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 3},
    "4M": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3},
    "demo": {},
}
"""Llama shapes with the bundled tokenizer; 'demo' is the bundled model itself."""
CHARACTERS = {"1M": (120_000, 120_000), "4M": (80_000, 80_000), "demo": (40_000, 40_000)}
"""Characters of target and retain text: runs of about half a minute."""
QUICK = 3
"""--quick divides the texts by this, and takes one round."""
TOLERANCE = 0.25
COMPARED = ("2-reinforced", "3-anchors", "4-labels", "5-unlearned", "6-evaluation")


def prepare(name: str, folder: Path, share: int) -> None:
    """Write model and texts."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from forgetkit import demo

    shutil.rmtree(folder, ignore_errors=True)
    if name == "demo":
        shutil.copytree(demo.MODEL, folder / "model")
    else:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8192, max_position_embeddings=1024, tie_word_embeddings=True,
            pad_token_id=0, bos_token_id=0, eos_token_id=0, **SIZES[name],
        )  # fmt: skip
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
        for path in demo.MODEL.glob("tokenizer*"):
            shutil.copy(path, folder / "model")
    target, retain = (count // share for count in CHARACTERS[name])
    text = "".join(path.read_text() for path in sorted(demo.TARGET.iterdir()))
    (folder / "target.txt").write_text(text[5000 : 5000 + target])
    (folder / "retain").mkdir()
    for path in sorted(demo.RETAIN.iterdir())[:4]:
        (folder / "retain" / path.name).write_text(path.read_text()[: retain // 4])


def _inputs(folder: Path, threads: int) -> tuple[Any, Any]:
    from forgetkit.core.config import settings_from
    from forgetkit.pipeline import Inputs

    settings = settings_from(
        {"threads": threads, "model": {"device": "cpu"}, "finetune": {"snapshots": 1}, "anchors": {"min_score": 3.0}}
    )
    return Inputs(str(folder / "model"), (folder / "target.txt",), (folder / "retain",)), settings


def plan(folder: Path, out: Path, threads: int, clock: str) -> None:
    """Make the plan and write it to `out`."""
    from forgetkit import pipeline

    inputs, settings = _inputs(folder, threads)
    began = time.perf_counter()
    made = pipeline.plan(inputs, settings, time.process_time if clock == "cpu" else time.perf_counter)
    out.write_text(json.dumps(made | {"planning_seconds": time.perf_counter() - began}))


def peak(reset: bool = False) -> int:
    """Largest resident size of this process in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run(folder: Path, out: Path, threads: int, clock: str) -> None:
    """Run the pipeline; write seconds and peak memory of every stage to `out`."""
    import shutil

    from forgetkit import pipeline

    inputs, settings = _inputs(folder, threads)
    now = time.process_time if clock == "cpu" else time.perf_counter
    told: dict[str, dict[str, float]] = {}
    began = 0.0

    def on_event(event: pipeline.Event) -> None:
        nonlocal began
        if event.what == "begins":
            peak(reset=True)
            began = now()
        else:
            told[event.stage] = {"seconds": now() - began, "memory_bytes": peak()}

    shutil.rmtree(folder / "run", ignore_errors=True)
    pipeline.run(inputs, settings, folder / "run", on_event=on_event)
    out.write_text(json.dumps(told))


def call(what: str, name: str, folder: Path, out: Path, arguments: argparse.Namespace) -> Any:
    """One of the above in a process of its own; its answer."""
    share = QUICK if arguments.quick else 1
    command = [sys.executable, __file__, "--do", what, "--name", name, "--folder", str(folder), "--answer", str(out)]
    command += ["--threads", str(arguments.threads), "--clock", arguments.clock, "--share", str(share)]
    environment = {
        **os.environ,
        "FORGETKIT_QUIET": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{what} {name} failed:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text()) if what != "prepare" else None


def compare(plans: list[dict[str, Any]], measured: dict[str, Any]) -> dict[str, Any]:
    """Predicted and measured seconds and bytes of each stage and of the whole."""
    rows: dict[str, Any] = {}
    stages = [{row["stage"]: row for row in made["stages"]} for made in plans]
    withheld = [made["time_withheld"] for made in plans if made["time_withheld"]]
    told = [by_stage for by_stage, made in zip(stages, plans, strict=True) if not made["time_withheld"]]
    for name in measured:
        memory = max(by_stage[name]["memory_bytes"] for by_stage in stages)
        row = {"measured_seconds": measured[name]["seconds"], "measured_bytes": measured[name]["memory_bytes"]}
        row |= {"predicted_bytes": memory, "memory_ratio": memory / measured[name]["memory_bytes"]}
        if told:
            each = [by_stage[name]["seconds"] for by_stage in told]
            predicted = sum(each) / len(each)
            row |= {
                "predicted_seconds": predicted,
                "time_ratio": predicted / measured[name]["seconds"],
                "spread": (max(each) - min(each)) / predicted,
            }
        rows[name] = row
    whole = {
        "measured_seconds": sum(r["measured_seconds"] for r in rows.values()),
        "measured_bytes": max(r["measured_bytes"] for r in rows.values()),
        "predicted_bytes": max(r["predicted_bytes"] for r in rows.values()),
    }
    whole["memory_ratio"] = whole["predicted_bytes"] / whole["measured_bytes"]
    if told:
        whole["predicted_seconds"] = sum(r["predicted_seconds"] for r in rows.values())
        whole["time_ratio"] = whole["predicted_seconds"] / whole["measured_seconds"]
    return {
        "stages": rows,
        "whole": whole,
        "withheld": withheld,
        "planning_seconds": [made["planning_seconds"] for made in plans],
    }


def table(name: str, told: dict[str, Any]) -> list[str]:
    """One size's comparison as lines."""
    lines = [f"{name}: plans took {', '.join(f'{s:.1f} s' for s in told['planning_seconds'])}"]
    for stage, row in [*told["stages"].items(), ("the whole", told["whole"])]:
        seconds = "time withheld"
        if "time_ratio" in row:
            apart = f"  plans {row['spread']:.0%} apart" if "spread" in row else ""
            seconds = f"{row['predicted_seconds']:6.1f} s of {row['measured_seconds']:6.1f} s = {row['time_ratio']:.2f}"
            seconds += apart
        size = f"{row['predicted_bytes'] / 1e9:.2f} GB of {row['measured_bytes'] / 1e9:.2f} GB"
        lines.append(f"  {stage:13} memory {size} = {row['memory_ratio']:.2f}   time {seconds}")
    return lines + [f"  {reason}" for reason in told["withheld"]]


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--work", type=Path, default=Path("runs/plan_accuracy"))
    parser.add_argument("--out", type=Path)
    for hidden in ("--do", "--name", "--folder", "--answer", "--share"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do == "prepare":
        prepare(arguments.name, Path(arguments.folder), int(arguments.share))
    elif arguments.do:
        work = {"plan": plan, "run": run}[arguments.do]
        work(Path(arguments.folder), Path(arguments.answer), arguments.threads, arguments.clock)
    else:
        _all(arguments)


def _all(arguments: argparse.Namespace) -> None:
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rounds = 1 if arguments.quick else arguments.rounds
    record: dict[str, Any] = {"clock": arguments.clock, "threads": arguments.threads, "quick": arguments.quick}
    record["sizes"] = {}
    for name in arguments.sizes.split(","):
        folder, answer = work / name, work / "answer.json"
        call("prepare", name, folder, answer, arguments)
        found = []
        for _ in range(rounds):
            before = call("plan", name, folder, answer, arguments)
            measured = call("run", name, folder, answer, arguments)
            found.append(compare([before, call("plan", name, folder, answer, arguments)], measured))
            print("\n".join(table(name, found[-1])), flush=True)
        record["sizes"][name] = {"parameters": before["parameters"], "rounds": found}
    wholes = [one["whole"] for size in record["sizes"].values() for one in size["rounds"]]
    for what in ("time_ratio", "memory_ratio"):
        ratios = [whole[what] for whole in wholes if what in whole]
        within = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
        record[f"{what}_within"] = [within, len(ratios)]
        print(f"{what.replace('_', ' ')} of the whole within {TOLERANCE:.0%}: {within} of {len(ratios)}")
    out = arguments.out or work / "accuracy.json"
    out.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"recorded in {out}")


if __name__ == "__main__":
    main()
