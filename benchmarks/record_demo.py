"""Record a finished demo in the repository: docs/demo_results.json and the table between the README's markers.

make demo && .venv/bin/python benchmarks/record_demo.py runs/demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.limits import demo_gflops
from forgetkit.evaluate.compare import percent

ROOT = Path(__file__).parents[1]
RECORD, README = ROOT / "docs" / "demo_results.json", ROOT / "README.md"
BEGIN, END = "<!-- demo table: benchmarks/record_demo.py -->", "<!-- end of demo table -->"
ROWS = {
    "recall.probability": "anchor recall, cue-free: probability of the first token",
    "recall.top1": "anchor recall: share of places where it comes first",
    "recall.anchor_probability": "anchor recall: probability of the whole anchor",
    "familiarity.probability": "familiarity (probability of words that give the books away)",
    "familiarity.completion": "familiarity (graded completions)",
    "cloze.accuracy": "facts of the books answered right (1 of 11 options; chance .09)",
    "loss.target": "loss on the three books, nats/token",
    "divergence.target": "KL from the never-read twin on the books, nats/token",
    "loss.heldout": "loss on held-out books",
    "loss.neighbour": "loss on neighbours (Baum's other tales)",
    "loss.retain": "loss on retain text that was not trained on",
}


def record(run: Path) -> dict[str, Any]:
    """What the README quotes of a run's results, with the seconds every stage took."""
    results = json.loads((run / "6-evaluation" / "results.json").read_text())
    manifests = [json.loads(p.read_text()) for p in sorted(run.glob("[1-8]-*/MANIFEST.json"))]
    last = manifests[-1]
    return {
        "measures": {
            key: {
                "values": {role: model["measures"][key]["value"] for role, model in results["models"].items()},
                "way": results["way_to_reference"].get(key),
            }
            for key in ROWS
            if key in results["models"]["unlearned"]["measures"]
        },
        "health": {role: model["health"]["status"] for role, model in results["models"].items()},
        "seconds": {m["stage"]: round(m["seconds"]) for m in manifests},
        "threads": last["threads"],
        "gflops": demo_gflops(last["threads"]),
        "versions": last["versions"],
    }


def table(data: dict[str, Any]) -> str:
    """The README's table."""
    lines = ["| measure | baseline | unlearned | never read | way there |", "|---|---|---|---|---|"]
    for key, row in data["measures"].items():
        values = row["values"]
        cells = [_number(values.get(role)) for role in ("baseline", "unlearned", "reference")]
        lines.append(f"| {ROWS[key]} | {' | '.join(cells)} | {_way(key, row)} |")
    total = sum(data["seconds"].values())
    lines.append("")
    lines.append(
        f"Health: {', '.join(f'{role} {verdict}' for role, verdict in sorted(data['health'].items()))}. "
        f"The run took {total} s on {data['threads']} CPU threads "
        f"that multiply the model's matrices at {data['gflops']:.0f} GFLOP/s. "
        "`make demo` makes these figures; `benchmarks/record_demo.py` put them here."
    )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _way(key: str, row: dict[str, Any]) -> str:
    values, way = row["values"], row["way"]
    if key in ("loss.heldout", "loss.neighbour", "loss.retain"):
        return f"{values['unlearned'] / values['baseline'] - 1:+.1%}"
    if not way or way["value"] is None:
        return "-"
    interval = f" ({percent(way['low'])} to {percent(way['high'])})" if way.get("low") is not None else ""
    return f"{percent(way['value'])}{interval}"


def between(text: str) -> str:
    """The README's table as it stands."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    """Write both files."""
    data = record(Path(sys.argv[1]))
    RECORD.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    text = README.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n\n{table(data)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
