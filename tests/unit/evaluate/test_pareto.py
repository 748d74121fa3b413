from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.compare import compare, to_csv
from forgetkit.evaluate.pareto import Axis, Point, front, page

FORGET = {"key": "recall.probability", "label": "anchor recall", "group": "forget", "unit": "", "worse": 1}
KEEP = {"key": "loss.heldout", "label": "loss on held-out text", "group": "keep", "unit": "nats/token", "worse": 1}
X, Y = Axis("x", "x", 1), Axis("y", "y", 1)


def cell(value: float | None) -> dict[str, Any]:
    reason = None if value is not None else "withheld: the model is not healthy"
    return {"value": value, "error": None if value is None else 0.01, "n": 3, "reason": reason}


def write(folder: Path, models: dict[str, tuple[float | None, float | None]], utility: float | None = None) -> Path:
    """A run's results: role -> (recall, held-out loss); `utility` of every model where the suite was measured."""
    row = {
        "key": "utility.mean",
        "label": "mean of 7 utility tasks (acc)",
        "group": "keep",
        "unit": "",
        "worse": -1,
        "models": {role: cell(utility) for role in models},
    }
    results = {
        "schema_version": 1,
        "measures": [FORGET, KEEP],
        "models": {
            role: {"health": {"status": "healthy"}, "measures": {FORGET["key"]: cell(x), KEEP["key"]: cell(y)}}
            for role, (x, y) in models.items()
        },
        "way_to_reference": {},
        "suites": None if utility is None else {"families": {"utility": {"rows": [row]}, "again": {"rows": [row]}}},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_front_by_hand() -> None:
    def point(run: str, x: float, y: float, role: str = "unlearned") -> Point:
        return Point(run, role, x, y, None, None)

    a, b, c, d = point("a", 0.5, 1.0), point("b", 0.1, 2.0), point("c", 0.1, 3.0), point("d", 0.4, 1.5)
    reference = point("r", 0.0, 0.5, "reference")
    assert front([c, b, a, d, reference], X, Y) == [a, d, b]  # c forgets as much as b at a higher cost
    assert front([a, a], X, Y) == [a]
    higher = Axis("y", "y", -1)
    assert front([a, b, c, d], X, higher) == [c]  # where more is better, c beats all
    assert front([], X, Y) == []


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    one = write(tmp_path / "<b>one", {"baseline": (0.5, 1.0), "unlearned": (0.1, 1.1), "reference": (0.05, 0.9)})
    two = write(tmp_path / "two", {"unlearned": (0.2, 1.5)})
    runs = [one, two]
    text = page(runs, compare(runs))
    assert text == page(runs, compare(runs))
    assert "<svg" in text and "anchor recall" in text and "loss.heldout" in text
    assert "<b>" not in text and "&lt;b&gt;one" in text
    assert not re.search(r"(src|href)=\"(?!#)|url\((?!#)|@import|<script|https?://", text)
    assert re.search(r"On the front: &lt;b&gt;one: baseline, &lt;b&gt;one: unlearned\.", text)  # two: worse in both
    assert "{picture}" not in text and "#0102" not in text


def test_the_axes_are_those_most_models_have(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", {"unlearned": (0.1, 1.0)}, 0.6), write(tmp_path / "b", {"unlearned": (0.2, 1.2)})]
    table = compare(runs)
    assert "Utility: loss on held-out text (loss.heldout)" in page(runs, table)
    assert "mean of 7 utility tasks (acc) (utility.mean)" in page(runs[:1], table)
    assert "(utility.mean)" in page(runs, table, utility="utility.mean")
    with pytest.raises(
        ForgetkitError, match=r"--forgetting: unknown measure 'recall.probabilty' - did you mean recall"
    ):
        page(runs, table, forgetting="recall.probabilty")


def test_models_of_one_place_share_a_label(tmp_path: Path) -> None:
    models = {"baseline": (0.5, 1.0), "unlearned": (0.1, 1.1)}
    runs = [write(tmp_path / name, models | {"unlearned": (x, 1.1)}) for name, x in (("a", 0.1), ("b", 0.5))]
    drawn = page(runs, compare(runs)).split("</svg>")[0]
    assert "baseline of 2 runs" in drawn and ">a: baseline<" not in drawn and ">b: unlearned<" in drawn


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    runs = [write(tmp_path / "a", {"unlearned": (None, 1.0)})]
    assert "nothing to draw" in page(runs, compare(runs))


def test_the_table_holds_suite_rows_once_and_leaves_withheld_cells_empty(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "a", {"baseline": (0.5, 1.0), "unlearned": (None, 1.0)}, 0.6),
        write(tmp_path / "x" / "a", {"unlearned": (0.2, 1.2)}),
    ]
    table = compare(runs)
    assert [row[0] for row in table.rows] == ["health", "utility.mean", "recall.probability", "loss.heldout"]
    row = next(row for row in table.rows if row[0] == "utility.mean")
    assert row[1:] == [0.6, 0.6, None, None, None]
    assert table.columns[-2:] == ["a#2: unlearned", "a#2: way to reference"]
    assert "recall.probability,0.5,,,0.2," in to_csv(table).splitlines()
