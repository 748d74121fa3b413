"""From what was collected to one self-contained page: no script, no request, every text escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import jinja2

from forgetkit import __version__
from forgetkit.evaluate.compare import percent
from forgetkit.report import plots
from forgetkit.report.collect import Anchor, Collected, Completion, Token
from forgetkit.report.preview import cell, fragment
from forgetkit.report.results import ROLES, TRUTH
from forgetkit.report.verdict import Distance, Evidence, Measure, Verdict, judge, not_tested, number

TOP_ANCHORS = 25
WORST = 10
OPEN_COMPLETIONS = 8
"""Side-by-side completions shown at once; the others unfold."""
PROMPT = 150
"""Characters shown of a probe's prompt, and of what a model made of it."""
SHADES = (0.05, 0.25, 0.5, 0.8)
"""Upper bounds of the lower four of the five shades of a token's probability."""
PAPER_BENCHMARKS = (
    ("ARC-C", 0.440, 0.414), ("ARC-E", 0.744, 0.724), ("BoolQ", 0.807, 0.796),
    ("HellaSwag", 0.577, 0.557), ("PIQA", 0.767, 0.760), ("WinoGrande", 0.663, 0.657),
)  # fmt: skip
"""Utility in Eldan & Russinovich 2023, step 0 and step 120, Llama-2-7b-chat."""
KINDS = {"cloze": "cloze", "completion": "completion", "probability": "next word"}
PLAIN = {
    "familiarity.completion": "How much of the text's own world turns up when the model goes on from a hint (0 to 1).",
    "familiarity.probability": "How probable the next word is one that only a reader of the text would expect.",
    "cloze.accuracy": "How often the true answer beats nine or more false ones of the same kind.",
    "cloze.accuracy.anchor": "The same, of answers that are about a term of the dictionary.",
    "cloze.accuracy.other": "The same, of answers that are about none: plots, relations, places of events.",
    "cloze.probability": "The true answer's share of the probability of all options.",
    "recall.probability": "How probable the model finds a name of the text where nothing before it gives it away.",
    "recall.anchor_probability": "The same, of the whole name rather than its first token.",
    "extraction.strength": "How much of a passage's end the model gives back word for word.",
    "loss.target": "How surprised the model is by the text itself.",
    "loss.retain": "How surprised it is by text that it was to keep.",
    "loss.neighbour": "How surprised it is by text close to the target.",
    "loss.heldout": "How surprised it is by other text.",
}
"""What a measure tells, in plain words."""


def render(data: Collected) -> str:
    """The page. Pure: the same `data` gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forgetkit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdict = judge(data.evidence)
    shown = _shown(data.evidence, verdict)
    has_reference = any(m.reference is not None for m in shown)
    worst, recalled, pictures = _worst(data, verdict), _recalled(data, verdict), _pictures(shown)
    page = environment.get_template("page.html.j2").render(
        title=data.title,
        version=__version__,
        verdict=verdict,
        redacted=data.redacted,
        rows=[_row(m) for m in shown],
        distances=_distance_rows(_distances(data.evidence, verdict)),
        cost=data.cost,
        contents=_contents(data, bool(pictures["step_table"] or data.utility), bool(worst or recalled)),
        has_reference=has_reference,
        places=data.places,
        health=_health(data),
        documents=data.documents,
        stages=data.stages,
        record=data.record,
        untested=(*not_tested(data.measured_families), *data.not_measured),
        evaluation_only=data.evaluation_only,
        families=data.families,
        roles=_roles(data),
        statistics=data.statistics,
        utility=data.utility,
        preview=fragment(data.preview) if data.preview else "",
        completions=[_completion(c) for c in _telling(data.completions)],
        open_completions=OPEN_COMPLETIONS,
        shaded=any(t.probability is not None for c in data.completions for _, side in c.sides for t in side),
        alternatives=any(t.alternatives for c in data.completions for _, side in c.sides for t in side),
        worst=worst,
        recalled=recalled,
        probes=len(data.probes),
        anchors=_anchors(data.anchors),
        paper={
            "steps": list(zip(plots.PAPER_STEPS, plots.PAPER_COMPLETION, plots.PAPER_PROBABILITY, strict=True)),
            "benchmarks": PAPER_BENCHMARKS,
        },
        **pictures,
    )
    return page.replace("\r", "").rstrip("\n") + "\n"


def _shown(evidence: Evidence, verdict: Verdict) -> tuple[Measure, ...]:
    """The measures a reader may see: forgetting only where the verdict gives scores."""
    forget = evidence.group("forget") if verdict.scores else ()
    return (*forget, *evidence.group("keep"))


def _distances(evidence: Evidence, verdict: Verdict) -> tuple[Distance, ...]:
    """The distances to retraining a reader may see; none where there is no retrained model at all."""
    if all(m.reference is None for m in evidence.measures):
        return ()
    return tuple(one for one in evidence.distances if verdict.scores or one.text != "target")


def _row(measure: Measure) -> dict[str, Any]:
    """Cells of the table; ``last`` is the way there, or the change where there is no way or none is
    wanted."""
    way, bar, bounds, left, reason = measure.way, None, "", "", ""
    if measure.group == "keep":
        last = "not measured" if measure.cost is None else f"{measure.cost * 100:+.1f}%"
        if measure.cost_interval is not None:
            bounds = _bounds(measure.cost_interval, "+.1f")
    elif way is not None:
        last, bar = percent(way), round(min(max(way, 0.0), 1.0) * 100)
        left = f"{measure.residual:.2f}"
        if measure.residual_interval is not None:
            bounds = _bounds(measure.residual_interval, ".2f")
    elif measure.reference is None and measure.change is not None:
        last = f"{measure.change * 100:+.0f}%"
    else:
        last, reason = "cannot tell", measure.undefined.rstrip(".") or "baseline and never-read model differ too little"
    return {
        "group": measure.group,
        "label": measure.label,
        "plain": PLAIN.get(measure.key, ""),
        "about": _about(measure),
        "main": measure.main,
        "baseline": number(measure.baseline),
        "unlearned": number(measure.unlearned),
        "reference": number(measure.reference),
        "last": _minus(last),
        "left": _minus(left),
        "bounds": _minus(bounds),
        "reason": reason,
        "bar": bar,
    }


def _about(measure: Measure) -> str:
    """Unit, number of items and chance level, as far as there are any."""
    parts = [measure.unit] if measure.unit else []
    parts += [f"n\u00a0=\u00a0{measure.n:,}"] if measure.n else []
    parts += [f"chance\u00a0{number(measure.chance)}"] if measure.chance is not None else []
    return ", ".join(parts)


def _bounds(pair: tuple[float, float], form: str) -> str:
    scale = 100 if form.startswith("+") else 1
    return " to ".join(format(scale * bound, form) for bound in pair)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _distance_rows(distances: Sequence[Distance]) -> list[dict[str, Any]]:
    """Rows of the table of distances to retraining: a text, its two values with intervals, reasons for gaps."""
    rows = []
    for text, name in (("target", "on the target"), ("heldout", "on held-out text")):
        own = {one.what: one for one in distances if one.text == text}
        cells: list[tuple[str, str]] = []
        for what in ("divergence", "agreement"):
            one = own.get(what)
            bounds = "" if one is None or one.interval is None else _minus(_bounds(one.interval, ".2f"))
            cells.append(("–" if one is None or one.value is None else f"{one.value:.2f}", bounds))
        reasons = list(dict.fromkeys(one.reason.rstrip(".") for one in own.values() if one.reason))
        if own:
            rows.append({"name": name, "cells": cells, "reasons": reasons})
    return rows


def _pictures(shown: Sequence[Measure]) -> dict[str, Any]:
    """The drawings, and the table over steps that stands beside the paper's."""
    main = [m for m in shown if m.main]
    forget = [m for m in main if m.group == "forget"]
    keep = [m for m in main if m.group == "keep"]
    trade = None
    if forget and keep:
        with_steps = [m for m in keep if len(m.steps) > 1]
        lead = next((m for m in forget if m.way is not None), forget[0])
        trade = plots.forgetting_against_utility(lead, (with_steps or keep)[0])
    stepped = [m for m in main if len(m.steps) > 1]
    theirs = [m for m in stepped if m.key.startswith("familiarity.")]
    ours = theirs or [m for m in stepped if m.key == "recall.probability"]
    # Beside the paper's table there is room for few columns; the others are drawn below.
    told = [m for m in stepped if m in ours or m.key == "cloze.accuracy" or m.group == "keep"]
    steps = sorted({s for m in told for s, _ in m.steps})
    values = [dict(m.steps) for m in told]
    table = [(step, [number(own[step]) if step in own else "" for own in values]) for step in steps]
    return {
        "trade": trade,
        "beside": plots.beside_the_paper(ours),
        "curves": [c for i, m in enumerate(stepped) if (c := plots.curve(m, i)) is not None],
        "step_table": {"names": [m.label for m in told], "rows": table} if told else None,
        "same_measures": bool(theirs),
    }


def _contents(data: Collected, stepped: bool, worst: bool) -> list[tuple[str, str]]:
    """The page's sections: id and name."""
    contents = [("numbers", "The numbers")]
    contents += [("steps", "Along the fine-tune")] if stepped else []
    contents += [("suite", "The suite")] if data.families else []
    contents += [("worst", "Worst probes")] if worst else []
    contents += [("completions", "Side by side")]
    contents += [] if data.evaluation_only else [("labels", "Labels")]
    return [*contents, ("anchors", "Anchors"), ("untested", "Not tested"), ("record", "What was done")]


def _roles(data: Collected) -> list[tuple[str, str]]:
    """Roles that any row of the suite has a value of, with the names that the page gives them."""
    rows = [row for family in data.families for row in family.rows]
    return [(role, name) for role, name in ROLES.items() if any(row.models[role].text != "–" for row in rows)]


def _health(data: Collected) -> dict[str, Any] | None:
    if not data.health:
        return None
    columns = [name for name in ("baseline", "unlearned", "reference") if any(name in v for v in data.health.values())]
    return {
        "columns": ["never read" if c == "reference" else c for c in columns],
        "rows": [(name, [number(values.get(c)) for c in columns]) for name, values in data.health.items()],
    }


def _completion(completion: Completion) -> dict[str, Any]:
    sides = []
    for name, tokens in completion.sides:
        told = [_token(t) for t in tokens]
        for one, following in zip(told, [*tokens, None][1:], strict=True):
            # A line's end is shown as a sign, and only the last of several gives room for a line break.
            more = following is not None and following.text.startswith("\n")
            one["text"] = re.sub(r"\n(?!\n)", "↵" if more else "↵ ", one["text"]).replace("\n", "↵")
        if told:
            told[0]["text"] = told[0]["text"].lstrip(" ")
        sides.append((name, told))
    return {"prompt": "… " + re.sub(r"\s*\n\s*", " ↵ ", completion.prompt.strip()), "sides": sides}


def _telling(completions: Sequence[Completion]) -> list[Completion]:
    """Those first whose baseline gives most of the names (capitalised words) with which the text goes on, beyond
    the never-read model's: there a reader sees whether it was un-read. Ties stay in text order."""

    def given(one: Completion) -> int:
        said = {name: re.findall(r"\w{3,}", "".join(t.text for t in tokens)) for name, tokens in one.sides}
        words = {name: {word for word in own if word[0].isupper()} for name, own in said.items()}
        shared = words.get(TRUTH, set()) & words.get("baseline", set())
        return len(shared - words.get("never read", set()))

    return sorted(completions, key=given, reverse=True)


def _token(token: Token) -> dict[str, Any]:
    """Text, shade and what is told when a reader points at it."""
    if token.probability is None:
        return {"text": token.text, "shade": None, "note": ""}
    note = f"{cell(token.text)} {_share(token.probability)}"
    if token.alternatives:
        note += " · instead: " + ", ".join(f"{cell(t)} {_share(p)}" for t, p in token.alternatives)
    return {"text": token.text, "shade": sum(token.probability >= bound for bound in SHADES), "note": note}


def _share(probability: float) -> str:
    """0.914 -> '91%'; below one per cent in words, so that nothing reads as impossible or as certain."""
    if probability < 0.01:
        return "under 1%"
    return "over 99%" if probability > 0.99 else f"{probability:.0%}"


def _worst(data: Collected, verdict: Verdict) -> list[dict[str, str]]:
    """The probes on which the unlearned model still shows most beyond the never-read one (or beyond nothing)."""
    if not verdict.scores:
        return []
    found = [(p.left, p) for p in data.probes if p.left is not None]
    found.sort(key=lambda pair: (-pair[0], pair[1].kind, pair[1].prompt, pair[1].wanted))
    return [
        {
            "kind": KINDS[p.kind],
            "prompt": _end(p.prompt),
            "wanted": _begin(p.wanted),
            "said": _begin(p.said),
            "grade": "" if p.grade is None else str(p.grade),
            "baseline": _two(p.baseline),
            "unlearned": _two(p.unlearned),
            "reference": _two(p.reference),
        }
        for left, p in found[:WORST]
        if left > 0
    ]


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _end(text: str) -> str:
    """The last `PROMPT` characters of a prompt, from a word's beginning."""
    text = " ".join(text.split())
    return text if len(text) <= PROMPT else "… " + text[-PROMPT:].partition(" ")[2]


def _begin(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= PROMPT else text[:PROMPT].rpartition(" ")[0] + " …"


def _recalled(data: Collected, verdict: Verdict) -> list[dict[str, str]]:
    """The anchors with the most recall left above the reference (or above zero without one)."""
    if not verdict.scores:
        return []
    left = [(p.unlearned - (p.reference or 0.0), p) for p in data.recall if p.unlearned is not None]
    left.sort(key=lambda pair: (-pair[0], pair[1].term))
    return [
        {
            "term": p.term,
            "places": str(p.places),
            "baseline": number(p.baseline),
            "unlearned": number(p.unlearned),
            "reference": number(p.reference),
        }
        for _, p in left[:WORST]
    ]


def _anchors(anchors: Sequence[Anchor]) -> dict[str, Any]:
    ordered = sorted(anchors, key=lambda a: (-a.count, a.term))
    kinds = Counter(a.kind for a in ordered)
    return {
        "total": len(ordered),
        "kinds": ", ".join(
            f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda kv: (-kv[1], kv[0]))
        ),
        "top": ordered[:TOP_ANCHORS],
        "rest": ordered[TOP_ANCHORS:],
    }


def facts(data: Collected) -> dict[str, Any]:
    """``report.json``: verdict, measures and record for programs. Never a passage, completion or anchor
    term."""
    verdict = judge(data.evidence)
    return {
        "schema_version": 1,
        "forgetkit_version": __version__,
        "title": data.title,
        "level": verdict.level,
        "headline": verdict.headline,
        "sentences": list(verdict.sentences),
        "healthy": data.evidence.healthy,
        "health_reasons": list(data.evidence.health_reasons),
        "measures": [_measure_facts(m) for m in _shown(data.evidence, verdict)],
        "distance_to_retraining": [asdict(one) for one in _distances(data.evidence, verdict)],
        "cost": data.cost,
        "documents": list(data.documents),
        "anchors": len(data.anchors),
        "stages": list(data.stages),
        "record": {name: dict(pairs) for name, pairs in data.record},
        "families": [asdict(family) for family in data.families],
        "not_tested": [*not_tested(data.measured_families), *data.not_measured],
    }


def _measure_facts(measure: Measure) -> dict[str, Any]:
    own = {k: getattr(measure, k) for k in ("key", "label", "group", "unit", "n", "baseline", "unlearned", "reference")}
    return own | {
        "way": measure.way,
        "way_interval": measure.interval if measure.way is not None else None,
        "residual": measure.residual,
        "residual_interval": measure.residual_interval if measure.way is not None else None,
        "undefined": measure.undefined,
        "cost": measure.cost if measure.group == "keep" else None,
        "steps": [list(pair) for pair in measure.steps],
    }
