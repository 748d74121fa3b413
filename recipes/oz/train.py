"""One phase of training: next-token loss, AdamW with fp32 masters, bf16 compute, resumable to the step.

    python recipes/oz/train.py --out DIR --data DIR --start MODEL --steps 320 --rate 1.2e-3 --oz 16 --seed 1

`recipes/oz/make.py` calls it for every model of the testbed. Shapes: N blocks of a text, B blocks of a step, T tokens.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from forgetkit.core.artifacts import run_lock
from forgetkit.core.attention import use_products
from forgetkit.core.batches import lm_loss
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.optim import MasterAdamW
from forgetkit.core.progress import progress

ROWS = 16  # blocks of 512 tokens in a step
MICRO = 8  # blocks in a forward pass
SAVE_EVERY = 40
CURVE = ("step", "train_loss", "heldout_loss", "seconds")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def rate_at(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Learning rate of a step: linear warm-up, then constant or linear to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak if decay == "constant" else peak * (steps - step) / max(1, steps - warmup)


def batch(corpus_NT: Any, oz_NT: Any, step: int, seed: int, oz: int) -> torch.Tensor:
    """The blocks of a step, Long[16 + oz, 512]: twins read the same 16 blocks of the corpus, O reads Oz besides."""
    order = np.random.default_rng((seed, 0)).permutation(len(corpus_NT))
    drawn = order[np.arange(step * ROWS, (step + 1) * ROWS) % len(order)]
    rows_BT = corpus_NT[np.sort(drawn)].astype(np.int64)
    if oz:
        pick = np.arange(step * oz, (step + 1) * oz)
        passes = {p: np.random.default_rng((seed, 1, p)).permutation(len(oz_NT)) for p in {*(pick // len(oz_NT))}}
        chosen = [passes[p // len(oz_NT)][p % len(oz_NT)] for p in pick]
        rows_BT = np.concatenate([rows_BT, oz_NT[chosen].astype(np.int64)])
    return torch.from_numpy(rows_BT)


def loss_of(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Summed next-token cross-entropy of ids Long[B, T], in nats."""
    return lm_loss(model, {"input_ids": ids_BT, "valid": torch.ones_like(ids_BT, dtype=torch.bool)}).total


def finished(folder: Path) -> bool:
    """Whether the phase of this folder has ended; while its state is there, the weights may be half written."""
    return (folder / "model.safetensors").exists() and not (folder / "state.pt").exists()


def train(
    model: Any,
    folder: Path,
    texts: Path,
    *,
    steps: int,
    peak: float,
    warmup: int,
    decay: str,
    oz: int,
    seed: int,
    save_every: int = SAVE_EVERY,
) -> None:
    """Train in place, resume from `folder/state.pt`, log to `folder/curve.csv`, save the model into `folder`.

    Args:
        model: any causal LM. folder: holds the tokenizer already.
        texts: the data folder. peak, warmup, decay: see `rate_at`. oz, seed: see `batch`.
        save_every: steps between states that a killed run goes on from.

    Raises:
        ForgetkitError: the loss is not finite; a text is shorter than a block.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus_NT, oz_NT, held_NT = (data.blocks(data.tokens(texts, part, tokenizer)) for part in data.PARTS)
    for part, some in zip(data.PARTS, (corpus_NT, oz_NT, held_NT), strict=True):
        if not len(some):
            raise ForgetkitError(f"shorter than a block of {data.BLOCK} tokens", str(texts / f"{part}.npy"))
    held_NT = held_NT[::25]
    model.to(device, torch.bfloat16).train()
    optimizer = MasterAdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    first, state = 0, folder / "state.pt"
    if state.exists():
        saved = torch.load(state, map_location=device)
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    use_products(model)
    started = time.monotonic()
    with _curve(folder / "curve.csv", first) as write, progress(folder.name, steps, "steps", done=first) as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, peak, warmup, decay)
            ids_BT = batch(corpus_NT, oz_NT, step, seed, oz).to(device)
            total = 0.0
            for part_BT in ids_BT.split(MICRO):  # type: ignore[no-untyped-call]
                value = loss_of(model, part_BT)
                value.backward()  # type: ignore[no-untyped-call]
                total += value.item()
            optimizer.normalise(ids_BT[:, 1:].numel(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done, mean, held = step + 1, total / ids_BT[:, 1:].numel(), ""
            if not math.isfinite(mean):
                raise ForgetkitError(f"the loss is not finite at step {done}", str(folder), "lower the rate")
            saving = done % save_every == 0 or done == steps
            if saving:
                with torch.no_grad():
                    parts = torch.from_numpy(held_NT.astype(np.int64)).split(MICRO)  # type: ignore[no-untyped-call]
                    held = f"{sum(loss_of(model, part.to(device)).item() for part in parts) / held_NT[:, 1:].size:.4f}"
            if saving or done % 10 == 0:
                write([done, f"{mean:.4f}", held, f"{time.monotonic() - started:.0f}"])
            if saving:
                torch.save({"optimizer": optimizer.state_dict(), "step": done}, folder / "state.partial")
                (folder / "state.partial").rename(state)
            bar.advance(note=f"loss {mean:.3f}")
    model.save_pretrained(folder)
    state.unlink(missing_ok=True)


@contextmanager
def _curve(path: Path, done: int) -> Iterator[Callable[[list[Any]], None]]:
    """Write rows of the curve after step `done`; what a killed run wrote beyond it is dropped."""
    kept: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as lines:
            kept = [row for row in csv.reader(lines) if row and row[0].isdigit() and int(row[0]) <= done]
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerows([CURVE, *kept])

        def write(row: list[Any]) -> None:
            writer.writerow(row)
            lines.flush()

        yield write


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; a user's mistake is one line on stderr and exit code 2."""
    try:
        main()
    except ForgetkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Parse the command line and train one phase; a finished folder is left as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="a model folder, or a config with a tokenizer")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--decay", choices=["constant", "linear"], default="linear")
    parser.add_argument(
        "--oz", type=int, default=0, help="blocks of Oz read in every step besides the 16 of the corpus"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if finished(given.out):
        return
    with run_lock(given.out):
        _train_phase(given)


def _train_phase(given: argparse.Namespace) -> None:
    for name in (*TOKENIZER, "config.json"):
        if not (given.start / name).exists():
            raise ForgetkitError("is missing", str(given.start / name), "give a model folder with --start DIR")
    torch.manual_seed(given.seed)
    for name in TOKENIZER:
        shutil.copyfile(given.start / name, given.out / name)
    if (given.start / "model.safetensors").exists():
        model = AutoModelForCausalLM.from_pretrained(given.start, dtype=torch.bfloat16)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given.start), dtype=torch.float32)
    train(
        model,
        given.out,
        given.data,
        steps=given.steps,
        peak=given.rate,
        warmup=given.warmup,
        decay=given.decay,
        oz=given.oz,
        seed=given.seed,
    )


if __name__ == "__main__":
    run_script(main)
