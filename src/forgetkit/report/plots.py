"""Pictures as inline SVG that take their colours from the page (light, dark, print). Same input, same bytes.

Drawn by matplotlib with placeholder colours, which are then replaced by ``currentColor`` and the page's
accent; text
stays text. No `pyplot`: nothing is kept between calls.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import pairwise
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
_SOLID, _DOTTED = (0, ()), (0, (1, 1.6))
_SHORT = {"familiarity.completion": "completion", "familiarity.probability": "probability"}


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
    """The one picture: how far the forgetting went (x) at what cost elsewhere (y), step by step.

    x is the share of the way to the never-read reference when there is one, otherwise the measure itself;
    y the relative change of ``kept`` against the baseline in per cent, up = worse. Points: baseline,
    checkpoints with their steps, the unlearned model with its 95% intervals, the reference. None if there is
    nothing to draw.
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
    path = [(0, point(measure.baseline, origin))]
    path += [(step, point(v, others[step])) for step, v in measure.steps if step > 0 and step in others]
    last = point(measure.unlearned, kept.unlearned)
    if path[-1][1] != last:
        path.append((-1, last))
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(5.6, 3.7), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.axhline(0, color=INK, linewidth=0.6, alpha=0.35)
        spots = [spot for _, spot in path]
        axes.plot(*zip(*spots, strict=True), color=ACCENT, marker="o", markersize=4, alpha=0.9)
        _cross(axes, last, measure if with_reference else None, kept)
        _dot(axes, last, ACCENT, filled=True)
        _dot(axes, spots[0], INK, filled=True)
        drawn = [(spots[0], "read it (baseline)", INK), (last, "unlearned", ACCENT)]
        if measure.reference is not None and with_reference:
            known = kept.reference is not None
            spot = point(measure.reference, kept.reference if kept.reference is not None else origin)
            _dot(axes, spot, INK, filled=False)
            axes.axvline(100, color=INK, linewidth=1.0, linestyle=(0, (1, 2)), alpha=0.6)
            drawn.append((spot, "never read it" if known else "never read it (cost not known)", INK))
        heights = [y for _, y in spots] + [y for (_, y), _, _ in drawn]
        heights += [100 * bound for bound in kept.cost_interval or ()]
        margin = max(0.22 * (max(heights) - min(heights)), 0.4)
        axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.margins(x=0.16)
        if not with_reference:
            axes.invert_xaxis()
        way = f"forgetting: {measure.label},\n% of the way to never read →"
        axes.set_xlabel(way if with_reference else f"{measure.label} (lower →)")
        axes.set_ylabel(f"{kept.label}\nchange in %, up = worse")
        _name(axes, drawn, [(spot, f"step {step}") for step, spot in path[1:-1]])
        return _svg(figure, "trade", "Forgetting against cost, from the baseline to the unlearned model")


def _cross(axes: Any, spot: tuple[float, float], measure: Measure | None, kept: Measure) -> None:
    """The 95% intervals of the unlearned model's way and cost."""
    line = {"color": ACCENT, "linewidth": 1.0, "alpha": 0.7}
    if measure is not None and measure.interval is not None:
        axes.plot([100 * bound for bound in measure.interval], [spot[1], spot[1]], **line)
    if kept.cost_interval is not None:
        axes.plot([spot[0], spot[0]], [100 * bound for bound in kept.cost_interval], **line)


def _dot(axes: Any, spot: tuple[float, float], colour: str, *, filled: bool) -> None:
    face = colour if filled else PAPER
    look = {"markersize": 9, "markerfacecolor": face, "markeredgecolor": colour}
    axes.plot(*spot, marker="o", linestyle="none", zorder=3, **look)


def _name(
    axes: Any, drawn: Sequence[tuple[tuple[float, float], str, str]], steps: Sequence[tuple[tuple[float, float], str]]
) -> None:
    """Write names beside points where nothing is yet; a step without a free place stays without a name.

    Widths are estimated (half the font's size per character): the page's font is not known here.
    """
    axes.figure.draw_without_rendering()
    scale = 72 / axes.figure.dpi
    low, high = (scale * axes.transAxes.transform(corner) for corner in ((0, 0), (1, 1)))
    taken = [scale * axes.transData.transform(spot) for spot in [s for s, _, _ in drawn] + [s for s, _ in steps]]
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in taken]
    for line in axes.lines:  # along every line a row of small boxes, so that no name crosses one
        ends = scale * line.get_transform().transform(line.get_xydata())
        for a, b in pairwise(ends):
            n = max(2, int(max(abs(b - a)) / 4))
            boxes += [(x - 1, y - 1, x + 1, y + 1) for x, y in (a + (b - a) * i / n for i in range(n + 1))]
    for spot, text, colour, size, must in [
        *((s, t, c, 11.0, True) for s, t, c in drawn), *((s, t, INK, 9.0, False) for s, t in steps)
    ]:  # fmt: skip
        x, y = scale * axes.transData.transform(spot)
        width, height = 0.54 * size * len(text), 1.2 * size
        middle = min(max(x - width / 2, low[0] + 2), high[0] + 14 - width)
        right, left_of, below, above = x + 8, x - 8 - width, y - 7 - height, y + 7
        places = [(middle, below), (middle, above), (right, y - height / 2), (left_of, y - height / 2)]
        places += [(side, level) for side in (left_of, right) for level in (below, above)]
        places += [(left_of - 14, y - height / 2), (right + 14, y - height / 2)] if must else []
        inside = [p for p in places if low[0] <= p[0] and p[0] + width <= high[0] + 16 and low[1] <= p[1] <= high[1]]
        left, bottom = min(inside or places, key=lambda p: _meet((*p, p[0] + width, p[1] + height), boxes))
        if not must and (not inside or _meet((left, bottom, left + width, bottom + height), boxes)):
            continue
        boxes.append((left, bottom, left + width, bottom + height))
        shift = (left + width / 2 - x, bottom + 0.22 * size - y)
        look = {"ha": "center", "va": "baseline", "color": colour, "fontsize": size, "alpha": 1.0 if must else 0.75}
        axes.annotate(text, spot, shift, textcoords="offset points", annotation_clip=False, **look)


Box = tuple[float, float, float, float]


def _meet(box: Box, others: Sequence[Box]) -> int:
    """With how many other boxes (left, bottom, right, top) this one overlaps."""
    return sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in others)


def curve(measure: Measure, index: int) -> Markup | None:
    """One measure over the steps of the fine-tune, with lines for the baseline and the never-read
    reference."""
    points = list(measure.steps)
    if len(points) < 2:
        return None
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(3.7, 2.35), layout="constrained", facecolor="none")
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


def beside_the_paper(ours: Sequence[Measure]) -> Markup | None:
    """Share of the baseline's familiarity that is left, ours and the paper's, over the share of the fine-tune done.

    ours: the measures to draw, `familiarity.completion` and `familiarity.probability` or what stands in for them;
    those that do not begin above zero at step 0 are left out.
    """
    drawn = [m for m in ours if len(m.steps) > 1 and m.steps[0][0] == 0 and m.steps[0][1] > 0]
    if not drawn:
        return None
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        done = [100 * s / PAPER_STEPS[-1] for s in PAPER_STEPS]
        theirs = ((PAPER_COMPLETION, "paper: completion", _SOLID), (PAPER_PROBABILITY, "paper: probability", _DOTTED))
        for values, name, style in theirs:
            left = [100 * v / values[0] for v in values]
            axes.plot(done, left, color=INK, linewidth=1.3, alpha=0.7, linestyle=style, label=name)
        for measure in drawn:
            start, last = measure.steps[0][1], measure.steps[-1][0]
            style = _DOTTED if measure.key == "familiarity.probability" else _SOLID
            name = f"this run: {_SHORT.get(measure.key, measure.label)}"
            share, left = [100 * s / last for s, _ in measure.steps], [100 * v / start for _, v in measure.steps]
            axes.plot(share, left, color=ACCENT, marker="o", markersize=4, linestyle=style, label=name)
        axes.set_xlabel("% of the fine-tune done")
        axes.set_ylabel("% of the baseline's\nfamiliarity left")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", fontsize=10.5)
        return _svg(figure, "paper", "Familiarity left over the fine-tune: this run and the paper's Llama-2-7b-chat")
