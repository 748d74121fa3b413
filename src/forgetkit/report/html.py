"""From what was collected to one self-contained page: no script, no request, every text escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from forgetkit import __version__
from forgetkit.evaluate.compare import percent
from forgetkit.report import plots
from forgetkit.report.collect import Anchor, Collected, Completion, Token
from forgetkit.report.preview import fragment
from forgetkit.report.verdict import NOT_TESTED, Evidence, Measure, Verdict, judge, number

TOP_ANCHORS = 50
WORST = 10
SHADES = (0.05, 0.25, 0.5, 0.8)
"""Upper bounds of the lower four of the five shades of a token's probability."""
PAPER_BENCHMARKS = (
    ("ARC-C", 0.440, 0.414), ("ARC-E", 0.744, 0.724), ("BoolQ", 0.807, 0.796),
    ("HellaSwag", 0.577, 0.557), ("PIQA", 0.767, 0.760), ("WinoGrande", 0.663, 0.657),
)  # fmt: skip
"""Utility in Eldan & Russinovich 2023, step 0 and step 120, Llama-2-7b-chat."""


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
    page = environment.get_template("page.html.j2").render(
        title=data.title,
        version=__version__,
        verdict=verdict,
        redacted=data.redacted,
        rows=[_row(m) for m in shown],
        has_reference=has_reference,
        places=data.places,
        health=_health(data),
        documents=data.documents,
        stages=data.stages,
        record=data.record,
        untested=(*NOT_TESTED, *data.not_measured),
        preview=fragment(data.preview) if data.preview else "",
        completions=[_completion(c) for c in data.completions],
        shaded=any(t.probability is not None for c in data.completions for _, side in c.sides for t in side),
        worst=_worst(data, verdict),
        anchors=_anchors(data.anchors),
        paper={
            "steps": plots.PAPER_STEPS,
            "completion": plots.PAPER_COMPLETION,
            "probability": plots.PAPER_PROBABILITY,
            "benchmarks": PAPER_BENCHMARKS,
        },
        **_pictures(shown, verdict),
    )
    return page.replace("\r", "").rstrip("\n") + "\n"


def _shown(evidence: Evidence, verdict: Verdict) -> tuple[Measure, ...]:
    """The measures a reader may see: forgetting only where the verdict gives scores."""
    forget = evidence.group("forget") if verdict.scores else ()
    return (*forget, *evidence.group("keep"))


def _row(measure: Measure) -> dict[str, Any]:
    """Cells of the table; ``last`` is the way there, or the change where there is no way or none is
    wanted."""
    way, bar, bounds = measure.way, None, ""
    if measure.group == "keep":
        last = "not measured" if measure.cost is None else f"{measure.cost * 100:+.1f}%"
        if measure.cost_interval is not None:
            bounds = "{:+.1f} to {:+.1f}".format(*(100 * bound for bound in measure.cost_interval))
    elif way is not None:
        last, bar = percent(way), round(min(max(way, 0.0), 1.0) * 100)
        if measure.interval is not None:
            bounds = " to ".join(percent(bound) for bound in measure.interval)
    elif measure.reference is None and measure.change is not None:
        last = f"{measure.change * 100:+.0f}%"
    else:
        last = "cannot tell"
    return {
        "group": measure.group,
        "label": measure.label,
        "unit": measure.unit,
        "n": measure.n,
        "main": measure.main,
        "baseline": number(measure.baseline),
        "unlearned": number(measure.unlearned),
        "reference": number(measure.reference),
        "last": last.replace("-", "−"),
        "bounds": bounds.replace("-", "−"),
        "bar": bar,
    }


def _pictures(shown: Sequence[Measure], verdict: Verdict) -> dict[str, Any]:
    forget = [m for m in shown if m.group == "forget"]
    keep = [m for m in shown if m.group == "keep"]
    trade = beside = None
    if forget and keep:
        with_steps = [m for m in keep if len(m.steps) > 1]
        trade = plots.forgetting_against_utility(forget[0], (with_steps or keep)[0])
    if forget and forget[0].key == "recall.probability":
        beside = plots.beside_the_paper(forget[0].steps, forget[0].label)
    stepped = [m for m in shown if len(m.steps) > 1]
    steps = sorted({s for m in stepped for s, _ in m.steps})
    table = [(m.label, [number(v) if (v := dict(m.steps).get(s)) is not None else "" for s in steps]) for m in stepped]
    contents = [("numbers", "The numbers")]
    contents += [("steps", "Along the fine-tune")] if stepped else []
    contents += [("labels", "Labels"), ("completions", "Side by side"), ("anchors", "Anchors")]
    contents += [("untested", "Not tested"), ("record", "What was done")]
    return {
        "trade": trade,
        "beside": beside,
        "curves": [c for i, m in enumerate(stepped) if (c := plots.curve(m, i)) is not None],
        "step_table": {"steps": steps, "rows": table} if stepped else None,
        "contents": contents,
    }


def _health(data: Collected) -> dict[str, Any] | None:
    if not data.health:
        return None
    columns = [name for name in ("baseline", "unlearned", "reference") if any(name in v for v in data.health.values())]
    return {
        "columns": ["never read" if c == "reference" else c for c in columns],
        "rows": [(name, [number(values.get(c)) for c in columns]) for name, values in data.health.items()],
    }


def _completion(completion: Completion) -> dict[str, Any]:
    sides = [(name, [_token(t) for t in tokens]) for name, tokens in completion.sides]
    for _, tokens in sides:
        if tokens:
            tokens[0]["text"] = tokens[0]["text"].lstrip(" ")
    return {"prompt": completion.prompt.strip(), "sides": sides}


def _token(token: Token) -> dict[str, Any]:
    if token.probability is None:
        return {"text": token.text, "shade": None, "note": ""}
    note = f"probability {token.probability:.2f}"
    if token.alternatives:
        others = ", ".join(f"{t.strip() or 'space'} {p:.2f}" for t, p in token.alternatives)
        note += f"; most probable: {others}"
    return {"text": token.text, "shade": sum(token.probability >= bound for bound in SHADES), "note": note}


def _worst(data: Collected, verdict: Verdict) -> list[dict[str, str]]:
    """The probes with the most left above the reference (or above zero without one)."""
    if not verdict.scores:
        return []
    left = [(p.unlearned - (p.reference or 0.0), p) for p in data.probes if p.unlearned is not None]
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
        "documents": list(data.documents),
        "anchors": len(data.anchors),
        "stages": list(data.stages),
        "record": {name: dict(pairs) for name, pairs in data.record},
        "not_tested": [*NOT_TESTED, *data.not_measured],
    }


def _measure_facts(measure: Measure) -> dict[str, Any]:
    own = {k: getattr(measure, k) for k in ("key", "label", "group", "unit", "n", "baseline", "unlearned", "reference")}
    return own | {
        "way": measure.way,
        "way_interval": measure.interval if measure.way is not None else None,
        "cost": measure.cost if measure.group == "keep" else None,
        "steps": [list(pair) for pair in measure.steps],
    }
