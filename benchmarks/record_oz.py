"""Record finished benchmarks in the repository: docs/oz_results*.json and the tables of docs/oz_testbed.md.

forgetkit bench oz --out runs/oz
forgetkit bench oz --out runs/oz --ablate labels
forgetkit bench oz --full --out runs/oz_full
python benchmarks/record_oz.py runs/oz runs/oz_full

A run given replaces its record; the page is then written from all records.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.limits import demo_gflops
from forgetkit.bench import ablation, oz

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "oz_testbed.md"
RECORDS = {
    "oz, three books": ROOT / "docs" / "oz_results.json",
    "oz, fifteen books": ROOT / "docs" / "oz_results_full.json",
}
BEGIN, END = "<!-- measured: benchmarks/record_oz.py -->", "<!-- end of measured -->"


def record(run: Path) -> dict[str, Any]:
    """What `forgetkit bench oz` wrote in `run`, with the seconds of every stage and what was ablated there."""
    told: dict[str, Any] = json.loads((run / oz.BENCH / "bench.json").read_text())
    manifests = [json.loads(path.read_text()) for path in sorted(run.glob("[1-8]-*/MANIFEST.json"))]
    told["seconds"] = {manifest["stage"]: round(manifest["seconds"]) for manifest in manifests}
    told["threads"] = manifests[-1]["threads"]
    told["gflops"] = demo_gflops(told["threads"])
    ablated = run / oz.BENCH / "ablation.json"
    if ablated.is_file():
        told["ablation"] = {key: own for key, own in json.loads(ablated.read_text()).items() if key != "made_from"}
    return told


def page(records: list[dict[str, Any]]) -> str:
    """The tables of the records as Markdown."""
    lines: list[str] = []
    for told in records:
        name = told["benchmark"].removeprefix("oz, ")
        option = " --full" if "fifteen" in name else ""
        lines += [
            f"## Measured: {name}",
            "",
            f"`forgetkit bench oz{option}` made these tables, `benchmarks/record_oz.py` put them here. "
            f"Stages 1 to 8 took {sum(told['seconds'].values())} s on {told['threads']} CPU threads that multiply the "
            f"model's matrices at {told['gflops']:.0f} GFLOP/s.",
            "",
        ]
        tables = oz.tables(told) + (ablation.tables(told["ablation"]) if "ablation" in told else [])
        for title, rows in tables:
            lines += [f"**{title}**", "", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
            lines.append("")
    return "\n".join(lines)


def between(text: str) -> str:
    """What stands between the markers of the page."""
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def main() -> None:
    """Record the runs given on the command line."""
    for run in sys.argv[1:]:
        told = record(Path(run))
        RECORDS[told["benchmark"]].write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    records = [json.loads(path.read_text()) for path in RECORDS.values() if path.is_file()]
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{page(records).strip()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
