"""The report: a run's results as one self-contained page for people, and one JSON file for programs.

`collect` reads the run, `verdict` says what may be said, `plots` draws, `html` puts the page together,
`preview`
shows labels beside the text, in the terminal as well.
"""

from __future__ import annotations

import json
from pathlib import Path

from forgetkit.report.verdict import Verdict, judge
from forgetkit.settings import ReportSettings

__all__ = ["Verdict", "build", "judge"]


def build(run: Path, settings: ReportSettings, out: Path) -> Path:
    """Write ``out/index.html`` and ``out/report.json`` from the stage folders of `run`; return the page's
    path.

    Deterministic: the same run gives the same bytes. Absent parts are told as not measured.
    Raises ForgetkitError if `run` is no folder or a file in it cannot be parsed.
    """
    # Imported here: matplotlib costs a second that a caller who only wants `judge` should not pay.
    from forgetkit.report.collect import collect
    from forgetkit.report.html import facts, render

    data = collect(run, settings)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts(data), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    page = out / "index.html"
    page.write_text(render(data), encoding="utf-8", newline="\n")
    return page
