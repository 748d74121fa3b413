"""Measure before, after, along the way and beside a model that never read the target; write results.json.

One model is in memory at a time (two while a model is compared with the reference). What has been measured is
kept in the work folder, so a killed evaluation goes on where it stopped. The schema is in
docs/results_schema.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from forgetkit import __version__
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import load_tokenizer
from forgetkit.core.provenance import versions
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate import assemble
from forgetkit.evaluate.cache import Part, Store
from forgetkit.evaluate.completions import Completions, completion_json, prompt_text
from forgetkit.evaluate.data import Data
from forgetkit.evaluate.health import HealthVerdict
from forgetkit.evaluate.losses import BlockDivergence
from forgetkit.evaluate.measure import LazyModel, Measurer
from forgetkit.evaluate.plan import Plan, describe, make_plan
from forgetkit.evaluate.retraining import Seeds, distance, load_seeds
from forgetkit.evaluate.rows import suites_json
from forgetkit.evaluate.statistics import Estimate
from forgetkit.evaluate.suites import SuiteMeasurer, make_suite, task_scores
from forgetkit.evaluate.utility import utility_rows
from forgetkit.settings import EvaluateSettings, ModelSettings

SCHEMA_VERSION = 1
ROLES = ("baseline", "reference", "unlearned")
COMPARED_TEXTS = ("target", "heldout")
CURVE = (
    "recall.probability",
    "recall.top1",
    "recall.anchor_probability",
    "familiarity.completion",
    "familiarity.probability",
    "cloze.accuracy",
    "loss.target",
    "loss.heldout",
)
WITHHELD = ("recall", "cloze", "familiarity.completion", "familiarity.probability", "extraction")
"""Parts that tell how much is forgotten: of a model that is not healthy they are withheld in the details too."""


def evaluate(
    models: Mapping[str, str | Path],
    target: BlockedCorpus,
    dictionary: Dictionary,
    texts: Mapping[str, BlockedCorpus],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    model_settings: ModelSettings,
    out: Path,
    seed: int,
    *,
    snapshots: Mapping[int, str | Path] | None = None,
    work: Path | None = None,
    holdout: BlockedCorpus | None = None,
    target_from: str = "",
    data: Data | None = None,
) -> dict[str, Any]:
    """Evaluate models by role and write out/results.json and out/details.json; returns the results.

    Args:
        models: role ('baseline', 'unlearned', 'reference'; any subset, at least one) -> folder or id.
        target: the text to be forgotten, as blocks. texts: 'retain', 'neighbour', 'heldout', any subset.
        snapshots: optimiser step -> model folder, for the curve.
        work: folder of finished measurements for resuming; must outlive a kill. Default: out/work.
        holdout: non-members of the suites' membership attacks. target_from: the layout of the data folder that gave
            the target ('muse', 'tofu'), if one did. data: the suite's data, where they were loaded before.

    Raises:
        ForgetkitError: unknown role or text, no model, tokenizers that differ, a context window that is too
        small, probes or data that cannot be read, a judge that does not answer.
    """
    _check_names(models, texts)
    more = {"scalability": settings.muse_scalability, "sustainability": settings.muse_sustainability}
    named = {f"{name} {i + 1}": model for name, several in more.items() for i, model in enumerate(several)}
    _check_tokenizers({**models, **named}, tokenizer, target)
    plan = make_plan(target, dictionary, texts, tokenizer, settings, seed)
    seeds = load_seeds(settings.seeds) if settings.seeds is not None else None
    sources = {role: LazyModel(models[role], model_settings) for role in ROLES if role in models}
    later = {name: [LazyModel(model, model_settings) for model in several] for name, several in more.items()}
    every = [*sources.values(), *(source for several in later.values() for source in several)]
    suite = make_suite(plan, every, target_from=target_from, holdout=holdout, data=data)
    measurer = SuiteMeasurer(plan, Store(work if work is not None else out / "work"), suite)
    parts: dict[str, dict[str, Part]] = {}
    for role, source in sources.items():
        parts[role] = measurer.main(source)
        if "recall" in parts[role]:  # not with non-finite weights
            parts[role] |= measurer.families(source)
        source.close()
    steps_of_muse = {name: [measurer.retained(source) for source in several] for name, several in later.items()}
    _compare_with_reference(measurer, sources, parts)
    curve: dict[int, tuple[LazyModel, dict[str, Part]]] = {}
    for step in sorted(snapshots or {}):
        source = LazyModel((snapshots or {})[step], model_settings)
        curve[step] = (source, measurer.snapshot(source))
        if settings.utility_at_steps and "recall" in curve[step][1]:
            curve[step] = (source, curve[step][1] | measurer.utility(source))
        source.close()
    results = _results(plan, dictionary, sources, parts, curve, tokenizer, model_settings, seeds)
    details = _details(plan, dictionary, results, parts, curve)
    results["suites"] = details["suites"] = None
    if suite is not None:
        verdicts = {role: assemble.judge(role, own, parts.get("baseline"), plan) for role, own in parts.items()}
        series = {role: assemble.series_of(own, plan) for role, own in parts.items()}
        results["suites"], details["suites"] = suites_json(plan, suite, parts, verdicts, series, steps_of_muse)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "details.json", details)
    write_json(out / "results.json", results)
    return results


def _check_names(models: Mapping[str, str | Path], texts: Mapping[str, BlockedCorpus]) -> None:
    if not models:
        raise ForgetkitError("no model to evaluate", where="evaluate", remedy=f"give one of {', '.join(ROLES)}")
    for role in models:
        if role not in ROLES:
            raise ForgetkitError(f"unknown role {role!r}", where="evaluate", remedy=f"use {', '.join(ROLES)}")
    for name in texts:
        if name not in ("retain", "neighbour", "heldout"):
            raise ForgetkitError(
                f"unknown text {name!r}", where="evaluate", remedy="use retain, neighbour or heldout"
            )  # fmt: skip


def _check_tokenizers(
    models: Mapping[str, str | Path], tokenizer: PreTrainedTokenizerBase, target: BlockedCorpus
) -> None:
    """All models must read the very same token ids: same vocabulary, same cut of a piece of the target."""
    sample = target.documents[0].text[:2000] if target.documents else ""
    expected = tokenizer(sample, add_special_tokens=False)["input_ids"]
    for role, source in models.items():
        own = load_tokenizer(source)
        same = own.get_vocab() == tokenizer.get_vocab()
        if not same or own(sample, add_special_tokens=False)["input_ids"] != expected:
            raise ForgetkitError(
                f"the {role} model has another tokenizer than the text was cut with",
                where="evaluate",
                remedy="compare models that share one tokenizer",
            )


def _compare_with_reference(
    measurer: Measurer, sources: Mapping[str, LazyModel], parts: dict[str, dict[str, Part]]
) -> None:
    if "reference" not in sources:
        return
    measured = [role for role in sources if "recall" in parts[role]]  # not those with non-finite weights
    for role in ("baseline", "unlearned"):
        if role in measured and "reference" in measured:
            for name in COMPARED_TEXTS:
                if name in measurer.plan.texts:
                    part = measurer.divergence(sources["reference"], sources[role], name)
                    parts[role][f"divergence.{name}"] = part
            sources[role].close()
    sources["reference"].close()


def _results(
    plan: Plan,
    dictionary: Dictionary,
    sources: Mapping[str, LazyModel],
    parts: Mapping[str, Mapping[str, Part]],
    curve: Mapping[int, tuple[LazyModel, dict[str, Part]]],
    tokenizer: PreTrainedTokenizerBase,
    model_settings: ModelSettings,
    seeds: Seeds | None,
) -> dict[str, Any]:
    baseline = parts.get("baseline")
    verdicts = {role: assemble.judge(role, own, baseline, plan) for role, own in parts.items()}
    series = {role: assemble.series_of(own, plan) for role, own in parts.items()}
    if "reference" in series:
        for role in ("baseline", "unlearned"):
            series["reference"] |= assemble.itself(series.get(role, {}))
    differences, ways = assemble.comparisons(series, verdicts, plan.seed)
    residuals = {key: assemble.normalised_residual(way) for key, way in ways.items()}
    rows: list[dict[str, Any]] = []
    if "baseline" in sources:
        rows.append(_curve_row(0, sources["baseline"], parts["baseline"], None, plan))
    rows += [_curve_row(step, source, own, baseline, plan) for step, (source, own) in curve.items()]
    return {
        "schema_version": SCHEMA_VERSION,
        "forgetkit_version": __version__,
        "versions": versions(),
        "seed": plan.seed,
        "settings": plan.settings.model_dump(mode="json"),
        "model_settings": model_settings.model_dump(mode="json"),
        **describe(plan, dictionary),
        "measures": [metric._asdict() for metric in assemble.METRICS],
        "models": {
            role: {
                "name": Path(str(source.source)).name,
                "fingerprint": source.fingerprint,
                "parameters": parts[role]["weights"].info["parameters"],
                "seconds": round(sum(p.info["seconds"] for p in parts[role].values()), 3),
                "health": {
                    "status": verdicts[role].status,
                    "reasons": list(verdicts[role].reasons),
                    "text": plan.health_text,
                    "numbers": assemble.health_numbers(parts[role], plan).to_json(),
                },
                "measures": {
                    metric.key: assemble.value_json(
                        metric.key,
                        series[role],
                        verdicts[role],
                        assemble.why_missing(metric.key, plan, sources),
                    )
                    for metric in assemble.METRICS
                },
            }
            for role, source in sources.items()
        },
        "differences": differences,
        "way_to_reference": ways,
        "normalised_residual": residuals,
        "distance_to_retraining": _distances(plan, sources, parts, verdicts, seeds),
        "curve": rows,
        "completions": _completions(plan, dictionary, parts, tokenizer),
    }


def _distances(
    plan: Plan,
    sources: Mapping[str, LazyModel],
    parts: Mapping[str, Mapping[str, Part]],
    verdicts: Mapping[str, HealthVerdict],
    seeds: Seeds | None,
) -> dict[str, Any]:
    """How far the unlearned model is from retraining, in units of another retrained seed (`evaluate.retraining`)."""
    out: dict[str, Any] = {}
    for text in COMPARED_TEXTS:
        part = parts.get("unlearned", {}).get(f"divergence.{text}")
        reason = ""
        if part is None or "reference" not in sources:
            reason = "not measured: no unlearned model, no reference, or no such text"
        elif seeds is None:
            reason = "no other seed of the reference is known (evaluate.seeds)"
        elif seeds.reference != sources["reference"].fingerprint:
            reason = "the known seeds belong to another reference"
        elif text == "target" and not verdicts["unlearned"].healthy:
            reason = "withheld: unlearned not healthy"
        for what in ("divergence", "agreement"):
            if reason or part is None or seeds is None:
                found = Estimate(None, reason=reason)
            else:
                others = seeds.null(plan.digests[text], plan.blocks[text])
                found = distance(BlockDivergence(**part.arrays), others, what, plan.seed)
            out.setdefault(text, {})[what] = assemble.estimate_json(found)
    return out


def _curve_row(
    step: int, source: LazyModel, parts: Mapping[str, Part], baseline: Mapping[str, Part] | None, plan: Plan
) -> dict[str, Any]:
    verdict = assemble.judge("unlearned" if baseline else "baseline", parts, baseline, plan)
    series = assemble.series_of(parts, plan)
    row = {
        "step": step,
        "fingerprint": source.fingerprint,
        "health": {"status": verdict.status, "reasons": list(verdict.reasons)},
        "measures": {
            key: assemble.value_json(key, series, verdict, assemble.why_missing(key, plan, {})) for key in CURVE
        },
    }
    if tasks := task_scores(parts):
        row["utility"] = utility_rows(tasks, task_scores(baseline) if baseline else None, seed=plan.seed)
    return row


def _completions(
    plan: Plan,
    dictionary: Dictionary,
    parts: Mapping[str, Mapping[str, Part]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, Any]]:
    made = {role: Completions(**own["completions"].arrays) for role, own in parts.items() if "completions" in own}
    rows = []
    for i, prompt in enumerate(plan.prompts):
        text, truth = prompt_text(plan.target, prompt, plan.settings.completion_tokens)
        rows.append(
            {
                "kind": prompt.kind,
                "anchor": dictionary.kept[prompt.anchor].term if prompt.anchor >= 0 else None,
                "prompt": text,
                "truth": truth,
                "models": {role: completion_json(tokenizer, plan.target, prompt, own, i) for role, own in made.items()},
            }
        )
    return rows


def _details(
    plan: Plan,
    dictionary: Dictionary,
    results: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Part]],
    curve: Mapping[int, tuple[LazyModel, dict[str, Part]]],
) -> dict[str, Any]:
    """Arrays per place, block and probe; forgetting scores of an unhealthy model are withheld here too."""

    def arrays(own: Mapping[str, Part], health: Mapping[str, Any]) -> dict[str, Any]:
        sick = health["status"] != "healthy"
        withheld = (*WITHHELD, "loss.target", "divergence.target")
        texts = {name: {"texts": part.info["texts"]} for name, part in own.items() if "texts" in part.info}
        return {
            name: None
            if sick and name in withheld
            else {k: assemble.numbers(v) for k, v in part.arrays.items()} | texts.get(name, {})
            for name, part in own.items()
            if name in WITHHELD or name.startswith(("loss.", "divergence."))
        }

    rows = {row["step"]: row for row in results["curve"]}
    return {
        "schema_version": SCHEMA_VERSION,
        "documents": [document.name for document in plan.target.documents],
        "places": [
            {
                "document": place.document,
                "anchor": dictionary.kept[place.anchor].term,
                "start": place.start,
                "end": place.end,
                "token": place.first,
                "tokens": place.last - place.first,
            }
            for place in plan.places
        ],
        "blocks": plan.blocks,
        "probes": {
            "cloze": [item.model_dump(mode="json") for item in plan.probes.cloze],
            "completion": [probe.model_dump(mode="json") for probe in plan.probes.completions],
            "probability": [probe.model_dump(mode="json") for probe in plan.probes.probabilities],
        },
        "models": {role: arrays(own, results["models"][role]["health"]) for role, own in parts.items()},
        "curve": [{"step": step, **arrays(own, rows[step]["health"])} for step, (_, own) in curve.items()],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Strict JSON (no NaN), complete or not there at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
