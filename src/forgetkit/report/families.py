"""What a suite adds to the page: its families of measures, and the utility tasks over the steps of the fine-tune.

Reads `suites` and `curve` of ``results.json`` as tolerantly as `results` does, and puts them into words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forgetkit.report.preview import clean
from forgetkit.report.results import ROLES, integer, items, mapping, real
from forgetkit.report.verdict import number

TITLES = {
    "familiarity": "Familiarity, as in the paper",
    "memorization": "Memorisation: does the text itself come out?",
    "knowledge": "Knowledge: is the true answer preferred?",
    "privacy": "Privacy: does it show that the text was trained on?",
    "utility": "Utility tasks, through lm-eval",
    "tofu": "TOFU",
    "muse": "MUSE",
    "wmdp": "WMDP",
}


@dataclass(frozen=True)
class Value:
    """A number as it is shown, and the line below it: its error or interval, p, and what was shown by it."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class Row:
    """One measure: every model's value, and the unlearned model's differences from the two others."""

    label: str
    about: str
    models: dict[str, Value]
    apart: dict[str, Value]


@dataclass(frozen=True)
class Family:
    """A family's rows, or a sentence on why it has none (`missing`).

    ways: MUSE's six, as cells of text; notes: what the rows leave open.
    """

    name: str
    title: str
    missing: str
    rows: tuple[Row, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class UtilitySteps:
    """Accuracy per utility task (rows) at every step (columns), and the last one minus the first."""

    steps: tuple[int, ...]
    rows: tuple[tuple[str, str, tuple[str, ...], Value], ...]


def families(results: Mapping[str, Any], scores: bool) -> tuple[Family, ...]:
    """Every family of the suite; measures of forgetting only where the verdict gives `scores`."""
    out = []
    for name, found in mapping(mapping(results.get("suites")).get("families")).items():
        own = mapping(found)
        shown = [row for row in map(mapping, items(own.get("rows"))) if scores or row.get("group") == "keep"]
        rows = tuple(row for one in shown if (row := _row(one)) is not None)
        ways = _ways(own) if scores else ()
        missing = own.get("missing")
        why = "" if rows or ways else "Left out, because the model's health is bad or unknown."
        if isinstance(missing, str) and not missing.startswith("withheld"):
            why = f"Not measured: {clean(missing)}."
        reasons = [
            clean(reason)
            for row in shown
            for cell in mapping(row.get("models")).values()
            if isinstance(reason := mapping(cell).get("reason"), str) and not reason.startswith("withheld")
        ]
        out.append(
            Family(
                clean(str(name)),
                TITLES.get(str(name), clean(str(name))),
                why,
                rows,
                ways,
                tuple(dict.fromkeys(reasons)) if rows else (),
            )
        )
    return tuple(out)


def measured(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the families of which anything was measured."""
    found = mapping(mapping(results.get("suites")).get("families"))
    return tuple(str(name) for name, own in found.items() if mapping(own).get("missing") is None and mapping(own))


def statistics(results: Mapping[str, Any]) -> str:
    """How the rows' intervals and p-values were made."""
    found = mapping(mapping(results.get("suites")).get("statistics"))
    resamples, margin, tests = integer(found.get("resamples")), real(found.get("margin")), mapping(found.get("tests"))
    if resamples is None or margin is None:
        return ""
    asked = {
        "difference": "against the baseline",
        "to_reference": "against the never-read model",
        "attack": "of attacks",
    }
    counted = [f"{n} {what}" for name, what in asked.items() if (n := integer(tests.get(name)))]
    told = f"±: standard error. Differences: paired by item, 95% intervals from {resamples:,} resamples of clusters."
    told += f" p: adjusted by Holm over all tests ({', '.join(counted)})." if counted else ""
    alike = integer(tests.get("equivalence"))
    return told + (f" “Shown the same”: closer than {margin:g}; {alike} equivalence tests." if alike else "")


def _row(row: Mapping[str, Any]) -> Row | None:
    models = {role: mapping(mapping(row.get("models")).get(role)) for role in ROLES}
    values = {role: real(cell.get("value")) for role, cell in models.items()}
    if all(value is None for value in values.values()):
        return None
    unit, chance = clean(str(row.get("unit") or "")), real(row.get("chance"))
    about = [unit] if unit else []
    about += [size] if (size := _size(models.values())) else []
    about += [f"chance\u00a0{number(chance)}"] if chance is not None else []
    same = mapping(row.get("equivalence"))
    return Row(
        clean(str(row.get("label") or row.get("key"))),
        ", ".join(about),
        {role: _value(cell) for role, cell in models.items()},
        {
            "baseline": _apart(mapping(row.get("difference")), same, "baseline"),
            "reference": _apart(mapping(row.get("to_reference")), same, "reference"),
        },
    )


def _size(cells: Any) -> str:
    for cell in cells:
        n, groups = integer(cell.get("n")), integer(cell.get("clusters"))
        sides = [mapping(cell.get(side)) for side in ("members", "nonmembers")]
        if all(sides):
            return "n\u00a0=\u00a0{:,}\u00a0+\u00a0{:,}".format(*(integer(one.get("units")) or 0 for one in sides))
        if n:
            of = f" in {groups:,} clusters" if groups is not None and groups != n else ""
            return f"n\u00a0=\u00a0{n:,}{of}"
    return ""


def _value(cell: Mapping[str, Any]) -> Value:
    value = real(cell.get("value"))
    if value is None:
        withheld = str(cell.get("reason") or "").startswith("withheld")
        return Value("withheld" if withheld else "–")
    low, high, error = (real(cell.get(name)) for name in ("low", "high", "error"))
    below = [f"± {number(error)}"] if error is not None else []
    below += [f"{number(low)} to {number(high)}"] if error is None and low is not None and high is not None else []
    return Value(_minus(number(value)), _minus(" · ".join([*below, *_p(cell)])))


def _apart(cell: Mapping[str, Any], same: Mapping[str, Any], role: str) -> Value:
    value = real(cell.get("value"))
    if value is None:
        return Value("withheld" if str(cell.get("reason") or "").startswith("withheld") else "–")
    low, high, error = (real(cell.get(name)) for name in ("low", "high", "error"))
    below = [] if error is None else [f"±\u00a0{number(error)}"]
    below += [] if low is None or high is None else [f"{_signed(low)} to {_signed(high)}"]
    below += _p(cell)
    shown = same.get("equivalent_holm")
    if same.get("to") == role and isinstance(shown, bool):
        smallest, margin = real(same.get("smallest_margin")), real(same.get("margin"))
        few = not shown and smallest is not None and margin is not None and smallest > margin
        below.append("shown the same" if shown else "not shown the same" + (" (too few items)" if few else ""))
    return Value(_minus(_signed(value)), _minus(" · ".join(below)))


def _p(cell: Mapping[str, Any]) -> list[str]:
    p = real(cell.get("p_holm"))
    if p is None:
        return []
    return ["p\u00a0<\u00a0.001" if p < 0.001 else f"p\u00a0{p:.2f}" if p >= 0.01 else f"p\u00a0{p:.3f}"]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _ways(family: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """MUSE's six ways: meaning, value, 95% interval, the never-read model's, where it should go."""
    out = []
    for way in map(mapping, items(family.get("ways"))):
        value, other = mapping(way.get("value")), mapping(way.get("reference"))
        low, high = real(value.get("low")), real(value.get("high"))
        told = [real(one.get("value")) for one in (value, other)]
        shown = ["–" if one is None else _minus(number(one)) for one in told]
        bounds = "" if low is None or high is None else _minus(f"{number(low)} to {number(high)}")
        out.append((clean(str(way.get("meaning"))), shown[0], bounds, shown[1], clean(str(way.get("better")))))
    return tuple(out)


def utility_steps(results: Mapping[str, Any], last_step: int | None) -> UtilitySteps | None:
    """Accuracy of the utility tasks over the steps; None where it was not measured along the fine-tune.

    last_step: where the finished model stands, if that is behind the last snapshot.
    """
    curve: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in map(mapping, items(results.get("curve"))):
        step, own = integer(row.get("step")), {}
        for cell in map(mapping, items(row.get("utility"))):
            if cell.get("metric") == "acc" and real(cell.get("value")) is not None:
                own[str(cell.get("task"))] = cell
        if step is not None and own:
            curve[step] = own
    if len(curve) < 2:
        return None
    final = _final_tasks(results)
    if last_step is not None and last_step > max(curve) and final:
        curve[last_step] = final
    steps = tuple(sorted(curve))
    rows = []
    for task, first in curve[steps[0]].items():
        values = tuple(_three(curve[step].get(task)) for step in steps)
        delta = mapping(curve[steps[-1]].get(task, {}).get("delta"))
        change, error = real(delta.get("value")), real(delta.get("error"))
        told = Value("–") if change is None else Value(_minus(f"{change:+.3f}"))
        if change is not None and error is not None:
            told = Value(told.text, f"± {error:.3f}")
        about = [f"n\u00a0=\u00a0{n:,}" for n in [integer(first.get("n"))] if n]
        about += [f"chance\u00a0{chance:.3f}" for chance in [real(first.get("chance"))] if chance is not None]
        rows.append((clean(task), ", ".join(about), values, told))
    return UtilitySteps(steps, tuple(rows))


def _final_tasks(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The finished model's accuracy per task, from the suite's rows."""
    found = mapping(mapping(mapping(results.get("suites")).get("families")).get("utility"))
    out = {}
    for row in map(mapping, items(found.get("rows"))):
        kind, _, rest = str(row.get("key")).partition(".")
        task, _, metric = rest.partition(".")
        if kind == "utility" and metric == "acc":
            out[task] = mapping(mapping(row.get("models")).get("unlearned"))
    return out


def _three(cell: Mapping[str, Any] | None) -> str:
    value = None if cell is None else real(cell.get("value"))
    return "" if value is None else f"{value:.3f}"
