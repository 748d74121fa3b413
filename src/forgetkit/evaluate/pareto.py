"""Several runs on one page: forgetting against utility with its Pareto front, and the table. Self-contained HTML.

Every point is one model of one run. A point is on the front if no other one forgets at least as much and keeps at
least as much, with more of one. The reference stands beside the front: it is what unlearning aims at, not a result of
it, and where a model forgets more than the reference, that is no merit.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forgetkit import __version__
from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.evaluate.compare import Table, load_results, run_names, suite_rows, to_text

FORGETTING = ("recall.probability", "familiarity.completion", "muse.verbmem.muse.f1", "memorization.verbatim.muse.f1")
UTILITY = ("utility.mean", "tofu.model_utility.tofu", "loss.heldout", "loss.neighbour", "loss.retain")
_INK, _ACCENT, _PAPER = "#010203", "#010204", "#010205"
_COLOURS = {_INK: "currentColor", _ACCENT: "var(--accent)", _PAPER: "var(--paper)"}


class Point(NamedTuple):
    """One model: x forgetting, y utility, as measured, with their standard errors where known."""

    run: str
    role: str
    x: float
    y: float
    x_error: float | None
    y_error: float | None


class Axis(NamedTuple):
    """A measure; worse +1: a higher value is harm (for forgetting: still knows)."""

    key: str
    label: str
    worse: int


def _measures(results: Mapping[str, Any]) -> dict[str, Axis]:
    found = {row["key"]: Axis(row["key"], row["label"], row["worse"]) for row in suite_rows(results)}
    return found | {m["key"]: Axis(m["key"], m["label"], m["worse"]) for m in results["measures"]}


def _cell(results: Mapping[str, Any], role: str, key: str) -> Mapping[str, Any]:
    own = results["models"][role]["measures"]
    if key in own:
        cell: Mapping[str, Any] = own[key]
        return cell
    row = next((row for row in suite_rows(results) if row["key"] == key), None)
    return {} if row is None else row["models"].get(role, {})


def _choose(every: Sequence[Mapping[str, Any]], asked: str | None, usual: Sequence[str], option: str) -> Axis:
    """The measure asked for; else the usual one that most models of all runs have, the first of equals."""
    known = {key: axis for results in every for key, axis in _measures(results).items()}
    if asked is not None:
        if asked not in known:
            remedy = suggest(asked, known) or "the first column of the table names them"
            raise ForgetkitError(f"unknown measure {asked!r}", option, remedy)
        return known[asked]

    def having(key: str) -> int:
        roles = [(results, role) for results in every for role in results["models"]]
        return sum(_cell(results, role, key).get("value") is not None for results, role in roles)

    best = max(usual, key=lambda key: (having(key), -usual.index(key)))
    return known.get(best, Axis(best, best, 1))


def points(every: Sequence[Mapping[str, Any]], names: Sequence[str], x: Axis, y: Axis) -> list[Point]:
    """Every model of every run that has both values."""
    found = []
    for results, name in zip(every, names, strict=True):
        for role in results["models"]:
            own, other = (_cell(results, role, axis.key) for axis in (x, y))
            if own.get("value") is not None and other.get("value") is not None:
                found.append(Point(name, role, own["value"], other["value"], own.get("error"), other.get("error")))
    return found


def front(found: Sequence[Point], x: Axis, y: Axis) -> list[Point]:
    """The points that no other one beats, from least to most forgetting; references aside, equal points once."""
    rivals = list({(p.x, p.y): p for p in found if p.role != "reference"}.values())

    def beats(a: Point, b: Point) -> bool:
        gains = (x.worse * (b.x - a.x), y.worse * (b.y - a.y))
        return min(gains) >= 0 and max(gains) > 0

    kept = [p for p in rivals if not any(beats(other, p) for other in rivals)]
    return sorted(kept, key=lambda p: -x.worse * p.x)


def page(paths: Sequence[Path], table: Table, forgetting: str | None = None, utility: str | None = None) -> str:
    """The page as text. table: of `compare.compare` for the same paths.

    Raises ForgetkitError for an unknown measure, with a suggestion.
    """
    every = [load_results(path) for path in paths]
    x = _choose(every, forgetting, FORGETTING, "--forgetting")
    y = _choose(every, utility, UTILITY, "--utility")
    found = points(every, run_names(paths), x, y)
    best = front(found, x, y)
    picture = _plot(found, best, x, y) if found else "<p>No model has both measures: nothing to draw.</p>"
    listed = ", ".join(f"{p.run}: {p.role}" for p in best) or "none"
    rows = to_text(table)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f'<td class="n">{html.escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return _PAGE.format(
        version=html.escape(__version__),
        picture=picture,
        front=html.escape(listed),
        x=html.escape(f"{x.label} ({x.key})"),
        y=html.escape(f"{y.label} ({y.key})"),
        head=head,
        body=body,
    )


def _plot(found: Sequence[Point], best: Sequence[Point], x: Axis, y: Axis) -> str:
    """Right is more forgetting, up is more utility, whatever way the measures point."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colours = {f"{part}color": _INK for part in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.")}
    settings = {"svg.hashsalt": "forgetkit", "svg.fonttype": "none", "text.parse_math": False, "font.size": 11}
    with matplotlib.rc_context({**colours, **settings, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.8, 3.7), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        if len(best) > 1:
            axes.plot([p.x for p in best], [p.y for p in best], color=_ACCENT, linewidth=1.4, zorder=1)
        places: dict[tuple[float, float], list[Point]] = {}
        for p in found:
            places.setdefault((p.x, p.y), []).append(p)
        for same in places.values():
            p = next((one for one in same if one in best), same[0])
            colour = _ACCENT if p in best else _INK
            face = _PAPER if p.role == "reference" else colour
            axes.errorbar(p.x, p.y, p.y_error, p.x_error, color=colour, elinewidth=0.7, alpha=0.6, fmt="none")
            axes.plot(p.x, p.y, "o", markersize=7, markerfacecolor=face, markeredgecolor=colour, zorder=3)
            axes.annotate(_name(same), (p.x, p.y), (6, 6), textcoords="offset points", fontsize=9)
        axes.margins(0.2)
        if x.worse > 0:
            axes.invert_xaxis()
        if y.worse > 0:
            axes.invert_yaxis()
        axes.set_xlabel(f"forgetting: {x.label} →")
        axes.set_ylabel(f"utility: {y.label} →")
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    for placeholder, colour in _COLOURS.items():
        text = text.replace(placeholder, colour)
    return text.replace("<svg ", '<svg role="img" aria-label="Forgetting against utility" ', 1)


def _name(same: Sequence[Point]) -> str:
    """One label for the models of one place: runs that start from the same model share its point."""
    told = []
    for role in dict.fromkeys(p.role for p in same):
        runs = [p.run for p in same if p.role == role]
        told.append(f"{runs[0]}: {role}" if len(runs) == 1 else f"{role} of {len(runs)} runs")
    return "\n".join(told)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="forgetkit {version}">
<title>forgetkit compare</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --soft: #555; --line: #ddd; --accent: #0b5fa5; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #16181b; --ink: #e6e6e6; --soft: #a3a8ae; --line: #3a3d42; --accent: #7ab8f0; }}
}}
@media print {{ :root {{ --paper: #fff; --ink: #000; --soft: #444; --accent: #0b5fa5; }}
  .scroll {{ overflow: visible; }} }}
body {{ margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
figure {{ margin: 1rem 0; max-width: 44rem; }}
svg {{ width: 100%; max-width: 34rem; height: auto; font-family: inherit; }}
figcaption, .note {{ color: var(--soft); font-size: 0.88rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<main>
<h1>Runs side by side</h1>
<figure>{picture}<figcaption>Right: more forgetting. Up: more utility. Bars: standard errors. Line: the models that no
other one beats on both (the never-read reference, hollow, is left out: it is the aim). Runs compare only where they
were measured on the same texts and probes.</figcaption></figure>
<p>Forgetting: {x}. Utility: {y}. On the front: {front}.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="note">Made by forgetkit {version}. "-": not measured, or withheld because the model is not healthy.</p>
</main>
</body>
</html>
"""
