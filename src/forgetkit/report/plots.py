"""Pictures as inline SVG that take their colours from the page (light, dark, print). Same input, same bytes.

Drawn by matplotlib with placeholder colours, which are then replaced by ``currentColor`` and the page's
accent; text
stays text. No `pyplot`: nothing is kept between calls.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forgetkit.report.verdict import Measure

INK, ACCENT, PAPER = "#010203", "#010204", "#010205"
_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", PAPER: "var(--paper)"}
_RC: dict[str, Any] = {
    "svg.hashsalt": "forgetkit",
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,
}

PAPER_STEPS = (0, 20, 40, 60, 80, 100, 120)
PAPER_COMPLETION = (0.290, 0.040, 0.020, 0.017, 0.007, 0.007, 0.007)
PAPER_PROBABILITY = (0.244, 0.062, 0.022, 0.012, 0.011, 0.008, 0.006)
"""Familiarity in Eldan & Russinovich 2023 (arXiv 2310.02238), Llama-2-7b-chat."""


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure as a bare ``<svg>`` element for inlining, with ids of its own and the page's colours and
    font."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:bold |(\d00) )?([\d.]+)px [^;\"]+", _font, text)
    for placeholder, colour in _COLOURS.items():
        text = text.replace(placeholder, colour)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    label = escape(title)
    text = text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{label}" ', 1)
    return Markup(re.sub(r"\n\s*", "\n", text).strip())


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match.group(1)}; " if match.group(1) else ""
    return f"{weight}font-size: {match.group(2)}px"


def forgetting_against_utility(measure: Measure, kept: Measure) -> Markup | None:
    """The one picture: how far the recall went (x) at what cost elsewhere (y), step by step.

    x is the share of the way to the never-read reference when there is one, otherwise the measure itself;
    y the relative change of ``kept`` against the baseline in per cent, up = worse. None if there is nothing
    to draw.
    """
    if measure.baseline is None or measure.unlearned is None or kept.unlearned is None or not kept.baseline:
        return None
    origin = kept.baseline
    with_reference = measure.way is not None

    def point(value: float, other: float) -> tuple[float, float]:
        way = measure.way_at(value)
        harm = 100 * kept.worse * (other - origin) / abs(origin)
        return (100 * way if way is not None else value), harm

    others = dict(kept.steps)
    path = [point(measure.baseline, origin)]
    path += [point(v, others[s]) for s, v in measure.steps if s > 0 and s in others]
    last = point(measure.unlearned, kept.unlearned)
    if path[-1] != last:
        path.append(last)
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.axhline(0, color=INK, linewidth=0.6, alpha=0.35)
        xs, ys = zip(*path, strict=True)
        axes.plot(xs, ys, color=ACCENT, marker="o", markersize=4, alpha=0.9)
        _dot(axes, path[0], "read it (baseline)", INK, filled=True, align="left")
        _dot(axes, last, "unlearned", ACCENT, filled=True)
        drawn = list(path)
        if measure.reference is not None and with_reference:
            known = kept.reference is not None
            spot = point(measure.reference, kept.reference if kept.reference is not None else origin)
            _dot(axes, spot, "never read it" if known else "never read it (cost not known)", INK, filled=False)
            drawn.append(spot)
        low, high = min(y for _, y in drawn), max(y for _, y in drawn)
        margin = max(0.25 * (high - low), 0.4)
        axes.set_ylim(low - margin, high + 1.6 * margin)
        axes.margins(x=0.14)
        if not with_reference:
            axes.invert_xaxis()
        axes.set_xlabel("forgetting: % of the way to never read →" if with_reference else f"{measure.label} (lower →)")
        axes.set_ylabel(f"{kept.label}\nchange in %, up = worse")
        return _svg(figure, "trade", "Forgetting against cost, from the baseline to the unlearned model")


def _dot(axes: Any, spot: tuple[float, float], label: str, colour: str, *, filled: bool, align: str = "center") -> None:
    face = colour if filled else PAPER
    axes.plot(
        *spot,
        marker="o",
        markersize=9,
        markerfacecolor=face,
        markeredgecolor=colour,
        linestyle="none",
        zorder=3,
    )
    # The path of the fine-tune runs above and left of its ends, so labels stand below.
    shift = -4 if align == "left" else 0
    axes.annotate(label, spot, (shift, -19), textcoords="offset points", ha=align, color=colour, fontsize=11)


def curve(measure: Measure, index: int) -> Markup | None:
    """One measure over the steps of the fine-tune, with lines for the baseline and the never-read
    reference."""
    points = list(measure.steps)
    if len(points) < 2:
        return None
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        _levels(axes, measure, [v for _, v in points])
        axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=4)
        axes.set_title(measure.label)
        axes.set_xlabel("step")
        if measure.unit:
            axes.set_ylabel(measure.unit)
        axes.margins(y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure, f"curve{index}", f"{measure.label} over the steps of the fine-tune")


def _levels(axes: Any, measure: Measure, values: Sequence[float]) -> None:
    """Horizontal lines for baseline and never-read reference, named to the right and kept apart where they
    meet."""
    lines = [(v, n, s) for v, n, s in (
        (measure.baseline, "baseline", (0, (5, 3))), (measure.reference, "never read", (0, (1, 2)))
    ) if v is not None]  # fmt: skip
    everything = [*values, *(v for v, _, _ in lines)]
    height = max(everything) - min(everything) or 1.0
    close = len(lines) == 2 and abs(lines[0][0] - lines[1][0]) < 0.14 * height
    for value, name, style in lines:
        axes.axhline(value, color=INK, linewidth=1.1, linestyle=style, alpha=0.75)
        upper = value == max(v for v, _, _ in lines)
        shift = (5 if upper else -5) if close else 0
        place = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "ha": "left",
            "va": "center",
        }
        axes.annotate(name, (1, value), (5, shift), fontsize=10, alpha=0.85, **place)


def beside_the_paper(steps: Sequence[tuple[int, float]], label: str) -> Markup | None:
    """Share of the baseline's recall that is left, ours and the paper's, over the share of the fine-tune
    done."""
    if len(steps) < 2 or steps[0][0] != 0 or steps[0][1] <= 0 or steps[-1][0] <= 0:
        return None
    last, start = steps[-1][0], steps[0][1]
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        done = [100 * s / PAPER_STEPS[-1] for s in PAPER_STEPS]
        theirs = (
            (PAPER_COMPLETION, "paper: completion", (0, (5, 3))),
            (PAPER_PROBABILITY, "paper: probability", (0, (1, 2))),
        )
        for values, name, style in theirs:
            left = [100 * v / values[0] for v in values]
            axes.plot(done, left, color=INK, linewidth=1.3, alpha=0.75, linestyle=style, label=name)
        ours = [100 * v / start for _, v in steps]
        share = [100 * s / last for s, _ in steps]
        axes.plot(share, ours, color=ACCENT, marker="o", markersize=4, label=f"this run: {label}")
        axes.set_xlabel("% of the fine-tune done")
        axes.set_ylabel("% of the baseline's\nfamiliarity left")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", fontsize=10.5)
        return _svg(figure, "paper", "Familiarity left over the fine-tune: this run and the paper's Llama-2-7b-chat")
