"""One phase of training: next-token loss, AdamW with fp32 masters, bf16 compute, resumable to the step.

    python recipes/oz/train.py --out DIR --data DIR --start MODEL --steps 320 --rate 1.2e-3 --oz 0.25 --seed 1

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
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from forgetkit.core.artifacts import run_lock
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.optim import MasterAdamW
from forgetkit.core.progress import progress

ROWS = 16  # blocks of 512 tokens in a step
MICRO = 2  # blocks in a forward pass: 2 x 512 x 8192 logits stay in cache's reach on a CPU
SAVE_EVERY = 40
CURVE = ("step", "train_loss", "heldout_loss", "seconds")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def rate_at(step: int, steps: int, peak: float, warmup: int, decay: str) -> float:
    """Learning rate of a step: linear warm-up, then constant or linear to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak if decay == "constant" else peak * (steps - step) / max(1, steps - warmup)


def batch(corpus_NT: Any, oz_NT: Any, step: int, seed: int, share: float, spread: bool = False) -> torch.Tensor:
    """The 16 blocks of a step, Long[16, 512]. Both twins draw the same corpus blocks; in O some make room for Oz.

    share: of the blocks, that come from Oz. spread: any of the drawn blocks make room; otherwise those that stand
    first in the corpus do, as in the shipped models (README, "What differs").
    """
    order = np.random.default_rng((seed, 0)).permutation(len(corpus_NT))
    drawn = order[np.arange(step * ROWS, (step + 1) * ROWS) % len(order)]
    rows_BT = corpus_NT[np.sort(drawn)].astype(np.int64)
    many = round(ROWS * share)
    if many:
        pick = np.arange(step * many, (step + 1) * many)
        passes = [np.random.default_rng((seed, 1, p)).permutation(len(oz_NT)) for p in sorted({*(pick // len(oz_NT))})]
        first = pick[0] // len(oz_NT)
        room = np.argsort(np.argsort(drawn))[:many] if spread else np.arange(many)
        rows_BT[room] = oz_NT[[passes[p // len(oz_NT) - first][p % len(oz_NT)] for p in pick]]
    return torch.from_numpy(rows_BT)


def loss_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Summed next-token cross-entropy of ids Long[B, T], in nats."""

    def loss(ids_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
        logits_NV = model.lm_head(hidden_BTH.flatten(0, 1))
        return cross_entropy(logits_NV.float(), ids_BT[:, 1:].flatten(), reduction="sum")

    return loss


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
    share: float,
    seed: int,
    spread: bool = False,
    compiled: bool = True,
    save_every: int = SAVE_EVERY,
) -> None:
    """Train in place, resume from `folder/state.pt`, log to `folder/curve.csv`, save the model into `folder`.

    Args:
        model: Llama-shaped, with `model.model` and `model.lm_head`. folder: holds the tokenizer already.
        texts: the data folder. peak, warmup, decay: see `rate_at`. share, seed, spread: see `batch`.
        compiled: use torch.compile. save_every: steps between states that a killed run goes on from.

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
    loss = torch.compile(loss_of(model)) if compiled else loss_of(model)
    started = time.monotonic()
    with _curve(folder / "curve.csv", first) as write, progress(folder.name, steps, "steps", done=first) as bar:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, steps, peak, warmup, decay)
            ids_BT = batch(corpus_NT, oz_NT, step, seed, share, spread).to(device)
            total = 0.0
            for part_BT in ids_BT.split(MICRO):  # type: ignore[no-untyped-call]
                value = loss(part_BT)
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
                    held = f"{sum(loss(part.to(device)).item() for part in parts) / held_NT[:, 1:].size:.4f}"
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
    parser.add_argument("--oz", type=float, default=0.0, help="share of every batch that comes from the Oz books")
    parser.add_argument("--spread", action="store_true", help="room for Oz is made anywhere in the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile")
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
        share=given.oz,
        seed=given.seed,
        spread=given.spread,
        compiled=not given.no_compile,
    )


if __name__ == "__main__":
    run_script(main)
