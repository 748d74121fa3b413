"""Record a finished benchmark: docs/oz_results.json and the tables between the markers of docs/oz_testbed.md.

forgetkit bench oz --out runs/oz && python benchmarks/record_oz.py runs/oz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from forgetkit.bench import oz

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "oz_results.json", ROOT / "docs" / "oz_testbed.md"
BEGIN, END = "<!-- measured: benchmarks/record_oz.py -->", "<!-- end of measured -->"


def page(told: dict[str, object]) -> str:
    """The tables of `forgetkit bench oz` as Markdown."""
    lines = ["## Measured", "", "`forgetkit bench oz` made these tables; `benchmarks/record_oz.py` put them here.", ""]
    for title, rows in oz.tables(told):
        lines += [f"**{title}**", "", f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Record the run given on the command line."""
    told = json.loads((Path(sys.argv[1]) / oz.BENCH / "bench.json").read_text())
    RECORD.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{page(told)}\n{END}{after}")


if __name__ == "__main__":
    main()
