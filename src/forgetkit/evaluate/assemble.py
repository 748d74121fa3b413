"""From measured parts to what results.json says: values, errors, intervals, reasons for what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from forgetkit.evaluate.cache import Part
from forgetkit.evaluate.cloze import ClozeScores
from forgetkit.evaluate.extraction import Extraction
from forgetkit.evaluate.familiarity import per_prompt
from forgetkit.evaluate.health import Fluency, HealthNumbers, HealthVerdict, judge_health
from forgetkit.evaluate.losses import BlockDivergence, BlockLosses
from forgetkit.evaluate.plan import Plan
from forgetkit.evaluate.recall import RecallScores
from forgetkit.evaluate.statistics import Estimate, Series, paired_difference, way_to_reference


class Metric(NamedTuple):
    """One row of the results. group: 'forget' should go to the reference, 'keep' should stay at the baseline.

    worse: +1 where a higher value is harm, -1 where a lower one is (for 'forget' rows: harm = still knows).
    """

    key: str
    label: str
    group: Literal["forget", "keep"]
    unit: str
    worse: int


METRICS = (
    Metric("recall.probability", "anchor recall (probability)", "forget", "", 1),
    Metric("recall.top1", "anchor recall (top-1)", "forget", "", 1),
    Metric("recall.reciprocal_rank", "anchor recall (reciprocal rank)", "forget", "", 1),
    Metric("recall.anchor_probability", "whole-anchor recall (probability)", "forget", "", 1),
    Metric("recall.anchor_log_probability", "whole-anchor recall (log-probability)", "forget", "nats", 1),
    Metric("familiarity.completion", "familiarity (completion)", "forget", "", 1),
    Metric("familiarity.probability", "familiarity (probability)", "forget", "", 1),
    Metric("cloze.accuracy", "cloze accuracy", "forget", "", 1),
    Metric("cloze.accuracy.anchor", "cloze accuracy, answers about anchors", "forget", "", 1),
    Metric("cloze.accuracy.other", "cloze accuracy, other answers", "forget", "", 1),
    Metric("cloze.probability", "cloze probability of the answer", "forget", "", 1),
    Metric("extraction.strength", "extraction strength", "forget", "", 1),
    Metric("loss.target", "loss on the target", "forget", "nats/token", -1),
    Metric("divergence.target", "KL(reference, model) on the target", "forget", "nats/token", 1),
    Metric("agreement.target", "top-1 agreement with the reference on the target", "forget", "", -1),
    Metric("loss.retain", "loss on retain text", "keep", "nats/token", 1),
    Metric("loss.neighbour", "loss on neighbour text", "keep", "nats/token", 1),
    Metric("loss.heldout", "loss on held-out text", "keep", "nats/token", 1),
    Metric("divergence.heldout", "KL(reference, model) on held-out text", "keep", "nats/token", 1),
    Metric("agreement.heldout", "top-1 agreement with the reference on held-out text", "keep", "", -1),
)
_BY_KEY = {metric.key: metric for metric in METRICS}


def series_of(parts: Mapping[str, Part], plan: Plan) -> dict[str, Series]:
    """Every metric that was measured on one model."""
    found: dict[str, Series] = {}
    if "recall" in parts and plan.places:
        scores = RecallScores(**parts["recall"].arrays)
        found |= {f"recall.{name}": one for name, one in scores.series(plan.places).items()}
    if "cloze" in parts:
        cloze = ClozeScores(**parts["cloze"].arrays)
        found |= {f"cloze.{name}": one for name, one in cloze.series(plan.probes.cloze).items()}
    for name, array in (("familiarity.completion", "score"), ("familiarity.probability", "probability")):
        if name in parts:
            found[name] = per_prompt(parts[name].arrays[array])
    if "extraction" in parts:
        found["extraction.strength"] = Extraction(**parts["extraction"].arrays).series()
    for name in plan.texts:
        if f"loss.{name}" in parts:
            found[f"loss.{name}"] = block_losses(parts[f"loss.{name}"]).series()
        if f"divergence.{name}" in parts:
            apart = BlockDivergence(**parts[f"divergence.{name}"].arrays)
            found |= {f"{what}.{name}": apart.series(what) for what in ("divergence", "agreement")}
    return found


def block_losses(part: Part) -> BlockLosses:
    """The stored losses as the measure returned them."""
    return BlockLosses(**part.arrays, nonfinite=part.info["nonfinite"])


def itself(series: Mapping[str, Series]) -> dict[str, Series]:
    """The reference's distance to itself (KL 0, agreement 1), at the positions of the others."""
    return {
        key: Series(np.full(len(one.values), float(key.startswith("agreement"))), one.weights, one.groups)
        for key, one in series.items()
        if key.startswith(("divergence.", "agreement."))
    }


def health_numbers(parts: Mapping[str, Part], plan: Plan) -> HealthNumbers:
    """The inputs of the health verdict, from one model's parts."""
    weights = parts["weights"].info
    held = parts.get(f"loss.{plan.health_text}")
    loss = entropy = None
    if held is not None and plan.health_text != "target" and len(held.arrays["count"]):
        scores = block_losses(held)
        loss, entropy = scores.series().mean, scores.series("entropy").mean
    fluency = parts.get("fluency")
    lost = sum(int(p.info["nonfinite"]) for name, p in parts.items() if name.startswith("loss."))
    if "recall" in parts:
        lost += int((~np.isfinite(parts["recall"].arrays["rank"])).sum())
    if fluency is not None and not fluency.info["finite"]:
        lost += 1
    made: dict[str, Fluency | None] = {"greedy": None, "sampled": None}
    if fluency is not None and len(plan.health_prompts):
        for name in made:
            made[name] = Fluency(repetition=tuple(fluency.arrays[name].tolist()), **fluency.info[name])
    return HealthNumbers(weights["vocabulary"], weights["nonfinite"], lost, loss, entropy, **made)


def judge(role: str, parts: Mapping[str, Part], baseline: Mapping[str, Part] | None, plan: Plan) -> HealthVerdict:
    """The verdict on one model. The baseline and the reference stand for themselves: absolute checks only."""
    relative = baseline is not None and role not in ("baseline", "reference")
    against = health_numbers(baseline, plan) if relative and baseline is not None else None
    return judge_health(health_numbers(parts, plan), against)


def value_json(key: str, series: Mapping[str, Series], verdict: HealthVerdict, missing: str) -> dict[str, Any]:
    """value, error, n of one metric; None with a reason where it is missing, not finite, or withheld."""
    if _BY_KEY[key].group == "forget" and not verdict.healthy:
        return _none("withheld: the model is not healthy (" + "; ".join(verdict.reasons) + ")")
    if key not in series:
        return _none(missing)
    one = series[key]
    if not one.finite:
        return _none("not finite" if len(one.values) else "nothing to measure") | {"n": len(one.values)}
    out: dict[str, Any] = {
        "value": one.mean,
        "error": finite(one.error),
        "n": len(one.values),
        "reason": None,
    }
    if key == "recall.anchor_log_probability":
        out["geometric_mean"] = math.exp(one.mean)
    return out


def _none(reason: str) -> dict[str, Any]:
    return {"value": None, "error": None, "n": 0, "reason": reason}


def why_missing(key: str, plan: Plan, roles: Mapping[str, Any]) -> str:
    """Why a metric is not there at all."""
    kind, _, text = key.partition(".")
    if kind == "recall":
        return "no cue-free place: no anchor of the dictionary occurs after enough context without itself"
    if kind in ("cloze", "familiarity"):
        if plan.settings.probes is None:
            return "no probes were given"
        probes = plan.probes
        given = {"completion": probes.completions, "probability": probes.probabilities}
        found = probes.cloze if kind == "cloze" else given[text]
        return "not measured" if found else "no probe of this kind is about the target"
    if kind == "extraction":
        return "not measured"
    if text not in plan.texts:
        return f"no {text} text was given"
    if kind in ("divergence", "agreement"):
        return "no reference model was given" if "reference" not in roles else "not measured"
    return "not measured"


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """value, low, high, reason."""
    return {name: finite(part) if name != "reason" else part for name, part in estimate._asdict().items()}


def comparisons(
    series: Mapping[str, Mapping[str, Series]], verdicts: Mapping[str, HealthVerdict], seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Differences unlearned - baseline, and ways to the reference, per metric, with paired 95% intervals.

    A comparison that involves an unhealthy model is withheld for 'forget' metrics; ways always are.
    """
    differences: dict[str, Any] = {}
    ways: dict[str, Any] = {}
    for metric in METRICS:
        key = metric.key
        own = {role: found[key] for role, found in series.items() if key in found}
        sick = [role for role in ("baseline", "unlearned") if role in verdicts and not verdicts[role].healthy]
        if "baseline" not in own or "unlearned" not in own:
            difference = Estimate(None, reason="not measured on both baseline and unlearned model")
        elif sick and metric.group == "forget":
            difference = Estimate(None, reason=f"withheld: {' and '.join(sick)} not healthy")
        else:
            difference = paired_difference(own["unlearned"], own["baseline"], seed=seed)
        sick += [role for role in ("reference",) if role in verdicts and not verdicts[role].healthy]
        if "reference" not in own:
            way = Estimate(None, reason="no reference model was given")
            if "reference" in verdicts:
                way = Estimate(None, reason="not measured")
        elif difference.value is None and not sick:
            way = Estimate(None, reason=difference.reason)
        elif sick:
            way = Estimate(None, reason=f"withheld: {' and '.join(sick)} not healthy")
        else:
            way = way_to_reference(own["baseline"], own["unlearned"], own["reference"], seed=seed)
        differences[key], ways[key] = estimate_json(difference), estimate_json(way)
    return differences, ways


def normalised_residual(way: Mapping[str, Any]) -> dict[str, Any]:
    """NR = (U - R) / (O - R) = 1 - way to the reference: 0 = as if never read, 1 = untouched, below 0 = past it."""
    value, low, high = (None if way[name] is None else 1.0 - way[name] for name in ("value", "high", "low"))
    return {"value": value, "low": low, "high": high, "reason": way["reason"]}


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return None if value is None or not math.isfinite(value) else float(value)


def numbers(array: np.ndarray) -> list[Any]:
    """An array as strict JSON: NaN and infinities become None."""
    if array.dtype.kind == "i":
        return list(array.tolist())
    return [numbers(row) for row in array] if array.ndim > 1 else [finite(x) for x in array.tolist()]
