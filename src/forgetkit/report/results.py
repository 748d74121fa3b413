"""From ``results.json`` and ``details.json`` (docs/results_schema.md) to what the report speaks of.

Tolerant: a part that is absent or of another shape is left out, so that a report of an older or partial
evaluation
can still be made. Texts are cleaned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from forgetkit.report.preview import clean
from forgetkit.report.verdict import Distance, Evidence, Measure

MAIN = (
    "familiarity.completion",
    "familiarity.probability",
    "cloze.accuracy",
    "recall.probability",
    "recall.anchor_probability",
    "loss.target",
    "loss.retain",
    "loss.neighbour",
    "loss.heldout",
)
"""Measures that make the verdict, in the order in which they are told: the paper's first. Distances to the
reference do not: no other model has a distance of zero to it."""
TRUTH = "the text itself"
ROLES = {"baseline": "baseline", "unlearned": "unlearned", "reference": "never read"}


@dataclass(frozen=True)
class Token:
    """A piece of a completion with the probability that its model gave it."""

    text: str
    probability: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    """Other tokens that the model found probable, in order."""


@dataclass(frozen=True)
class Completion:
    """One prompt and (name of the side, tokens) for the text itself and for every model."""

    prompt: str
    sides: tuple[tuple[str, tuple[Token, ...]], ...]


@dataclass(frozen=True)
class Recall:
    """Mean recall probability of one anchor over its ``places``."""

    term: str
    places: int = 0
    baseline: float | None = None
    unlearned: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Probe:
    """One probe: its prompt, what would give the target away, and what each model shows of it, 0 to 1.

    ``kind`` 'cloze': P(answer) among the options; 'completion': the graded continuation's score; 'probability':
    P(a familiar word comes next). ``said``: how the unlearned model went on, with its ``grade`` (completions).
    """

    kind: Literal["cloze", "completion", "probability"]
    prompt: str
    wanted: str
    baseline: float | None = None
    unlearned: float | None = None
    reference: float | None = None
    said: str = ""
    grade: int | None = None

    @property
    def left(self) -> float | None:
        """What the unlearned model still shows beyond the never-read one (beyond nothing without one)."""
        return None if self.unlearned is None else self.unlearned - (self.reference or 0.0)


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
    measures = [_measure(mapping(m), results, last_step) for m in items(results.get("measures"))]
    return Evidence(
        measures=tuple(sorted(measures, key=lambda m: MAIN.index(m.key) if m.main else len(MAIN))),
        distances=_distances(results),
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
    residual = mapping(mapping(results.get("normalised_residual")).get(key))
    if residual and real(residual.get("value")) is None:  # NR is 1 - way: what withholds the one withholds the other
        way = residual
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
        chance=real(mapping(mapping(results.get("probes")).get("cloze")).get("chance"))
        if key in ("cloze.accuracy", "cloze.probability")
        else None,
    )


def _distances(results: Mapping[str, Any]) -> tuple[Distance, ...]:
    found = mapping(results.get("distance_to_retraining"))
    out: list[Distance] = []
    texts: tuple[Literal["target", "heldout"], ...] = ("target", "heldout")
    whats: tuple[Literal["divergence", "agreement"], ...] = ("divergence", "agreement")
    for text in texts:
        for what in whats:
            one = mapping(mapping(found.get(text)).get(what))
            value, reason = real(one.get("value")), one.get("reason")
            if value is not None or isinstance(reason, str):
                out.append(Distance(text, what, value, _pair(one), "" if value is not None else clean(str(reason))))
    return tuple(out)


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


def recall(details: Mapping[str, Any]) -> tuple[Recall, ...]:
    """Mean recall probability per anchor and model, from the places of ``details.json``."""
    terms = [str(mapping(p).get("anchor")) for p in items(details.get("places"))]
    sums: dict[str, dict[str, list[float]]] = {term: {role: [] for role in ROLES} for term in terms}
    for role in ROLES:
        values = _array(details, role, "recall", "probability")
        if len(values) == len(terms):
            for term, value in zip(terms, values, strict=True):
                number = real(value)
                if number is not None:
                    sums[term][role].append(number)
    counts = {term: terms.count(term) for term in sums}
    return tuple(
        Recall(clean(term), counts[term], **{role: sum(v) / len(v) if v else None for role, v in by_role.items()})
        for term, by_role in sums.items()
    )


def probes(details: Mapping[str, Any]) -> tuple[Probe, ...]:
    """Every probe of ``details.json`` with what the models show of it; arrays of another length are left out."""
    given = mapping(details.get("probes"))
    out: list[Probe] = []
    for one, values in _scored(details, items(given.get("cloze")), "cloze", "probability"):
        out.append(Probe("cloze", clean(str(one.get("prompt"))), clean(str(one.get("answer"))), *values))
    prompts = items(given.get("completion"))
    texts = _array(details, "unlearned", "familiarity.completion", "texts")
    grades = _array(details, "unlearned", "familiarity.completion", "grade")
    said = list(zip(texts, grades, strict=True)) if len(texts) == len(grades) == len(prompts) else []
    for i, (one, values) in enumerate(_scored(details, prompts, "familiarity.completion", "score")):
        references = mapping(one.get("references"))
        wanted = [str(word) for grade in ("3", "2") for word in items(references.get(grade))]
        text, grade = said[i] if said else ("", None)
        out.append(
            Probe(
                "completion",
                clean(str(one.get("prompt"))),
                clean(", ".join(wanted)),
                *values,
                said=clean(str(text)),
                grade=integer(grade),
            )
        )
    for one, values in _scored(details, items(given.get("probability")), "familiarity.probability", "probability"):
        words = clean(", ".join(map(str, items(one.get("familiar")))))
        out.append(Probe("probability", clean(str(one.get("prompt"))), words, *values))
    return tuple(out)


def _array(details: Mapping[str, Any], role: str, part: str, name: str) -> list[Any]:
    return items(mapping(mapping(mapping(details.get("models")).get(role)).get(part)).get(name))


def _scored(
    details: Mapping[str, Any], given: list[Any], part: str, name: str
) -> Iterator[tuple[Mapping[str, Any], tuple[float | None, float | None, float | None]]]:
    """(the probe, its values on baseline, unlearned and reference) in order."""
    nothing: list[Any] = [None] * len(given)

    def values(role: str) -> list[Any]:
        found = _array(details, role, part, name)
        return found if len(found) == len(given) else nothing

    for one, before, after, never in zip(
        given, values("baseline"), values("unlearned"), values("reference"), strict=True
    ):
        yield mapping(one), (real(before), real(after), real(never))


def completions(results: Mapping[str, Any]) -> tuple[Completion, ...]:
    """The side-by-side completions: what the text says, then every model."""
    out = []
    for row in map(mapping, items(results.get("completions"))):
        sides: list[tuple[str, tuple[Token, ...]]] = []
        if isinstance(row.get("truth"), str):
            sides.append((TRUTH, (Token(clean(row["truth"])),)))
        models = mapping(row.get("models"))
        sides += [(name, _tokens(mapping(models[role]))) for role, name in ROLES.items() if role in models]
        out.append(Completion(clean(str(row.get("prompt") or "")), tuple(sides)))
    return tuple(out)


def _tokens(made: Mapping[str, Any]) -> tuple[Token, ...]:
    """Tokens laid over the text; the bare text where they do not tile it (a character cut across tokens)."""
    text, pieces = str(made.get("text") or ""), items(made.get("tokens"))
    probabilities = items(made.get("probabilities"))
    others = items(made.get("alternatives"))
    others = others if len(others) == len(pieces) else [{}] * len(pieces)
    out: list[Token] = []
    at = 0
    if len(probabilities) != len(pieces):
        return (Token(clean(text)),)
    for piece, probability, instead in zip(pieces, probabilities, others, strict=True):
        # A tokenizer may drop the leading space when it decodes one token alone.
        found = next((p for p in (str(piece), f" {piece}") if text.startswith(p, at)), None)
        if found is None:
            return (Token(clean(text)),)
        at += len(found)
        pairs = [(clean(str(t)), p) for t, v in mapping(instead).items() if (p := real(v)) is not None]
        out.append(Token(clean(found), real(probability), tuple(pairs)))
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
    absent: dict[str, list[str]] = {}
    for key, cell in mapping(mapping(models.get("unlearned")).get("measures")).items():
        reason = mapping(cell).get("reason")
        distance = key.startswith(("divergence.", "agreement."))
        if isinstance(reason, str) and not reason.startswith("withheld") and not distance:
            absent.setdefault(reason, []).append(str(labels.get(key) or key))
    out += [clean(f"{'; '.join(names)[:1].upper()}{'; '.join(names)[1:]}: {why}.") for why, names in absent.items()]
    if mapping(mapping(models.get("unlearned")).get("health")).get("text") == "target":
        out.append("Health on other text: none was given, so only the weights and the fluency were checked.")
    return tuple(out)
