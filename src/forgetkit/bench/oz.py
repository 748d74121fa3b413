"""`forgetkit bench oz`: unlearning beside the truth, with controls, label quality and distances to retraining.

the run itself        pipeline stages 1-8 in OUT, as `forgetkit demo`; with `model`, that model is measured instead
OUT/9-bench/          controls, what every model scores, label quality, and bench.json, which holds it all
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forgetkit import corpus, demo, pipeline
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.bench import labels as label_quality
from forgetkit.bench.controls import CONTROLS, make_control
from forgetkit.core.artifacts import run_lock
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import load_model, load_tokenizer, model_fingerprint
from forgetkit.core.provenance import pin_threads, seed_everything, versions
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import read_paths
from forgetkit.evaluate.plan import digest
from forgetkit.evaluate.run import evaluate, write_json
from forgetkit.pipeline import Event, Inputs
from forgetkit.relabel.build import make_labeller
from forgetkit.settings import RelabelSettings, Settings

BENCH = "9-bench"
LABEL_BLOCKS = 64
"""Blocks at which label quality is measured."""
FORGET = (
    "familiarity.completion",
    "familiarity.probability",
    "cloze.accuracy",
    "cloze.probability",
    "extraction.strength",
    "recall.probability",
    "recall.anchor_probability",
    "loss.target",
)
"""Whose normalised residual the table shows."""
GOALS = (
    "familiarity.completion",
    "familiarity.probability",
    "cloze.accuracy",
    "cloze.probability",
    "extraction.strength",
)
"""Goals: normalised residual at most .10, its upper bound at most .20."""


def bench(
    out: Path,
    settings: Settings,
    *,
    full: bool = False,
    model: str | None = None,
    seeds: bool = True,
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Run and measure; returns what bench.json holds.

    Args:
        out: run folder. settings: the run's, without the bundled texts (`demo.apply` puts them in).
        full: all fifteen books instead of three.
        model: measure this model (made by any method) instead of running ours.
        seeds: use the bundled measurements of R's other seeds; False while they are being made.

    Raises:
        ForgetkitError: as `pipeline.run`; bundled data is missing; `model` has another tokenizer than the reference.
    """
    chosen = demo.apply(settings, full=full, seeds=seeds)
    inputs = Inputs(str(demo.MODEL), demo.target(full), (demo.RETAIN,))
    if model is not None:
        return _measure_only(out, chosen, inputs, model)
    pipeline.run(inputs, chosen, out, on_event=on_event)
    with run_lock(out):
        folder = out / BENCH
        results = json.loads((out / "6-evaluation" / "results.json").read_text())
        target, retain = corpus.load(out / "1-corpus")
        rows = {"unlearned": results}
        for name in CONTROLS:
            on_event(Event(f"control {name}", "begins"))
            made = make_control(name, inputs.model, out, chosen, folder / "controls")
            rows[name] = _evaluate(made, chosen, target, retain, folder / "measured" / name, folder / "work")
        on_event(Event("label quality", "begins"))
        told = _told(chosen, inputs, rows, full)
        told["labels"] = labels_of_run(out, chosen, full=full)
        closed = told["labels"]["all"].get("closed", {"value": None, "high": None})
        told["goals"].append(
            {
                "goal": "labels close at least 60% of the gap in KL(R, .) between baseline and other seed",
                "value": closed["value"],
                "high": closed["high"],
                "met": None if closed["value"] is None else closed["value"] >= 0.6,
            }
        )
        write_json(folder / "bench.json", told)
    return told


def _measure_only(out: Path, settings: Settings, inputs: Inputs, model: str) -> dict[str, Any]:
    pin_threads(settings.threads)
    seed_everything(settings.seed)
    tokenizer = load_tokenizer(inputs.model)
    target = block_documents(read_paths(inputs.target, settings.corpus), tokenizer, settings.corpus.block_tokens)
    retain = block_documents(read_paths(inputs.retain, settings.corpus), tokenizer, settings.corpus.block_tokens)
    out.mkdir(parents=True, exist_ok=True)
    results = _evaluate(Path(model), settings, target, retain, out, out / "work")
    told = _told(settings, inputs, {"unlearned": results}, full=len(inputs.target) > 1)
    write_json(out / "bench.json", told)
    return told


def _evaluate(
    model: Path, settings: Settings, target: BlockedCorpus, retain: BlockedCorpus | None, out: Path, work: Path
) -> dict[str, Any]:
    """`model` in the role of the unlearned one beside O and R; those two are measured once for all."""
    tokenizer = load_tokenizer(str(demo.MODEL))
    assert settings.evaluate.anchors is not None and settings.evaluate.reference is not None
    lean = settings.evaluate.model_copy(update={"completions": 0})
    return evaluate(
        {"baseline": str(demo.MODEL), "unlearned": model, "reference": settings.evaluate.reference},
        target,
        Dictionary.load(settings.evaluate.anchors),
        pipeline.evaluation_texts(settings, tokenizer, retain),
        tokenizer,
        lean,
        settings.model,
        out,
        settings.seed,
        work=work,
    )


def _told(settings: Settings, inputs: Inputs, rows: Mapping[str, dict[str, Any]], full: bool) -> dict[str, Any]:
    """Every model's values, residuals and costs side by side; R's other seeds as measured when they were made."""
    first = rows["unlearned"]
    models = {
        "O (has read Oz)": {"measures": first["models"]["baseline"]["measures"]},
        "R (never read Oz)": {"measures": first["models"]["reference"]["measures"]},
        **{f"{name} (other seed)": own for name, own in _other_seeds(settings, full).items()},
    }
    for name, results in rows.items():
        own = results["models"]["unlearned"]
        models[name] = {
            "measures": own["measures"],
            "health": own["health"]["status"],
            "normalised_residual": {key: results["normalised_residual"][key] for key in FORGET},
            "distance_to_retraining": results["distance_to_retraining"],
            "cost": costs(results),
        }
    return {
        "benchmark": "oz, fifteen books" if full else "oz, three books",
        "models": models,
        "goals": _goals(models["unlearned"]),
        "settings": settings.model_dump(mode="json", exclude={"evaluate"}),
        "fingerprints": {
            "O": model_fingerprint(inputs.model),
            "R": model_fingerprint(str(settings.evaluate.reference)),
        },
        "versions": versions(),
    }


def _other_seeds(settings: Settings, full: bool) -> dict[str, Any]:
    if settings.evaluate.seeds is None:
        return {}
    raw = json.loads(settings.evaluate.seeds.read_text(encoding="utf-8"))
    found: dict[str, Any] = raw.get("models", {}).get("full" if full else "three", {})
    return found


def costs(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Relative rise of the losses that should stay."""
    out: dict[str, float | None] = {}
    for key in ("loss.heldout", "loss.neighbour", "loss.retain"):
        values = [results["models"][role]["measures"][key]["value"] for role in ("baseline", "unlearned")]
        out[key] = values[1] / values[0] - 1 if None not in values else None
    return out


def _goals(unlearned: Mapping[str, Any]) -> list[dict[str, Any]]:
    goals: list[dict[str, Any]] = []
    for key in GOALS:
        residual = unlearned["normalised_residual"][key]
        value, high = residual["value"], residual["high"]
        met = None if value is None or high is None else value <= 0.10 and high <= 0.20
        goals.append(
            {"goal": f"residual of {key} <= .10 (upper bound <= .20)", "value": value, "high": high, "met": met}
        )
    far = unlearned["distance_to_retraining"]["target"]["divergence"]
    goals.append(
        {
            "goal": "distance to retraining on the target <= 2",
            "value": far["value"],
            "high": far["high"],
            "met": None if far["value"] is None else far["value"] <= 2,
        }
    )
    for key in ("loss.heldout", "loss.neighbour"):
        rise = unlearned["cost"][key]
        goals.append(
            {
                "goal": f"{key} within 1% of O",
                "value": rise,
                "high": None,
                "met": None if rise is None else rise <= 0.01,
            }
        )
    return goals


def labels_of_run(run: Path, settings: Settings, *, full: bool) -> dict[str, Any]:
    """Label quality of the labels that this run's settings, dictionary and reinforced model give."""
    measure = LabelBench(run, settings, full=full)
    reinforced = run / "2-reinforced" / "model"
    return measure(
        Dictionary.load(run / "3-anchors" / pipeline.ANCHORS),
        str(reinforced) if reinforced.exists() else None,
        settings.relabel,
        "label quality",
    )


class LabelBench:
    """Label quality on fixed blocks of the bundled books: models loaded, yardsticks measured once."""

    def __init__(self, run: Path, settings: Settings, *, full: bool) -> None:
        target, retain = corpus.load(run / "1-corpus")
        tokenizer = load_tokenizer(str(demo.MODEL))
        self.target, self.common, self.tokenizer, self.settings = target, retain, tokenizer, settings
        self.blocks = label_quality.sample(target, LABEL_BLOCKS)
        self.pad_id = tokenizer.pad_token_id or 0
        self.baseline = load_model(str(demo.MODEL), settings.model)
        self.reference = load_model(str(settings.evaluate.reference), settings.model)
        assert settings.evaluate.anchors is not None
        by_hand = Dictionary.load(settings.evaluate.anchors)
        plain = RelabelSettings(mask_seen_anchors=False, suppress_unseen_anchors=0)
        classed = label_quality.prepared_blocks(target, self.blocks, by_hand, tokenizer, plain)
        self.kinds = label_quality.classify(classed)
        self.own = label_quality.measure_model(
            self.baseline, self.reference, target, self.blocks, pad_id=self.pad_id, label="untranslated baseline"
        )
        path = demo.null_positions(full)
        self.other = (
            label_quality.load_positions(path, classed, digest(target), self.blocks) if path.is_file() else None
        )

    def __call__(
        self, dictionary: Dictionary, reinforced: str | None, settings: RelabelSettings, label: str
    ) -> dict[str, Any]:
        """Quality by class of the labels these parts give."""
        raised = load_model(reinforced, self.settings.model) if reinforced and settings.uses_reinforced else None
        prepared = label_quality.prepared_blocks(self.target, self.blocks, dictionary, self.tokenizer, settings)
        labeller = make_labeller(
            self.baseline, raised, dictionary, self.tokenizer, settings, self.target.bos_id, self.common
        )
        measured = label_quality.measure_labels(prepared, labeller, self.reference, label=label)
        return label_quality.quality(measured, self.own, self.other, self.kinds, self.settings.seed)


def other_seed_positions(model: str, settings: Settings, full: bool, out: Path) -> None:
    """Measure another retrained seed against R at the benchmark's positions and write them to `out`."""
    tokenizer = load_tokenizer(str(demo.MODEL))
    target = block_documents(read_paths(demo.target(full), settings.corpus), tokenizer, settings.corpus.block_tokens)
    blocks = label_quality.sample(target, LABEL_BLOCKS)
    reference = load_model(str(demo.REFERENCE), settings.model)
    other = load_model(model, settings.model)
    one = label_quality.measure_model(
        other, reference, target, blocks, pad_id=tokenizer.pad_token_id or 0, label="other seed"
    )
    if not np.isfinite(one.divergence).all():
        raise ForgetkitError("predictions are not finite", where=model)
    label_quality.save_positions(out, one, digest(target), blocks)


def tables(told: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) for the terminal."""
    models = told["models"]
    values = [["", *models]]
    for key in (*FORGET, "loss.heldout", "loss.neighbour", "loss.retain"):
        cells = [own["measures"].get(key, {}).get("value") for own in models.values()]
        values.append([key, *("-" if cell is None else f"{cell:.4f}" for cell in cells)])
    values.append(["health", *(own.get("health", "") for own in models.values())])
    out = [(f"{told['benchmark']}: what every model scores (- = withheld or not measured)", values)]
    measured = {name: own for name, own in models.items() if "normalised_residual" in own}
    residuals = [["", *measured]]
    residuals += [
        [f"NR {key}", *(_interval(own["normalised_residual"][key]) for own in measured.values())] for key in FORGET
    ]
    for text in ("target", "heldout"):
        for what, name in (("divergence", "D"), ("agreement", "top-1 agreement / other seed's")):
            cells = [_interval(own["distance_to_retraining"][text][what]) for own in measured.values()]
            residuals.append([f"{name} on {text}", *cells])
    out.append(
        ("Residuals (0 = as if never read, 1 = untouched), distance to retraining (1 = another seed)", residuals)
    )
    if "labels" in told:
        out.append(("Label quality: KL(R, .) in nats and top-1 agreement with R", _label_rows(told["labels"])))
    goals = [["goal", "reached", "met"]]
    for goal in told["goals"]:
        value = "-" if goal["value"] is None else f"{goal['value']:.3f}"
        upper = "" if goal["high"] is None else f" (upper {goal['high']:.3f})"
        goals.append([goal["goal"], value + upper, {True: "yes", False: "no", None: "not measured"}[goal["met"]]])
    out.append(("Goals", goals))
    return out


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "-"
    if estimate["low"] is None:
        return f"{estimate['value']:.2f}"
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _label_rows(labels: Mapping[str, Any]) -> list[list[str]]:
    rows = [["positions", "n", "baseline", "labels", "other seed", "gap closed", "agreement", "/ other seed's"]]
    for name, own in labels.items():
        if not own["positions"]:
            continue
        kl = [f"{own[k]['divergence']:.3f}" if k in own else "-" for k in ("baseline", "labels", "other_seed")]
        closed = f"{own['closed']['value']:.0%}" if "closed" in own else "-"
        relative = f"{own['relative_agreement']:.3f}" if "relative_agreement" in own else "-"
        rows.append([name, str(own["positions"]), *kl, closed, f"{own['labels']['agreement']:.3f}", relative])
    return rows
