"""The sweep behind the demo's defaults: one run per variant on the bundled model and books, in one run folder.

    python benchmarks/sweep_demo.py [--out runs/sweep] [--only NAME ...]

Stages that a variant shares with the one before are kept, so the order below matters for time, not for results.
Writes OUT/sweep.json and prints a table. The figures that docs/LOG.md quotes come from here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from forgetkit import demo
from forgetkit.core.config import load_settings
from forgetkit.pipeline import Inputs, run

LEAN = ["evaluate.completions=0", "finetune.snapshots=0"]
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "learning rate halved": ["finetune.learning_rate=5e-4"],
    "anchor weight 1": ["finetune.anchor_weight=1"],
    "one epoch": ["finetune.epochs=1"],
    "LoRA": ["finetune.adapter=lora"],
    "no retain mixing": ["finetune.retain_ratio=0"],
    "alpha 0 (dictionary alone)": ["relabel.alpha=0"],
    "alpha 5": ["relabel.alpha=5"],
    "no suppression of unseen anchors": ["relabel.suppress_unseen_anchors=0"],
    "rule 3 on (no inner labels)": ["relabel.mask_inside_anchors=true"],
    "rule 1 off": ["relabel.mask_seen_anchors=false"],
    "rule 2 off": ["relabel.penalise_seen_counterparts=0"],
    "hard labels": ["relabel.labels=hard"],
    "paper's labels (hard, logits, alpha 5, rules 1-3, no suppression)": [
        "relabel.labels=hard",
        "relabel.space=logits",
        "relabel.alpha=5",
        "relabel.mask_inside_anchors=true",
        "relabel.suppress_unseen_anchors=0",
    ],
}
MEASURES = ("recall.probability", "recall.anchor_probability", "recall.top1", "loss.target")
COSTS = ("loss.heldout", "loss.neighbour", "loss.retain")


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The way to the reference of every forgetting measure, and the relative rise of every kept loss."""
    measures = {role: results["models"][role]["measures"] for role in ("baseline", "unlearned")}
    return {
        "way": {key: results["way_to_reference"][key]["value"] for key in MEASURES},
        "value": {key: measures["unlearned"][key]["value"] for key in MEASURES},
        "rise": {key: measures["unlearned"][key]["value"] / measures["baseline"][key]["value"] - 1 for key in COSTS},
    }


def main() -> None:
    """Run the variants that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS))
    chosen = parser.parse_args()
    path = chosen.out / "sweep.json"
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    inputs = Inputs(str(demo.MODEL), (demo.TARGET,), (demo.RETAIN,))
    for name in chosen.only or VARIANTS:
        began = time.monotonic()
        settings = demo.apply(load_settings(None, [*LEAN, *VARIANTS[name]], "default"))
        # A folder of its own: `run` refuses a folder that holds anything it did not make.
        results = run(inputs, settings, chosen.out / "run")
        rows[name] = {**summary(results), "seconds": round(time.monotonic() - began)}
        path.write_text(json.dumps(rows, indent=1, allow_nan=False))
        print(_row(name, rows[name]), flush=True)


def _row(name: str, row: dict[str, Any]) -> str:
    way = "  ".join(
        f"{key.split('.')[1]} {value:.0%}" if value is not None else f"{key} -" for key, value in row["way"].items()
    )
    rise = "  ".join(f"{key.split('.')[1]} {value:+.2%}" for key, value in row["rise"].items())
    return f"{name}: way there {way} | rise {rise}"


if __name__ == "__main__":
    main()
