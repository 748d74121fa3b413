"""Speed and size of forgetkit against what a user would otherwise run (`make bench`).

python benchmarks/speed.py [--quick] [--rounds 5] [--points demo,head_heavy,small_vocab] [--sizes 10000,...]

Arms (benchmarks/speed_arms.py) run interleaved, each in a fresh process; O runs twice a round, and the ratio between
the two is the noise floor. Between rounds the machine's own matrix-product rate is measured. A full run is recorded in
docs/performance.json and docs/performance.md; `--page` writes the page again from the record.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "performance.json", ROOT / "docs" / "performance.md"
BLOCK, BLOCKS = 512, {"demo": 24, "head_heavy": 8, "small_vocab": 8}
ARMS = {
    "demo": ("O", "N", "W", "D", "A"),
    "head_heavy": ("O", "N", "A"),
    "small_vocab": ("O", "N", "A"),
}
"""A is O once more: the noise floor."""
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
TITLES = {
    "demo": "the demo model (10M parameters, V = 8,192, H = 320, 6 layers)",
    "head_heavy": "a head-heavy random model (V = 32,000, H = 256, 2 layers)",
    "small_vocab": "a small vocabulary (V = 1,000, H = 320, 6 layers)",
}
NAMES = {
    "N": "plain Hugging Face script, same dtype and batch",
    "D": "the same script at its defaults (fp32, batch 8)",
    "W": "MUSE-style wrapper, bf16",
    "A": "forgetkit again (noise floor)",
}
FASTER = ("label tokens/s", "training tokens/s", "end to end", "generation tokens/s")
SMALLER = ("peak memory", "memory above the start", "bytes on disk")
# ---- preparing ----


def prepare(name: str, folder: Path, blocks: int) -> None:
    """Write the point's model, texts, anchors and reinforced model; in a process of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from benchmarks.speed_arms import TRAIN
    from forgetkit import demo, reinforce
    from forgetkit.core.models import load_tokenizer
    from forgetkit.corpus.blocks import block_documents
    from forgetkit.corpus.readers import read_paths
    from forgetkit.settings import CorpusSettings, ModelSettings, ReinforceSettings

    document = read_paths(demo.target(), CorpusSettings())[0]
    shutil.rmtree(folder, ignore_errors=True)
    if name == "demo":
        shutil.copytree(demo.MODEL, folder / "model")
    else:
        torch.manual_seed(0)
        heavy = name == "head_heavy"
        config = LlamaConfig(
            vocab_size=32_000 if heavy else 1_000,
            hidden_size=256 if heavy else 320,
            intermediate_size=704 if heavy else 864,
            num_hidden_layers=2 if heavy else 6,
            num_attention_heads=4 if heavy else 5,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "model")
        if heavy:
            for path in demo.MODEL.glob("tokenizer*"):
                shutil.copy(path, folder / "model")
        else:
            bpe = Tokenizer(models.BPE())
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            bpe.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            bpe.train_from_iterator(
                [document.text],
                trainers.BpeTrainer(
                    vocab_size=1_000, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
                ),
            )
            PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>").save_pretrained(
                folder / "model"
            )
    tokenizer = load_tokenizer(folder / "model")
    whole = block_documents([document], tokenizer, BLOCK)
    text = document.text[: whole[blocks - 1].char_end]
    cut = dataclasses.replace(document, text=text, sha256=hashlib.sha256(text.encode()).hexdigest())
    corpus = block_documents([cut], tokenizer, BLOCK)
    corpus.save(folder / "corpus")
    shutil.copy(demo.anchors(), folder / "anchors.yaml")
    settings = ReinforceSettings(**TRAIN)
    cpu, work = ModelSettings(device="cpu"), folder / "work"
    reinforce.run(folder / "model", corpus, settings, cpu, folder / "reinforced", work=work, seed=0)


# ---- running ----


class Clock:
    """Lines that tell what runs and how long the rest will take, from what the like took before."""

    def __init__(self, jobs: list[str]) -> None:
        self.left, self.took, self.began = jobs, dict[str, list[float]](), time.monotonic()

    def run(self, job: str, command: list[str], log: Path) -> None:
        """Run one job, its output to `log`; shows the log's end where it fails."""
        self.left.remove(job)
        print(f"[{time.monotonic() - self.began:5.0f} s] {job}{self._rest(job)}", flush=True)
        began = time.monotonic()
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        with log.open("w") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        if done.returncode:
            sys.exit(f"{job} failed:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        self.took.setdefault(job, []).append(time.monotonic() - began)

    def _rest(self, job: str) -> str:
        known = [j for j in [job, *self.left] if j in self.took]
        if len(known) < len(self.left) / 2:
            return ""
        rest = sum(float(np.mean(self.took[j])) for j in known)
        return f" - about {rest / 60:.0f} min left"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every point, every round, every arm."""
    work: Path = arguments.work
    points = arguments.points.split(",")
    sizes = [int(s) for s in arguments.sizes.split(",") if s]
    once = [f"{p}: {what}" for p in points for what in ("prepare", "verify")]
    each = [f"{p}: {arm}" for p in points for arm in (*ARMS[p], "gemm")]
    clock = Clock([*once, *each * arguments.rounds, *[f"growth: {s:,} tokens" for s in sizes]])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def arm(job: str, what: str, point: str) -> dict[str, Any]:
        out = work / "now"
        shutil.rmtree(out, ignore_errors=True)
        script = [sys.executable, str(ROOT / "benchmarks" / "speed_arms.py")]
        clock.run(job, [*script, what, str(work / point), str(out), str(arguments.threads)], work / "log.txt")
        told: dict[str, Any] = json.loads((out / "result.json").read_text())
        if (out / "all_labels.npy").exists():
            told["labels"] = np.load(out / "all_labels.npy")
        return told

    data: dict[str, Any] = {"machine": machine(arguments.threads), "points": {}, "growth": []}
    for point in points:
        blocks = 8 if arguments.quick else BLOCKS[point]
        command = [sys.executable, __file__, "--prepare", point, "--blocks", str(blocks), "--work", str(work)]
        clock.run(f"{point}: prepare", command, work / "log.txt")
        data["points"][point] = {"verify": arm(f"{point}: verify", "verify", point), "rounds": []}
    for number in range(arguments.rounds):
        for point in points:
            row: dict[str, Any] = {"gemm": arm(f"{point}: gemm", "gemm", point)}
            # Every other round runs backwards, so that no arm always follows the same one.
            for name in ARMS[point][:: -1 if number % 2 else 1]:
                row[name] = arm(f"{point}: {name}", "O" if name == "A" else name, point)
            labels = {name: row[name].pop("labels") for name in ARMS[point]}
            row["agreement"] = {name: float(np.mean(labels[name] == labels["O"])) for name in labels}
            assert row["agreement"]["A"] == 1, "forgetkit's labels differ from one run to the next"
            data["points"][point]["rounds"].append(row)
        # What is measured so far, should the rest be interrupted.
        (work / "so-far.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    data["growth"] = [arm(f"growth: {s:,} tokens", f"growth-{s}", points[0]) for s in sizes]
    return data


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    from forgetkit.core.provenance import available_cores, versions

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": name,
        "cores": available_cores(),
        "threads": threads,
        "memory_gib": round(memory, 1),
        "versions": versions(),
    }


# ---- reading ----


def figures(row: dict[str, Any], name: str) -> dict[str, float]:
    """One arm's figures in one round."""
    told, seconds, gemm = row[name], row[name]["seconds"], row["gemm"]
    peak = gemm["fp32" if name == "D" else "bf16"]
    train = seconds["reinforce"] + seconds["finetune"]
    tokens, share = told["tokens"], told["labelled"] / told["tokens"]
    label_flops = 2 * tokens * (gemm["body"] + gemm["head"] * share)
    train_flops = 3 * tokens * (2 * gemm["body"] + gemm["head"] * (1 + share))
    return {
        "label tokens/s": tokens / seconds["label"],
        "training tokens/s": 2 * tokens / train,
        "end to end": sum(seconds.values()),
        "generation tokens/s": told["generation"],
        "peak memory": told["rss"] / 2**20,
        "memory above the start": (told["rss"] - told["rss_before"]) / 2**20,
        "bytes on disk": told["disk"] / 2**20,
        "labelling, share of matrix-product rate": label_flops / seconds["label"] / peak,
        "training, share of matrix-product rate": train_flops / train / peak,
    }


def interval(ratios: list[float], draws: int = 4000) -> tuple[float, float, float]:
    """Median and the 95% bootstrap interval of the median, over rounds."""
    drawn = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def table(point: dict[str, Any], arms: tuple[str, ...]) -> list[str]:
    """Two tables: what was measured (medians), and forgetkit's advantage (median ratio, interval)."""
    rounds = point["rounds"]
    told = {name: [figures(row, name) for row in rounds] for name in arms}
    units = {"end to end": " s", "peak memory": " MiB", "memory above the start": " MiB", "bytes on disk": " MiB"}
    lines = [f"| median of {len(rounds)} rounds | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
    for key in told["O"][0]:
        cells = []
        for name in arms:
            value = float(np.median([f[key] for f in told[name]]))
            cells.append(f"{value:.0%}" if "share" in key else f"{value:,.0f}{units.get(key, '')}")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    others = [name for name in arms if name != "O"]
    lines += ["", f"| forgetkit is better by | {' | '.join(NAMES[n] for n in others)} |"]
    lines.append("|---" * (len(others) + 1) + "|")
    for key in (*FASTER, *SMALLER):
        cells = []
        for name in others:
            middle, low, high = ratio(point, key, name)
            cells.append(f"**{middle:.2f}x** ({low:.2f} to {high:.2f})")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines


def ratio(point: dict[str, Any], key: str, other: str) -> tuple[float, float, float]:
    """How many times better forgetkit is than an arm: median over rounds and its interval."""
    pairs = [(figures(row, "O")[key], figures(row, other)[key]) for row in point["rounds"]]
    less = key in SMALLER or key == "end to end"
    return interval([b / a if less else a / b for a, b in pairs])


def goals(data: dict[str, Any]) -> list[str]:
    """What was to be reached on two CPU cores with the demo model; a ratio counts by the lower end of its interval."""
    point, rows = data["points"]["demo"], list[tuple[str, str, bool]]()
    for key, other, least in (
        ("end to end", "D", 3.0),
        ("end to end", "N", 1.5),
        ("label tokens/s", "D", 2.5),
        ("label tokens/s", "N", 2.5),
        ("peak memory", "D", 2.0),
        ("peak memory", "N", 2.0),
    ):
        middle, low, high = ratio(point, key, other)
        told = f"{middle:.2f}x ({low:.2f} to {high:.2f})"
        rows.append((f"{key}: at least {least:g} times better than {other}", told, low >= least))
    for what, least in (("labelling", 0.55), ("training", 0.45)):
        share = [figures(row, "O")[f"{what}, share of matrix-product rate"] for row in point["rounds"]]
        rows.append(
            (f"{what} at {least:.0%} of the matrix-product rate", f"{np.median(share):.0%}", np.median(share) >= least)
        )
    flat = [g["peak"] / 2**20 for g in data["growth"] if g["tokens"] >= 100_000]
    if len(flat) > 1:
        told = f"{min(flat):.0f} to {max(flat):.0f} MiB"
        rows.append(("memory flat from 100,000 to 10 million tokens (within 5%)", told, max(flat) <= 1.05 * min(flat)))
    return ["", "## Goals", "", "| goal | reached | met |", "|---|---|---|"] + [
        f"| {goal} | {told} | {'yes' if met else 'no'} |" for goal, told, met in rows
    ]


def page(data: dict[str, Any]) -> str:
    """docs/performance.md."""
    m = data["machine"]
    lines = [
        "# Speed and size, measured",
        "",
        "`make bench` made this page (`benchmarks/speed.py`; the record is `docs/performance.json`).",
        "Every ratio compares arms that ran side by side in one run, each in a fresh process; the interval is a 95%",
        "bootstrap of the median over rounds. A ratio counts where its interval lies beyond the noise floor's.",
        "",
        f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']} GiB; "
        + ", ".join(f"{k} {v}" for k, v in m["versions"].items()),
        "",
        f"**O** forgetkit. {' '.join(f'**{k}** {v}.' for k, v in NAMES.items())}",
        "Stage times hold loading and saving. Share of matrix-product rate: the FLOPs a stage needs (2 per weight and",
        "token, causal attention, no recomputation) over its time, against the model's own matrix products alone in",
        "the arm's dtype, measured between rounds.",
        "Peak memory is the process' largest resident size, libraries included; the start is after loading them.",
    ]
    for name, point in data["points"].items():
        first = point["rounds"][0]
        lines += ["", f"## {TITLES[name][0].upper() + TITLES[name][1:]}", ""]
        lines += table(point, ARMS[name])
        check, agree = point["verify"], first["agreement"]
        lines += [
            "",
            f"{first['O']['tokens']:,} tokens. In fp32, of {check['positions']:,} labels {check['ties_N']} differ from "
            f"N and {check['ties_W']} from W, all of them proven ties. In the arms' own dtype they agree with O's: "
            + ", ".join(f"{k} {v:.2%}" for k, v in agree.items() if k not in "OA")
            + ".",
        ]
    if data["growth"]:
        lines += ["", "## Growth: labelling synthetic text with a tiny model (V = 512)", ""]
        lines += ["| tokens | seconds | tokens/s | peak memory | label bytes per token |", "|---|---|---|---|---|"]
        lines += [
            f"| {g['tokens']:,} | {g['seconds']:.1f} | {g['tokens'] / g['seconds']:,.0f} | "
            f"{g['peak'] / 2**20:.0f} MiB | {g['bytes'] / g['tokens']:.1f} |"
            for g in data["growth"]
        ]
    lines += goals(data) if "demo" in data["points"] else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or write the page from the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", default=",".join(BLOCKS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="tokens of the growth runs; '' for none")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "speed")
    parser.add_argument("--quick", action="store_true", help="tiny, one round, not recorded: does it work at all")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md from docs/performance.json")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.work / arguments.prepare, arguments.blocks)
        return
    if arguments.page:
        PAGE.write_text(page(json.loads(RECORD.read_text())))
        return
    if arguments.quick:
        arguments.rounds, arguments.sizes = 1, "10000"
    data = measure(arguments)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if arguments.quick:
        (arguments.work / "performance.json").write_text(text)
        print(page(data))
        return
    RECORD.write_text(text)
    PAGE.write_text(page(data))
    print(f"wrote {RECORD} and {PAGE}")


if __name__ == "__main__":
    main()
