"""What each part of the method is worth: one table for the labels, one for the training.

Labels are held against R's own predictions directly (`bench.labels`), which needs no fine-tuning: every choice about
reinforcement, subtraction, dictionary and rules. What only training shows (hard or soft, full or LoRA, retain mixing,
the loss) is run to the end. Every row changes what its name says of the settings given. Finished variants are kept in
OUT/9-bench/ablation.json, so a killed table goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgetkit import demo, pipeline, reinforce
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.bench.oz import BENCH, FORGET, LabelBench, costs
from forgetkit.core.artifacts import hash_json, run_lock
from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.evaluate.run import write_json
from forgetkit.pipeline import Event, Inputs
from forgetkit.settings import Settings


@dataclass(frozen=True)
class LabelVariant:
    """Labels made otherwise than by the run's settings. dictionary: 'offline', 'hand-made' or 'none'."""

    set: dict[str, Any] = field(default_factory=dict)
    reinforce: dict[str, Any] = field(default_factory=dict)
    dictionary: str = "offline"


DEFAULT = "the default"
_PLAIN = {"suppress_unseen_anchors": 0.0, "suppress_text": 0.0, "temperature": 1.0, "contrast": 0.0, "prior": 0.0}
_PAPER = {"alpha": 5.0, "space": "logits", "dictionaries": 1, **_PLAIN}


def _subtracting(alpha: float, **more: Any) -> LabelVariant:
    return LabelVariant({"contrast": 0.0, "alpha": alpha, **more})


LABELS: dict[str, LabelVariant] = {
    DEFAULT: LabelVariant(),
    "no contrast (no reinforced model)": LabelVariant({"contrast": 0.0}),
    "contrast 0.2": LabelVariant({"contrast": 0.2}),
    "contrast 0.8": LabelVariant({"contrast": 0.8}),
    "contrast 0.4 and alpha 0.5": LabelVariant({"alpha": 0.5}),
    **{f"alpha {a:g} in place of the contrast": _subtracting(a) for a in (0.5, 1, 2, 5, 10)},
    "alpha 1 in place of the contrast, raw logits": _subtracting(1.0, space="logits"),
    "alpha 5 in place of the contrast, raw logits": _subtracting(5.0, space="logits"),
    "the paper's labels (alpha 5, raw logits, nothing of ours)": LabelVariant({**_PAPER, "mask_inside_anchors": True}),
    "the paper's labels at alpha 0 (translation alone)": LabelVariant(
        {**_PAPER, "alpha": 0.0, "mask_inside_anchors": True}
    ),
    "alpha 2 in place of the contrast, from anchor tokens only": _subtracting(2.0, subtract="anchor_tokens"),
    "alpha 2 in place of the contrast, near anchors only": _subtracting(2.0, subtract="near_anchors"),
    "alpha 2 in place of the contrast, from largest gains only": _subtracting(2.0, subtract="largest_gains"),
    "reinforced at a third of the rate": LabelVariant(reinforce={"learning_rate": 1e-4}),
    "reinforced for 3 epochs": LabelVariant(reinforce={"epochs": 3}),
    "temperature 1": LabelVariant({"temperature": 1.0}),
    "temperature 1.3": LabelVariant({"temperature": 1.3}),
    "no prior": LabelVariant({"prior": 0.0}),
    "no prior, temperature 1.1": LabelVariant({"prior": 0.0, "temperature": 1.1}),
    "no prior, temperature 1": LabelVariant({"prior": 0.0, "temperature": 1.0}),
    "prior 0.3": LabelVariant({"prior": 0.3}),
    "no dictionary": LabelVariant(dictionary="none"),
    "no dictionary, alpha 5, raw logits": LabelVariant(_PAPER, dictionary="none"),
    "hand-made dictionary": LabelVariant(dictionary="hand-made"),
    "one dictionary": LabelVariant({"dictionaries": 1}),
    "two dictionaries averaged": LabelVariant({"dictionaries": 2}),
    "eight dictionaries averaged": LabelVariant({"dictionaries": 8}),
    "rule 1 off (seen anchors carry loss)": LabelVariant({"mask_seen_anchors": False}),
    "rule 2 off (seen counterparts not lowered)": LabelVariant({"penalise_seen_counterparts": 0.0}),
    "rule 3 on (no labels inside anchors)": LabelVariant({"mask_inside_anchors": True}),
    "unseen anchors not lowered": LabelVariant({"suppress_unseen_anchors": 0.0}),
    "unseen anchors lowered by 3": LabelVariant({"suppress_unseen_anchors": 3.0}),
    "text's own tokens not lowered": LabelVariant({"suppress_text": 0.0}),
    "text's own tokens lowered by 1": LabelVariant({"suppress_text": 1.0}),
}
TRAINING: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "divergence from the label alone": {"finetune.method": "whp"},
    "divergence from the label alone, anchor weight 20": {"finetune.method": "whp", "finetune.anchor_weight": 20.0},
    "hard labels": {"relabel.labels": "hard"},
    "the paper's labels (hard, raw logits, alpha 5, nothing of ours)": {
        "relabel.labels": "hard",
        "relabel.mask_inside_anchors": True,
        "finetune.anchor_weight": 1.0,
        **{f"relabel.{key}": value for key, value in _PAPER.items()},
    },
    "temperature 1": {"relabel.temperature": 1.0},
    "no prior": {"relabel.prior": 0.0},
    "no contrast (no reinforced model)": {"relabel.contrast": 0.0},
    "alpha 2 in place of the contrast": {"relabel.contrast": 0.0, "relabel.alpha": 2.0},
    "alpha 5 in place of the contrast": {"relabel.contrast": 0.0, "relabel.alpha": 5.0},
    "contrast 0.8": {"relabel.contrast": 0.8},
    "one dictionary": {"relabel.dictionaries": 1},
    "two dictionaries averaged": {"relabel.dictionaries": 2},
    "unseen anchors not lowered": {"relabel.suppress_unseen_anchors": 0.0},
    "text's own tokens not lowered": {"relabel.suppress_text": 0.0},
    "rule 3 on": {"relabel.mask_inside_anchors": True},
    "no retain mixing": {"finetune.retain_ratio": 0.0},
    "anchor weight 1": {"finetune.anchor_weight": 1.0},
    "one epoch": {"finetune.epochs": 1},
    "learning rate halved": {"finetune.learning_rate": 5e-4},
    "LoRA": {"finetune.adapter": "lora"},
}
GROUPS: dict[str, tuple[str, ...]] = {"labels": tuple(LABELS), "training": tuple(TRAINING)}


def ablate(
    out: Path,
    settings: Settings,
    names: Sequence[str],
    *,
    full: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the variants asked for ('labels', 'training', or single names); returns all that are finished.

    Raises:
        ForgetkitError: no such variant.
    """
    chosen = demo.apply(settings, full=full)
    wanted = _wanted(names)
    inputs = Inputs(str(demo.MODEL), demo.target(full), (demo.RETAIN,))
    pipeline.run(inputs, chosen, out, until="3-anchors", on_event=on_event)
    path = out / BENCH / "ablation.json"
    path.parent.mkdir(exist_ok=True)
    made_from = hash_json([chosen.model_dump(mode="json"), full])
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if told.get("made_from") != made_from:
        told = {"made_from": made_from, "labels": {}, "training": {}}
    if missing := [name for name in wanted["labels"] if name not in told["labels"]]:
        with run_lock(out):
            table = _LabelTable(out, chosen, full)
            for name in missing:
                on_event(Event(f"labels: {name}", "begins"))
                told["labels"][name] = table.measure(name)
                write_json(path, told)
    for name in wanted["training"]:
        if name not in told["training"]:
            on_event(Event(f"training: {name}", "begins"))
            told["training"][name] = _train(name, inputs, chosen, out, on_event)
            write_json(path, told)
    return told


def _wanted(names: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {"labels": [], "training": []}
    for name in names:
        if name in GROUPS:
            wanted[name] += GROUPS[name]
            continue
        group, _, variant = name.partition(":")
        if group not in GROUPS or variant not in GROUPS[group]:
            every = [*GROUPS, *(f"{g}:{v}" for g, own in GROUPS.items() for v in own)]
            raise ForgetkitError(
                f"unknown variant {name!r}" + (f", {hint}" if (hint := suggest(name, every)) else ""),
                where="--ablate",
                remedy="use labels, training, or labels:NAME, training:NAME",
            )
        wanted[group].append(variant)
    return {group: list(dict.fromkeys(own)) for group, own in wanted.items()}


class _LabelTable:
    """Label quality of any variant on one run's corpus and dictionary."""

    def __init__(self, run: Path, settings: Settings, full: bool) -> None:
        self.run, self.settings = run, settings
        self.bench = LabelBench(run, settings, full=full)
        self.offline = Dictionary.load(run / "3-anchors" / pipeline.ANCHORS)

    def measure(self, name: str) -> dict[str, Any]:
        """Quality by class of the labels of one variant."""
        variant = LABELS[name]
        relabel = self.settings.relabel.model_copy(update=variant.set)
        return self.bench(self._dictionary(variant.dictionary), self._reinforced(variant), relabel, name)

    def _reinforced(self, variant: LabelVariant) -> str:
        if not variant.reinforce:
            return str(self.run / "2-reinforced" / "model")
        section = self.settings.reinforce.model_copy(update=variant.reinforce)
        folder = self.run / BENCH / "reinforced" / hash_json(section.model_dump(mode="json"))[:12]
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            reinforce.run(
                str(demo.MODEL),
                self.bench.target,
                section,
                self.settings.model,
                folder,
                work=folder / "work",
                seed=self.settings.seed,
                pad_id=0,
            )
            (folder / "done").touch()
        return str(folder / "model")

    def _dictionary(self, kind: str) -> Dictionary:
        if kind == "none":
            return Dictionary()
        if kind == "hand-made":
            assert self.settings.evaluate.anchors is not None
            return Dictionary.load(self.settings.evaluate.anchors)
        return self.offline


def _train(
    name: str, inputs: Inputs, settings: Settings, out: Path, on_event: Callable[[Event], None]
) -> dict[str, Any]:
    """One variant run to the end, in a run folder of its own beside OUT that shares what does not differ."""
    changed = _changed(settings, {**TRAINING[name], "finetune.snapshots": 0, "evaluate.completions": 0})
    results = pipeline.run(inputs, changed, out / BENCH / "training", until="6-evaluation", on_event=on_event)
    unlearned = results["models"]["unlearned"]
    return {
        "health": unlearned["health"]["status"],
        "normalised_residual": {key: results["normalised_residual"][key] for key in FORGET},
        "distance_to_retraining": results["distance_to_retraining"],
        "cost": costs(results),
    }


def _changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        settings = settings.model_copy(update={section: getattr(settings, section).model_copy(update={name: value})})
    return settings


def tables(told: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) for the terminal, rows in the order they are defined in, not in which they were measured."""
    labels, training = (
        {name: told[group][name] for name in every if name in told[group]} for group, every in GROUPS.items()
    )
    out: list[tuple[str, list[list[str]]]] = []
    if labels:
        head = ["labels", "KL(R, .)", "gap closed", "agreement with R / other seed's", "first", "near", "elsewhere"]
        rows = [head]
        for name, own in labels.items():
            all_ = own["all"]
            closed, relative = all_.get("closed"), all_.get("relative_agreement")
            parts = [f"{own[k]['labels']['divergence']:.3f}" if own[k]["positions"] else "-" for k in head[-3:]]
            rows.append(
                [
                    name,
                    f"{all_['labels']['divergence']:.3f}",
                    f"{closed['value']:.0%}" if closed else "-",
                    f"{relative:.3f}" if relative is not None else "-",
                    *parts,
                ]
            )
        out.append(("Label quality (KL in nats, lower is closer to R)", rows))
    if training:
        keys = ("familiarity.probability", "cloze.accuracy", "extraction.strength", "recall.probability", "loss.target")
        short = [key.partition(".")[0] for key in keys]
        rows = [["training", "health", *short, "D target", "held-out", "neighbour"]]
        for name, own in training.items():
            residuals = [own["normalised_residual"][key]["value"] for key in keys]
            far = own["distance_to_retraining"]["target"]["divergence"]["value"]
            rows.append(
                [
                    name,
                    own["health"],
                    *("-" if value is None else f"{value:.2f}" for value in residuals),
                    "-" if far is None else f"{far:.2f}",
                    *(f"{own['cost'][key]:+.1%}" for key in ("loss.heldout", "loss.neighbour")),
                ]
            )
        out.append((f"Training (residuals of {', '.join(keys)}: 0 = as if never read, 1 = untouched)", rows))
    return out
