"""From ``results.json`` and ``details.json`` (docs/results_schema.md) to what the report speaks of.

Tolerant: a part that is absent or of another shape is left out, so that a report of an older or partial
evaluation
can still be made. Texts are cleaned here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forgetkit.report.preview import clean
from forgetkit.report.verdict import Evidence, Measure

MAIN = frozenset(
    {
        "recall.probability",
        "recall.anchor_probability",
        "loss.target",
        "loss.retain",
        "loss.neighbour",
        "loss.heldout",
    }
)
"""Measures that make the verdict. Distances to the reference do not: no other model has a distance of zero
to it."""
ROLES = {"baseline": "baseline", "unlearned": "unlearned", "reference": "never read"}


@dataclass(frozen=True)
class Token:
    """A piece of a completion with the probability that its model gave it."""

    text: str
    probability: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One prompt and (name of the side, tokens) for the text itself and for every model."""

    prompt: str
    sides: tuple[tuple[str, tuple[Token, ...]], ...]


@dataclass(frozen=True)
class Probe:
    """Mean recall probability of one anchor over its ``places``."""

    term: str
    places: int = 0
    baseline: float | None = None
    unlearned: float | None = None
    reference: float | None = None


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def integer(value: object) -> int | None:
    """The value if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def real(value: object) -> float | None:
    """The value if it is a finite number."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None  # type: ignore[arg-type]


def evidence(
    results: Mapping[str, Any],
    *,
    documents: int | None,
    tokens: int | None,
    method: str,
    audited: bool,
    last_step: int | None,
) -> Evidence:
    """The verdict's evidence. ``last_step``: optimiser steps of the fine-tune, for the end of the curves."""
    models = mapping(results.get("models"))
    unlearned = mapping(models.get("unlearned"))
    state = mapping(unlearned.get("health"))
    status = state.get("status")
    target = mapping(mapping(results.get("texts")).get("target"))
    return Evidence(
        measures=tuple(_measure(mapping(m), results, last_step) for m in items(results.get("measures"))),
        healthy=None if not isinstance(status, str) else status == "healthy",
        health_reasons=tuple(clean(str(r)) for r in items(state.get("reasons"))),
        documents=documents if documents is not None else integer(target.get("documents")),
        tokens=tokens if tokens is not None else integer(target.get("tokens")),
        method=method,
        audited=audited,
    )


def _measure(metric: Mapping[str, Any], results: Mapping[str, Any], last_step: int | None) -> Measure:
    key = str(metric.get("key"))
    models = mapping(results.get("models"))
    cells = {role: mapping(mapping(mapping(models.get(role)).get("measures")).get(key)) for role in ROLES}
    values = {role: real(cell.get("value")) for role, cell in cells.items()}
    way = mapping(mapping(results.get("way_to_reference")).get(key))
    difference = mapping(mapping(results.get("differences")).get(key))
    withheld = real(way.get("value")) is None and isinstance(way.get("reason"), str)
    steps = {}
    for row in map(mapping, items(results.get("curve"))):
        step, value = (
            integer(row.get("step")),
            real(mapping(mapping(row.get("measures")).get(key)).get("value")),
        )
        if step is not None and value is not None:
            steps[step] = value
    final = values["unlearned"]
    if steps and final is not None and last_step is not None and last_step > max(steps):
        steps[last_step] = final
    return Measure(
        key=key,
        label=clean(str(metric.get("label") or key)),
        group="keep" if metric.get("group") == "keep" else "forget",
        baseline=values["baseline"],
        unlearned=final,
        reference=values["reference"],
        worse=-1 if metric.get("worse") == -1 else 1,
        unit=clean(str(metric.get("unit") or "")),
        interval=_pair(way),
        difference=_pair(difference),
        undefined=clean(str(way["reason"])) if withheld and values["reference"] is not None else "",
        steps=tuple(sorted(steps.items())),
        main=key in MAIN,
        n=integer(cells["unlearned"].get("n")),
    )


def _pair(estimate: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = real(estimate.get("low")), real(estimate.get("high"))
    return None if low is None or high is None else (low, high)


def health(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Check -> role -> number, of the checks that were made on any model."""
    out: dict[str, dict[str, float | None]] = {}
    for role in ROLES:
        numbers = mapping(mapping(mapping(mapping(results.get("models")).get(role)).get("health")).get("numbers"))
        rows: list[tuple[str, object]] = [
            ("weights that are not finite", numbers.get("nonfinite_weights")),
            ("predictions that are not finite", numbers.get("nonfinite_logits")),
            ("loss on the health text (nats/token)", numbers.get("loss")),
            ("entropy of the next token (nats)", numbers.get("entropy")),
        ]
        for name in ("greedy", "sampled"):
            shape = mapping(numbers.get(name))
            rows.append((f"repeated 4-grams, {name} text", shape.get("repetition")))
            rows.append((f"distinct 2-grams, {name} text", shape.get("distinct_2")))
        for label, value in rows:
            if real(value) is not None:
                out.setdefault(label, {})[role] = real(value)
    return out


def probes(details: Mapping[str, Any]) -> tuple[Probe, ...]:
    """Mean recall probability per anchor and model, from the places of ``details.json``."""
    terms = [str(mapping(p).get("anchor")) for p in items(details.get("places"))]
    sums: dict[str, dict[str, list[float]]] = {term: {role: [] for role in ROLES} for term in terms}
    for role in ROLES:
        recall = mapping(mapping(mapping(details.get("models")).get(role)).get("recall"))
        values = items(recall.get("probability"))
        if len(values) == len(terms):
            for term, value in zip(terms, values, strict=True):
                number = real(value)
                if number is not None:
                    sums[term][role].append(number)
    counts = {term: terms.count(term) for term in sums}
    return tuple(
        Probe(clean(term), counts[term], **{role: sum(v) / len(v) if v else None for role, v in by_role.items()})
        for term, by_role in sums.items()
    )


def completions(results: Mapping[str, Any]) -> tuple[Completion, ...]:
    """The side-by-side completions: what the text says, then every model."""
    out = []
    for row in map(mapping, items(results.get("completions"))):
        sides: list[tuple[str, tuple[Token, ...]]] = []
        if isinstance(row.get("truth"), str):
            sides.append(("the text itself", (Token(clean(row["truth"])),)))
        models = mapping(row.get("models"))
        sides += [(name, _tokens(mapping(models[role]))) for role, name in ROLES.items() if role in models]
        out.append(Completion(clean(str(row.get("prompt") or "")), tuple(sides)))
    return tuple(out)


def _tokens(made: Mapping[str, Any]) -> tuple[Token, ...]:
    """Tokens laid over the text; the bare text where they do not tile it (a character cut across tokens)."""
    text, pieces = str(made.get("text") or ""), items(made.get("tokens"))
    probabilities = items(made.get("probabilities"))
    out: list[Token] = []
    at = 0
    if len(probabilities) != len(pieces):
        return (Token(clean(text)),)
    for piece, probability in zip(pieces, probabilities, strict=True):
        # A tokenizer may drop the leading space when it decodes one token alone.
        found = next((p for p in (str(piece), f" {piece}") if text.startswith(p, at)), None)
        if found is None:
            return (Token(clean(text)),)
        at += len(found)
        out.append(Token(clean(found), real(probability)))
    return tuple(out) if at == len(text) else (Token(clean(text)),)


def models(results: Mapping[str, Any]) -> dict[str, Any]:
    """Role -> name, fingerprint and size, for the record; and how they were loaded."""
    out: dict[str, Any] = {}
    for role in ROLES:
        model = mapping(mapping(results.get("models")).get(role))
        if model:
            out[ROLES[role]] = {k: model[k] for k in ("name", "parameters", "fingerprint", "seconds") if k in model}
    if out and "model_settings" in results:
        out["loaded with"] = results["model_settings"]
    return out


def places(results: Mapping[str, Any]) -> str:
    """One sentence on where recall was measured; empty if it was not."""
    found = mapping(results.get("places"))
    n, anchors, context = (integer(found.get(k)) for k in ("n", "anchors", "context_tokens"))
    if not n or context is None:
        return ""
    where = f"{n:,} places of {anchors or 0:,} anchors"
    return f"Recall: at {where} that do not occur in the {context} tokens before."


def not_measured(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What could have been measured and was not, with the reason, one sentence each."""
    if not results:
        return ("Anything: there are no results of an evaluation.",)
    models = mapping(results.get("models"))
    out = []
    if "reference" not in models:
        out.append("The distance to a model that never read the text: no such model was given.")
    labels = {str(mapping(m).get("key")): mapping(m).get("label") for m in items(results.get("measures"))}
    for key, cell in mapping(mapping(models.get("unlearned")).get("measures")).items():
        reason = mapping(cell).get("reason")
        distance = key.startswith(("divergence.", "agreement."))
        if isinstance(reason, str) and not reason.startswith("withheld") and not distance:
            label = str(labels.get(key) or key)
            out.append(clean(f"{label[:1].upper()}{label[1:]}: {reason}."))
    if mapping(mapping(models.get("unlearned")).get("health")).get("text") == "target":
        out.append("Health on other text: none was given, so only the weights and the fluency were checked.")
    return tuple(out)
