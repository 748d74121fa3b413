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
    reader looks for the run's name. Run names are made unique with #2, #3.
    """
    columns, found = ["measure"], []
    used: dict[str, int] = {}
    for path in paths:
        results = load_results(path)
        name = _run_name(path)
        used[name] = used.get(name, 0) + 1
        name = name if used[name] == 1 else f"{name}#{used[name]}"
        for role, model in results["models"].items():
            columns.append(f"{name}: {role}")
            found.append(model)
        columns.append(f"{name}: way to reference")
        found.append({"measures": results["way_to_reference"], "health": {"status": None}})
    rows: list[list[Cell]] = [["health", *(one["health"]["status"] for one in found)]]
    keys = dict.fromkeys(key for one in found for key in one["measures"])
    for key in keys:
        values: list[Cell] = [one["measures"].get(key, {}).get("value") for one in found]
        if any(value is not None for value in values):
            rows.append([key, *values])
    return Table(columns, rows)


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
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"


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
