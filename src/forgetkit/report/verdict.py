"""What may be said: measurements in, plain sentences and one level out. Pure; reads and writes nothing.

The words never go past the measurements: "approximate" always, no claim of removal, and no forgetting score
at all
when the model's health is bad or unknown, because a dead model forgets perfectly.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from forgetkit.evaluate.compare import percent

Level = Literal["not shown", "partial", "close to never read", "INVALID", "no reference"]
Group = Literal["forget", "keep"]

CLOSE_WAY = 0.90
"""'close to never read' needs every forgetting measure this far along the way from baseline to reference."""
PARTIAL_WAY = 0.25
"""'partial' needs at least one forgetting measure this far along the way; below it nothing is shown."""
OVERSHOOT_WAY = 1.10
"""Beyond this a measure went past the reference, which is itself a trace of unlearning, and not 'close'."""
CLOSE_COST = 0.02
"""'close to never read' needs every measure that should stay to be at most this much worse (relative to
baseline)."""
SMALL_COST = 0.01
"""Up to here a cost is called small in words."""
MANY = 3
"""More measures of forgetting than this are summed up in words: the first, the one furthest behind, the odd ones."""


def not_tested(families: Collection[str] = ()) -> tuple[str, ...]:
    """What is left open without an audit, where these families of a suite were measured; shown in full on the page."""
    choice = "" if "knowledge" in families else "multiple choice, "
    membership = "Membership inference: whether someone can tell that the text was trained on, or unlearned."
    if {"privacy", "muse"} & set(families):
        membership = "Stronger membership attacks than those measured: fitted to one text, or with many shadow models."
    return (
        "Relearning: whether a short fine-tune on a part of the text, or on other text, brings the rest back.",
        "Quantisation and other changes of the weights (4-bit, pruning, merging with the original model).",
        f"Persuasive, paraphrased, translated or role-play prompts, {choice}and soft prompts.",
        "What a probe can still read from the inner states of the model.",
        membership,
        "Knowledge of the target that the model took from other texts (summaries, sequels, quotations).",
    )


@dataclass(frozen=True)
class Measure:
    """One number for each model.

    ``group`` says whether it should move towards the reference ('forget') or stay at the baseline ('keep').
    ``worse`` is the sign of harm: +1 if a higher value is worse (loss), -1 if a lower one is (accuracy).
    ``noise`` is one standard error of the difference baseline - reference, when known; ``interval`` the 95%
    bounds
    of `way`, ``difference`` those of unlearned - baseline; ``undefined`` says why there is no way to tell,
    if the evaluation withheld it. ``steps``: (optimiser
    step, value) along the fine-tune. ``main`` False keeps a measure out of the sentences and the level.
    ``chance`` is the value of a model that guesses, where there is one.
    """

    key: str
    label: str
    group: Group
    baseline: float | None = None
    unlearned: float | None = None
    reference: float | None = None
    worse: int = 1
    unit: str = ""
    noise: float | None = None
    interval: tuple[float, float] | None = None
    difference: tuple[float, float] | None = None
    undefined: str = ""
    steps: tuple[tuple[int, float], ...] = ()
    main: bool = True
    n: int | None = None
    chance: float | None = None

    @property
    def way(self) -> float | None:
        """Share of the way from baseline to reference: (O - U) / (O - R); 1 = as if never read, 0 =
        untouched.

        This is 1 - NR of the normalised residual. None where a value is missing or where baseline and
        reference do
        not differ by two standard errors: such a measure cannot tell anything.
        """
        if self.unlearned is None or self.undefined:
            return None
        return self.way_at(self.unlearned)

    def way_at(self, value: float) -> float | None:
        """`way` for another value of the same measure, for instance at a step of the fine-tune."""
        if self.baseline is None or self.reference is None:
            return None
        gap = self.baseline - self.reference
        if abs(gap) <= 2 * (self.noise or 0.0) or abs(gap) < 1e-12:
            return None
        return (self.baseline - value) / gap

    @property
    def residual(self) -> float | None:
        """The normalised residual NR = (U - R) / (O - R) = 1 - way: 0 = as if never read, 1 = untouched."""
        return None if self.way is None else 1 - self.way

    @property
    def residual_interval(self) -> tuple[float, float] | None:
        """The 95% bounds of `residual`."""
        return None if self.interval is None else (1 - self.interval[1], 1 - self.interval[0])

    @property
    def change(self) -> float | None:
        """(U - O) / |O|, the relative change against the baseline; None where it cannot be computed."""
        if self.baseline is None or self.unlearned is None or self.baseline == 0:
            return None
        return (self.unlearned - self.baseline) / abs(self.baseline)

    @property
    def cost(self) -> float | None:
        """Relative harm against the baseline: +0.01 = one per cent worse. None where it cannot be
        computed."""
        return None if self.change is None else self.worse * self.change

    @property
    def cost_interval(self) -> tuple[float, float] | None:
        """The 95% bounds of `cost`, from those of the difference (the baseline's own error is not added)."""
        if self.difference is None or not self.baseline:
            return None
        low, high = sorted(self.worse * bound / abs(self.baseline) for bound in self.difference)
        return low, high


@dataclass(frozen=True)
class Distance:
    """Distance to retraining on one text: the unlearned model against a retrained one, over two retrained ones.

    ``what`` 'divergence': D = KL(R || U) / KL(R || R'); 1 = as close as another retrained model, more = farther.
    ``what`` 'agreement': the same of the share of equal top tokens; 1 = as another retrained model, less = farther.
    ``reason`` says why there is no value.
    """

    text: Literal["target", "heldout"]
    what: Literal["divergence", "agreement"]
    value: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything the verdict is made from. ``healthy`` is None where health was not measured."""

    measures: tuple[Measure, ...] = ()
    distances: tuple[Distance, ...] = ()
    healthy: bool | None = None
    health_reasons: tuple[str, ...] = ()
    documents: int | None = None
    tokens: int | None = None
    method: str = ""
    audited: bool = False

    def group(self, name: Group) -> tuple[Measure, ...]:
        """The measures of one group that have a value for the unlearned model."""
        return tuple(m for m in self.measures if m.group == name and m.unlearned is not None)


@dataclass(frozen=True)
class Verdict:
    """The level, its one-line headline, and the sentences in reading order; ``scores`` False withholds
    forgetting."""

    level: Level
    headline: str
    sentences: tuple[str, ...]
    scores: bool


def judge(evidence: Evidence) -> Verdict:
    """The verdict on `evidence`. Thresholds: the constants of this module."""
    if evidence.healthy is False:
        return _invalid(evidence)
    if evidence.healthy is None:
        return Verdict(
            "not shown",
            "Nothing is shown: the model's health was not measured.",
            (
                _what(evidence),
                "Without it no forgetting score is given: a broken model scores best.",
                *_costs(evidence),
            ),
            scores=False,
        )
    forget = [m for m in evidence.group("forget") if m.main]
    ways = [w for m in forget if (w := m.way) is not None]
    level: Level
    if not forget:
        level, headline = "not shown", "Nothing is shown: forgetting was not measured."
    elif all(m.reference is None for m in forget):
        level = "no reference"
        headline = "Approximate unlearning, measured against the baseline only."
    elif not ways:
        level, headline = "not shown", "Nothing is shown: these measures cannot tell the baseline from a model that never read the text."  # fmt: skip  # noqa: E501
    elif max(ways) < PARTIAL_WAY:
        level, headline = (
            "not shown",
            "Forgetting is not shown: the model is still close to the one that read the text.",
        )
    elif _is_close(ways, evidence):
        level = "close to never read"
        headline = "Approximate unlearning: on what was measured, close to a model that never read the text."
    else:
        level = "partial"
        headline = "Approximate and partial: part of the way to a model that never read the text."
    return Verdict(level, headline, _sentences(evidence, forget), scores=True)


def _is_close(ways: Sequence[float], evidence: Evidence) -> bool:
    """All measures far along the way, none past it, and nothing that should stay much worse or unmeasured."""
    costs = [m.cost for m in evidence.group("keep") if m.main]
    measured = [c for c in costs if c is not None]
    return (
        min(ways) >= CLOSE_WAY
        and max(ways) <= OVERSHOOT_WAY
        and bool(measured)
        and len(measured) == len(costs)
        and max(measured) <= CLOSE_COST
    )


def _invalid(evidence: Evidence) -> Verdict:
    reasons = "; ".join(evidence.health_reasons) or "the health check failed"
    sentences = (
        f"The health check failed: {reasons}.",
        "A broken model forgets everything, so no forgetting score is given. "
        "Lower the learning rate or the strength of the labels, and run again.",
        *_costs(evidence),
    )
    return Verdict("INVALID", "INVALID: the resulting model is not healthy.", sentences, scores=False)


def _sentences(evidence: Evidence, forget: Sequence[Measure]) -> tuple[str, ...]:
    out = [_what(evidence)]
    out += [_overview(forget)] if len(forget) > MANY else []
    out += [_how_far(m) for m in _told(forget)]
    if not forget:
        out.append("No measure of forgetting is in the results.")
    elif all(m.reference is None for m in forget):
        out.append(
            "There is no model that never read the text to compare with, so these numbers cannot say "
            "how low is low enough."
        )
    out += _retraining(evidence)
    out += _costs(evidence)
    if evidence.healthy:
        out.append("The health check passed: all values are finite, and the model did not fall into repetition.")
    if not evidence.audited:
        out.append(
            "No attack that brings knowledge back was tried. Methods of this kind are known to give much back after a "
            "short fine-tune on part of the text or after 4-bit quantisation; see what was not tested."
        )
    return tuple(out)


def _told(forget: Sequence[Measure]) -> list[Measure]:
    """The measures that get a sentence: all, or of many the first, the one furthest behind and the odd ones."""
    if len(forget) <= MANY:
        return list(forget)
    behind = min(ways, key=lambda pair: pair[0])[1] if (ways := _ways(forget)) else None
    return [m for i, m in enumerate(forget) if i == 0 or m is behind or (m.way is not None and m.way > OVERSHOOT_WAY)]


def _ways(forget: Sequence[Measure]) -> list[tuple[float, Measure]]:
    return [(way, m) for m in forget if (way := m.way) is not None]


def _overview(forget: Sequence[Measure]) -> str:
    """Of many measures: how many got how far, which one least, and which cannot tell."""
    ways = _ways(forget)
    if not ways:
        return f"Forgetting was measured in {len(forget)} ways; each is in the table below."
    least, behind = min(ways, key=lambda pair: pair[0])
    far = sum(way >= CLOSE_WAY for way, _ in ways)
    silent = [m.label for m in forget if m.way is None]
    rest = f" {_listed(silent)} cannot tell (the table says why)." if silent else ""
    return (
        f"Of {len(ways)} measures of forgetting, {far or 'none'} went at least {percent(CLOSE_WAY)} of the way to a "
        f"model that never read the text; furthest behind is {behind.label}, with {percent(least)}.{rest}"
    )


def _listed(names: Sequence[str]) -> str:
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return text[:1].upper() + text[1:]


def _retraining(evidence: Evidence) -> tuple[str, ...]:
    """One sentence on the distance to retraining on the target, where it was measured."""
    for one in evidence.distances:
        if one.text == "target" and one.what == "divergence" and one.value is not None:
            low_high = "" if one.interval is None else " (95% interval {:.1f} to {:.1f})".format(*one.interval)
            return (
                f"On the target its predictions are {one.value:.1f} times as far from a retrained model's "
                f"as those of another retrained model are{low_high}; 1.0 would be as close as retraining gets.",
            )
    return ()


def _what(evidence: Evidence) -> str:
    of = f" in {_count(evidence.documents, 'document')}" if evidence.documents else ""
    text = "a text" if evidence.tokens is None else f"{_count(evidence.tokens, 'token')}{of}"
    if not evidence.method:  # an evaluation alone does not know how the model was made
        return f"The model was measured against {text} that it should not know."
    return f"The model was made to un-read {text} by the method {evidence.method}, approximately."


def _how_far(measure: Measure) -> str:
    name = measure.label[:1].upper() + measure.label[1:]
    values = f"{number(measure.baseline)} to {number(measure.unlearned)}"
    unit = f" {measure.unit}" if measure.unit else ""
    if measure.reference is None:
        return f"{name} went from {values}{unit}."
    way = measure.way
    never = f"a model that never read the text has {number(measure.reference)}"
    if way is None:
        return f"{name} went from {values}{unit}; {never}. How far that is cannot be told: {measure.undefined or 'the two differ too little'}."  # fmt: skip  # noqa: E501
    if way > OVERSHOOT_WAY:
        return f"{name} went from {values}{unit}, past the {number(measure.reference)} of a model that never read the text, which can itself give the unlearning away."  # fmt: skip  # noqa: E501
    if way < 0:
        return f"{name} went from {values}{unit}, away from the {number(measure.reference)} of a model that never read the text."  # fmt: skip  # noqa: E501
    return f"{name} went from {values}{unit}; {never}. That is {percent(way)} of the way{_between(measure)}."


def _between(measure: Measure) -> str:
    if measure.interval is None:
        return ""
    low, high = measure.interval
    return f" (95% interval {percent(low)} to {percent(high)})"


def _costs(evidence: Evidence) -> tuple[str, ...]:
    kept = [m for m in evidence.group("keep") if m.main]
    if not kept:
        return ("What it cost elsewhere was not measured.",)
    parts = []
    for measure in kept:
        cost = measure.cost
        if cost is None:
            parts.append(f"{measure.label}: no baseline to compare with")
            continue
        word = "worse" if cost > 0 else "better"
        size = f"{abs(cost) * 100:.1f}%"
        parts.append(f"{measure.label} unchanged to 0.1%" if size == "0.0%" else f"{measure.label} {size} {word}")
    known = [c for m in kept if (c := m.cost) is not None]
    lead = "The cost is small" if known and len(known) == len(kept) and max(known) <= SMALL_COST else "The cost"
    return (f"{lead}: {'; '.join(parts)}.",)


def number(value: float | None) -> str:
    """A number for reading: three decimals from 1 to 10, two to three figures below; 'not measured' for
    None."""
    if value is None or not math.isfinite(value):
        return "not measured"
    size = abs(value)
    if value == int(value) and size < 1e15:
        return f"{value:,.0f}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.0001:
        return f"{value:.1e}"
    decimals = 3 if 1 <= size < 10 else 2 - math.floor(math.log10(size))
    return f"{value:.{max(0, decimals if size >= 0.01 else decimals - 1)}f}"


def _count(count: int | None, noun: str) -> str:
    if count is None:
        return f"an unknown number of {noun}s"
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
