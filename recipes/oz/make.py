"""Make the Oz testbed: train every model and measure every seed, in one command that can be stopped and run again.

    python recipes/oz/make.py --texts DIR --out DIR [--start DIR] [--only STAGE...]

texts      copy the texts into OUT/data
tokenizer  tokenizer and configuration in OUT/init, the tokens of every text beside the texts
trunk      what O and R share; it never sees Oz (OUT/models/trunk); with --start it goes on from an earlier model
last       O and R, three seeds of each (o1 r1 o2 r2 o3 r3)
scratch    O and R without a shared trunk, and a second such R (scratch-o4 scratch-r4 scratch-r5)
ship       put o1 and r1 into the package
probes     mark the cloze items: known to O of seed 2, answered by R of seed 1
measure    the other seeds' values into the package (seeds.json, seed_positions_*.npz)

What is finished is skipped; a model that was interrupted goes on from its last saved step. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import data
import torch
import train
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from forgetkit import demo
from forgetkit.bench import oz
from forgetkit.core.artifacts import run_lock
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import load_model, load_tokenizer
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.cloze import measure_cloze
from forgetkit.evaluate.probes import CLOZE, Cloze, load_probes
from forgetkit.evaluate.retraining import collect_seeds
from forgetkit.settings import EvaluateSettings, Settings

STAGES = ("texts", "tokenizer", "trunk", "last", "scratch", "ship", "probes", "measure")
COMMAND = "python recipes/oz/make.py --texts DIR --out DIR"
SHIPPED = ("config.json", "generation_config.json", *train.TOKENIZER, "model.safetensors")
FIRST_GIVEN = "oz-retrained"
OTHER_RETRAINED, OTHER_BASES = ("r2", "r3"), ("o2", "o3")


@dataclass(frozen=True)
class Phase:
    """One call of train.py. start: the model it goes on from (init: random weights); oz: blocks besides the 16."""

    name: str
    start: str
    steps: int
    rate: float
    warmup: int
    decay: str
    oz: int
    seed: int


FIRST = (
    Phase("first-begun", "init", 1461, 2e-3, 100, "constant", 0, 11),
    Phase("first", "first-begun", 779, 1.5e-3, 30, "linear", 0, 12),
)
TRUNK = Phase("trunk", "first", 2530, 1.5e-3, 30, "constant", 0, 13)
LAST = tuple(
    Phase(f"{letter}{seed}", "trunk", 320, 1.5e-3, 30, "linear", oz, seed)
    for seed in (1, 2, 3)
    for letter, oz in (("o", 16), ("r", 0))
)


def scratch(steps: int) -> tuple[Phase, ...]:
    """Twins from random weights (seed 4), and another R (seed 5): what luck is without a shared trunk."""
    return (
        Phase("scratch-o4", "init", steps, 2e-3, 100, "linear", 16, 4),
        Phase("scratch-r4", "init", steps, 2e-3, 100, "linear", 0, 4),
        Phase("scratch-r5", "init", steps, 2e-3, 100, "linear", 0, 5),
    )


def configuration(vocabulary: int = data.VOCABULARY) -> LlamaConfig:
    """The shape of every model here: 10.06M parameters at 8,192 vocabulary entries."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=320,
        intermediate_size=864,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


@dataclass(frozen=True)
class Recipe:
    """Where everything lies. start: folder of the first models, whose R the trunk goes on from, or None to make it."""

    out: Path
    texts: Path | None = None
    start: Path | None = None
    jobs: int = 1

    @property
    def data(self) -> Path:
        """The recipe's own copy of the texts, and their tokens."""
        return self.out / "data"

    def model(self, name: str) -> Path:
        """The folder of a model, of the first model given with --start, or of the configuration ('init')."""
        if name == "init":
            return self.out / "init"
        if name == "first" and self.start is not None:
            return self.start / FIRST_GIVEN
        return self.out / "models" / name

    def need(self, name: str, stage: str) -> Path:
        """The folder of a finished model.

        Raises:
            ForgetkitError: which file is missing, and the command that makes it.
        """
        folder = self.model(name)
        if name == "first" and self.start is not None:
            if not (folder / "model.safetensors").exists():
                remedy = "give the folder of the first models with --start, or leave --start out for random weights"
                raise ForgetkitError("is missing", str(folder / "model.safetensors"), remedy)
        elif not train.finished(folder):
            remedy = f"make it with: {COMMAND} --only {stage}"
            raise ForgetkitError("is missing", str(folder / "model.safetensors"), remedy)
        return folder


def tell(line: str) -> None:
    """One line of progress."""
    print(f"make.py: {line}", file=sys.stderr, flush=True)


def make_init(recipe: Recipe) -> None:
    """Tokenizer and configuration (the first models' own, where they are given), then the tokens of all texts.

    Raises:
        ForgetkitError: OUT was begun with another tokenizer.
    """
    init, given = recipe.model("init"), None
    if recipe.start is not None:
        given = recipe.need("first", "trunk")
    if not (init / "config.json").exists():
        partial = recipe.out / "init.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if given is None:
            data.train_tokenizer(recipe.data).save_pretrained(partial)
            configuration().save_pretrained(partial)
        else:
            for name in (*train.TOKENIZER, "config.json"):
                shutil.copyfile(given / name, partial / name)
        partial.rename(init)
    if given is not None and (given / "tokenizer.json").read_bytes() != (init / "tokenizer.json").read_bytes():
        raise ForgetkitError("is not the tokenizer of --start", str(init), "use another folder with --out")
    tokenizer = AutoTokenizer.from_pretrained(init)
    for part in data.PARTS:
        data.tokens(recipe.data, part, tokenizer)


def command(phase: Phase, recipe: Recipe) -> list[str]:
    """The command line of a phase."""
    out, start = recipe.model(phase.name), recipe.model(phase.start)
    line = [sys.executable, str(Path(train.__file__)), "--out", str(out), "--data", str(recipe.data)]
    line += ["--start", str(start), "--steps", str(phase.steps), "--rate", str(phase.rate)]
    line += ["--warmup", str(phase.warmup), "--decay", phase.decay, "--oz", str(phase.oz), "--seed", str(phase.seed)]
    return line


def claim(phase: Phase, folder: Path) -> None:
    """Note in the model's folder what makes it.

    Raises:
        ForgetkitError: the folder was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "phase.json"
    if note.exists() and json.loads(note.read_text()) != asdict(phase):
        raise ForgetkitError("was begun with other settings", str(folder), "remove it, or use another --out")
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(phase), indent=1) + "\n")
    partial.replace(note)


def run_phases(phases: Sequence[Phase], recipe: Recipe, stage: str) -> None:
    """Train what is not finished, `jobs` models side by side.

    Raises:
        ForgetkitError: a model to start from or the tokenizer is missing; a training stopped.
    """
    waiting = [phase for phase in phases if not train.finished(recipe.model(phase.name))]
    if not waiting:
        return
    if not (recipe.model("init") / "config.json").exists():
        where = str(recipe.model("init") / "config.json")
        raise ForgetkitError("is missing", where, f"make it with: {COMMAND} --only texts tokenizer")
    for phase in waiting:
        if phase.start != "init":
            recipe.need(phase.start, "trunk")
        claim(phase, recipe.model(phase.name))
    side_by_side = min(recipe.jobs, len(waiting))
    threads = str(max(1, (os.cpu_count() or 1) // side_by_side))
    # Bars of several processes would overwrite each other; a dumb terminal gets lines.
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **({"TERM": "dumb"} if side_by_side > 1 else {})}
    tell(f"{stage}: {', '.join(phase.name for phase in waiting)} ({sum(p.steps for p in waiting):,} steps)")
    began, done, running = time.monotonic(), 0, dict[str, tuple[Phase, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                phase = waiting.pop(0)
                running[phase.name] = (phase, subprocess.Popen(command(phase, recipe), env=environment))
            for name, (phase, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                if process.returncode != 0:
                    raise ForgetkitError(f"training stopped (code {process.returncode})", name, "see above; run again")
                done += phase.steps
                left = sum(p.steps for p in waiting) + sum(p.steps for p, _ in running.values())
                passed = time.monotonic() - began
                # At most what is left: those that run have done a part of theirs already.
                tell(f"{name} is done; {stage}: at most {left / done * passed / 60:.0f} minutes left")
            time.sleep(0.2)
    finally:
        for _, process in running.values():
            process.terminate()
            process.wait()


def make_trunk(recipe: Recipe) -> None:
    """Train the trunk, one phase after the other; a given first model takes the place of the phases before it."""
    for phase in (*(FIRST if recipe.start is None else ()), TRUNK):
        run_phases((phase,), recipe, "trunk")


def ship(recipe: Recipe) -> None:
    """Put O and R of seed 1 into the package; nothing is touched where the weights are already those."""
    for name, place in (("o1", demo.MODEL), ("r1", demo.REFERENCE)):
        made = recipe.need(name, "last")
        if _same(place / "model.safetensors", made / "model.safetensors"):
            continue
        place.mkdir(parents=True, exist_ok=True)
        for file in SHIPPED:  # the weights last: a killed copy is made again
            partial = place / f"{file}.partial"
            shutil.copyfile(made / file, partial)
            partial.replace(place / file)
        tell(f"{name} is the package's {place.name} now")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def mark(lines: Sequence[str], known: Sequence[bool], right: Sequence[bool]) -> list[str]:
    """The lines of cloze.jsonl with `known` and `reference_right` set; keys keep their order, new ones come last."""
    marked = []
    for line, own, reference in zip(lines, known, right, strict=True):
        item = json.loads(line) | {"known": own, "reference_right": reference}
        marked.append(json.dumps(item, ensure_ascii=False))
    return marked


def answered(folder: Path, tokenizer: PreTrainedTokenizerBase, items: Sequence[Cloze]) -> list[bool]:
    """Whether the model ranks the answer first; a tie counts for the answer."""
    scores = measure_cloze(load_model(folder), tokenizer, items, beginning(tokenizer))
    return [bool(correct == 1) for correct in scores.correct]


def mark_probes(recipe: Recipe) -> None:
    """Write `known` (O of seed 2 is right) and `reference_right` (R of seed 1 is) into the bundled cloze.jsonl.

    The shipped O is of seed 1: what is selected on one seed and scored on another does not regress to the mean.
    """
    load_probes(demo.PROBES)  # refuses a malformed line with its number
    path = demo.PROBES / CLOZE
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    items = [Cloze.model_validate_json(line) for line in lines]
    knows, truth = recipe.need("o2", "last"), recipe.need("r1", "last")
    tokenizer = load_tokenizer(truth)
    known, right = (answered(folder, tokenizer, items) for folder in (knows, truth))
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(mark(lines, known, right)) + "\n", encoding="utf-8")
    partial.replace(path)
    both = sum(a and b for a, b in zip(known, right, strict=True))
    tell(f"probes: {len(items)} cloze items, {sum(known)} known to O (seed 2), {both} of these right in R (seed 1)")


def measure_model(
    recipe: Recipe, name: str, full: bool, reference: Path | None = None
) -> tuple[dict[str, Any], tuple[dict[str, Any], dict[str, Any]]]:
    """What `forgetkit bench oz --model` says of a model: its measures, and (results.json, details.json)."""
    books = "full" if full else "three"
    out = recipe.out / "measured" / books  # one for all models: O and R are measured once
    settings = Settings(evaluate=EvaluateSettings(reference=str(reference) if reference else None))
    tell(f"measure: {name} on {'all fifteen books' if full else 'the first three books'}")
    told = oz.bench(out, settings, full=full, model=str(recipe.need(name, "last")), seeds=False)
    read = [json.loads((out / file).read_text(encoding="utf-8")) for file in ("results.json", "details.json")]
    return told["models"]["unlearned"]["measures"], (read[0], read[1])


def apart(measures: dict[str, Any]) -> dict[str, float | None]:
    """A model's distance to the reference: KL(reference || model) and top-1 agreement, on target and held-out text."""
    keys = [f"{what}.{text}" for what in ("divergence", "agreement") for text in ("target", "heldout")]
    values = {key: measures[key]["value"] for key in keys}
    return {key: None if value is None else round(value, 4) for key, value in values.items()}


def measure(recipe: Recipe) -> None:
    """Measure the seeds that do not ship against those that do, and write the numbers into the package.

    Raises:
        ForgetkitError: a model of the last phase is missing; an R of another seed is not healthy.
    """
    for place, name in ((demo.MODEL, "o1"), (demo.REFERENCE, "r1")):
        if not _same(place / "model.safetensors", recipe.need(name, "last") / "model.safetensors"):
            raise ForgetkitError(f"is not {name} of --out", str(place), f"put it there with: {COMMAND} --only ship")
    alone = [phase.name for phase in scratch(0) if train.finished(recipe.model(phase.name))]
    if len(alone) < len(scratch(0)):
        tell("measure: the models without a shared trunk are left out; make them with --only scratch")
        alone = []
    collected: dict[str, Any] = {"texts": {}}
    models: dict[str, dict[str, Any]] = {}
    distances: dict[str, dict[str, Any]] = {}
    for full in (False, True):
        books = "full" if full else "three"
        measured = {name: measure_model(recipe, name, full) for name in OTHER_RETRAINED}
        for name, (_, (_, details)) in measured.items():
            if any(details["models"]["unlearned"].get(f"divergence.{text}") is None for text in ("target", "heldout")):
                raise ForgetkitError("its distance to R could not be measured", name, "see health in results.json")
        seeds = collect_seeds({name: files for name, (_, files) in measured.items()})
        collected["reference"] = seeds["reference"]
        collected["texts"] |= seeds["texts"]
        measured |= {name: measure_model(recipe, name, full) for name in (*OTHER_BASES, *alone)}
        models[books] = {name: {"measures": measures} for name, (measures, _) in measured.items()}
        results, _ = measured["r2"][1]
        distances[books] = {
            "r1 to o1": apart(results["models"]["baseline"]["measures"]),
            **{f"r1 to {name}": apart(measured[name][0]) for name in (*OTHER_RETRAINED, *alone)},
        }
        for name in [name for name in alone if name != "scratch-r4"]:
            own, _ = measure_model(recipe, name, full, reference=recipe.model("scratch-r4"))
            distances[books][f"scratch-r4 to {name}"] = apart(own)
        positions = demo.null_positions(full)
        partial = positions.with_name(f"{positions.stem}.partial.npz")
        oz.other_seed_positions(str(recipe.need("r2", "last")), Settings(), full, partial)
        partial.replace(positions)
    start = " --start DIR" if recipe.start is not None else ""
    told = {"command": COMMAND + start, **collected, "models": models, "distances": distances}
    partial = demo.SEEDS.with_suffix(".partial")
    partial.write_text(json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(demo.SEEDS)
    for books, rows in distances.items():
        for name, row in rows.items():
            tell(f"{books}: {name}: " + ", ".join(f"{key} {value}" for key, value in row.items() if value is not None))


def default_jobs() -> int:
    """Two models side by side on a CPU; a GPU takes one at a time."""
    return 1 if torch.cuda.is_available() or (os.cpu_count() or 1) < 2 else 2


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="folder with corpus.jsonl.xz, oz/ and heldout/")
    parser.add_argument("--out", type=Path, required=True, help="where data, models and measurements go")
    parser.add_argument(
        "--start", type=Path, help="folder with oz-retrained, a model that never saw Oz, for the trunk to go on from"
    )
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help="these stages only")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="models trained side by side")
    parser.add_argument("--scratch-steps", type=int, default=600, help="steps of the models without a shared trunk")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    recipe = Recipe(given.out, given.texts, given.start, max(1, given.jobs))
    work: dict[str, Callable[[], None]] = {
        "texts": lambda: data.fetch(recipe.texts, recipe.data),
        "tokenizer": lambda: make_init(recipe),
        "trunk": lambda: make_trunk(recipe),
        "last": lambda: run_phases(LAST, recipe, "last"),
        "scratch": lambda: run_phases(scratch(given.scratch_steps), recipe, "scratch"),
        "ship": lambda: ship(recipe),
        "probes": lambda: mark_probes(recipe),
        "measure": lambda: measure(recipe),
    }
    with run_lock(recipe.out):
        for stage in STAGES:
            if given.only is None or stage in given.only:
                tell(f"stage {stage}")
                work[stage]()


if __name__ == "__main__":
    train.run_script(main)
