"""Results side by side: several runs, or before / after / never read. Strings and rows; no terminal here."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from forgetkit.core.errors import ForgetkitError

_ROLE_NAMES = {"baseline": "baseline", "unlearned": "unlearned", "reference": "never read (reference)"}
_PLACES = (Path("6-evaluation") / "results.json", Path("results.json"))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Cell = str | float | None


class Table(NamedTuple):
    """Column names and rows of cells; None = no value."""

    columns: list[str]
    rows: list[list[Cell]]


def load_results(path: Path) -> dict[str, Any]:
    """Results of a run folder, an evaluation folder or a results.json file.

    Raises ForgetkitError where there are none, or not of this schema.
    """
    file = path if path.is_file() else next((path / p for p in _PLACES if (path / p).is_file()), None)
    if file is None:
        raise ForgetkitError("no results.json here", where=str(path), remedy="run forgetkit evaluate first")
    try:
        results = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except ValueError as error:
        raise ForgetkitError(f"not strict JSON ({error})", where=str(file), remedy="evaluate again") from error
    if not isinstance(results, dict) or results.get("schema_version") != 1:
        raise ForgetkitError("not a results file of schema version 1", where=str(file), remedy="evaluate again")
    return results


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def compare(paths: Sequence[Path]) -> Table:
    """Rows = health and measures; columns = 'run: role' for every model of every run, in the order given.

    Columns that hold the very same model on the same places and texts are kept once per run all the same: a
    reader looks for the run's name.
    """
    columns, found = ["measure"], []
    for path, name in zip(paths, run_names(paths), strict=True):
        results = load_results(path)
        suites = suite_rows(results)
        for role, model in results["models"].items():
            columns.append(f"{name}: {role}")
            more = {row["key"]: row["models"][role] for row in suites if role in row["models"]}
            found.append({"health": model["health"], "measures": more | model["measures"]})
        columns.append(f"{name}: way to reference")
        found.append({"measures": results["way_to_reference"], "health": {"status": None}})
    rows: list[list[Cell]] = [["health", *(one["health"]["status"] for one in found)]]
    keys = dict.fromkeys(key for one in found for key in one["measures"])
    for key in keys:
        values: list[Cell] = [one["measures"].get(key, {}).get("value") for one in found]
        if any(value is not None for value in values):
            rows.append([key, *values])
    return Table(columns, rows)


def suite_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All rows of the suites of one results file, each measure once; none without a suite."""
    families = (results.get("suites") or {}).get("families", {})
    return list({row["key"]: row for family in families.values() for row in family["rows"]}.values())


def run_names(paths: Sequence[Path]) -> list[str]:
    """A name per run, its folder's; made unique with #2, #3."""
    used: dict[str, int] = {}
    names = []
    for path in paths:
        name = _run_name(path)
        used[name] = used.get(name, 0) + 1
        names.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return names


def _run_name(path: Path) -> str:
    folder = path.resolve()
    if folder.name == "results.json":
        folder = folder.parent
    if folder.name == "6-evaluation":
        folder = folder.parent
    return folder.name


def to_csv(table: Table) -> str:
    """CSV text. A text cell that a spreadsheet would run as a formula gets an apostrophe; numbers stay."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_safe(cell) for cell in table.columns])
    for row in table.rows:
        writer.writerow([_safe(cell) for cell in row])
    return text.getvalue()


def _safe(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return "'" + cell if cell.startswith(_FORMULA) else cell
    return repr(float(cell))


def to_text(table: Table) -> list[list[str]]:
    """Rows of strings for a terminal, columns first."""
    return [list(table.columns), *([_shown(cell) for cell in row] for row in table.rows)]


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else number(cell)


def number(value: float) -> str:
    """Four decimals, or three figures with an exponent for very small values."""
    return f"{value + 0.0:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"


def percent(share: float) -> str:
    """0.914 -> '91%'. Rounds towards zero: 99.6% of the way is not told as all of it."""
    return f"{math.trunc(share * 100 + 1e-9)}%"


def before_after_table(results: Mapping[str, Any]) -> Table:
    """measure | baseline | unlearned | never read (reference) | way there, as strings.

    Rows without any value are left out. Measures that should stay show the change in per cent of the baseline
    in the last column instead.
    """
    models = results["models"]
    roles = [role for role in _ROLE_NAMES if role in models]
    with_reference = "reference" in models
    last = "way there" if with_reference else "change"
    rows: list[list[Cell]] = [["health", *(models[role]["health"]["status"] for role in roles), ""]]
    for metric in results["measures"]:
        cells = {role: models[role]["measures"][metric["key"]] for role in roles}
        if all(cell["value"] is None and not str(cell["reason"]).startswith("withheld") for cell in cells.values()):
            continue
        shown: list[Cell] = [_with_reason(cell) for cell in cells.values()]
        label = metric["label"] + (f", {metric['unit']}" if metric["unit"] else "")
        rows.append([label, *shown, _last_cell(metric, cells, results["way_to_reference"][metric["key"]])])
    return Table(["measure", *(_ROLE_NAMES[role] for role in roles), last], rows)


def _with_reason(cell: Mapping[str, Any]) -> str:
    if cell["value"] is not None:
        return number(cell["value"])
    return "withheld" if str(cell["reason"]).startswith("withheld") else "-"


def _last_cell(metric: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]], way: Mapping[str, Any]) -> str:
    before, after = (cells.get(role, {}).get("value") for role in ("baseline", "unlearned"))
    if metric["group"] == "forget" and way["value"] is not None:
        interval = "" if way["low"] is None else f" ({percent(way['low'])} to {percent(way['high'])})"
        return f"{percent(way['value'])}{interval}"
    if metric["key"].startswith("loss.") and before and after is not None:
        return f"{after / before - 1:+.1%}"
    return ""


def suite_tables(results: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """(title, table) of every family of the suite, as strings; a family that was not measured has its reason as title.

    measure | n | chance | every model's value and standard error | unlearned - baseline | unlearned - reference, each
    with its 95% interval and Holm's p | whether equivalence was shown.
    """
    told = results.get("suites")
    if not told:
        return []
    roles = [role for role in _ROLE_NAMES if role in results["models"]]
    columns = ["measure", "n (clusters)", "chance", *(_ROLE_NAMES[role].split(" (")[0] for role in roles)]
    columns += ["- baseline (95%), p"] if {"baseline", "unlearned"} <= set(roles) else []
    columns += ["- never read (95%), p"] if {"reference", "unlearned"} <= set(roles) else []
    columns += ["same within margin"] if len(columns) > 3 + len(roles) else []
    tables = []
    for name, family in told["families"].items():
        if not any(_told(row) for row in family["rows"]):
            tables.append((f"{name}: not measured ({family['missing']})", Table(columns, [])))
            continue
        rows = [_suite_row(row, roles, columns) for row in family["rows"] if _told(row)]
        tables.append((name, Table(columns, rows)))
        if family.get("ways"):
            tables.append(("muse: the six ways", _ways_table(family["ways"])))
    return tables


def _ways_table(ways: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = []
    for way in ways:
        told, other = way["value"], way["reference"]["value"]
        bounds = "" if told["low"] is None else f" ({told['low']:.3g} to {told['high']:.3g})"
        value = "-" if told["value"] is None else f"{told['value']:.1f}{bounds}"
        rows.append([way["meaning"], value, "-" if other is None else f"{other:.1f}", way["better"]])
    return Table(["way (MUSE's units)", "unlearned (95%)", "never read", "better"], rows)


def _told(row: Mapping[str, Any]) -> bool:
    return any(
        cell["value"] is not None or str(cell["reason"]).startswith("withheld") for cell in row["models"].values()
    )


def _suite_row(row: Mapping[str, Any], roles: Sequence[str], columns: Sequence[str]) -> list[Cell]:
    cells = [row["models"][role] for role in roles]
    sized = next((cell for cell in cells if cell["n"]), None)
    label = row["label"] + (f", {row['unit']}" if row["unit"] else "")
    size = "-" if sized is None else f"{sized['n']} ({sized['clusters']})"
    if sized is not None and "members" in sized:
        sides = sized["members"], sized["nonmembers"]
        size = "{}+{} ({}+{})".format(*(side[what] for what in ("units", "clusters") for side in sides))
    shown: list[Cell] = [label, size, "" if row["chance"] is None else number(row["chance"])]
    for cell in cells:
        spread = f" ±{number(cell['error'])}" if cell["error"] is not None else ""
        if not spread and cell["value"] is not None and cell["low"] is not None:
            spread = f" ({cell['low']:.3g} to {cell['high']:.3g})"
        p = f", p {cell['p_holm']:.2g}" if cell.get("p_holm") is not None else ""
        shown.append(_with_reason(cell) + spread + p)
    if "- baseline (95%), p" in columns:
        shown.append(_interval(row["difference"]))
    if "- never read (95%), p" in columns:
        shown.append(_interval(row["to_reference"]))
    if "same within margin" in columns:
        verdict = row["equivalence"].get("equivalent_holm")
        shown.append("" if verdict is None else _shown_same(row["equivalence"]))
    return shown


def _shown_same(test: Mapping[str, Any]) -> str:
    if test["equivalent_holm"]:
        return f"as {test['to']}"
    smallest = test["smallest_margin"]
    few = smallest is not None and smallest > test["margin"]
    return f"not shown: {test['to']}" + (f" (too few for less than {smallest:.2g})" if few else "")


def _interval(told: Mapping[str, Any]) -> str:
    if told["value"] is None:
        return "withheld" if str(told["reason"]).startswith("withheld") else "-"
    bounds = "" if told["low"] is None else f" ({told['low']:+.3g} to {told['high']:+.3g})"
    error = "" if told["error"] is None else f" ±{told['error']:.2g}"
    p = "" if told["p_holm"] is None else f", p {told['p_holm']:.2g}"
    return f"{told['value']:+.3g}{error}{bounds}{p}"


def suite_notes(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the tables must know: tests, margin, and what could not be measured."""
    told = results.get("suites")
    if not told:
        return []
    statistics, tests = told["statistics"], told["statistics"]["tests"]
    notes = [
        f"±: standard error. Intervals: 95%, {statistics['resamples']:,} resamples of clusters. p: Holm over "
        f"{tests['difference']} tests against the baseline, {tests['to_reference']} against the reference, "
        f"{tests['attack']} attacks; same within margin: {tests['equivalence']} equivalence tests, margin "
        f"{statistics['margin']:g}, at least {statistics['fewest_clusters']} clusters."
    ]
    for name, family in told["families"].items():
        if family["missing"] is None:
            reasons = {
                str(cell["reason"]) for row in family["rows"] for cell in row["models"].values() if cell["reason"]
            }
            notes += [f"{name}: {reason}" for reason in sorted(reasons)]
    return notes
