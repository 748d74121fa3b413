"""A data folder in the published layouts, small and in the words of the toy tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import toys
from tests.unit.evaluate.conftest import PLAIN

SENTENCES = [part.strip() + "." for part in (toys.TEXT + PLAIN).split(".") if part.strip()]
NAMES = ("Dorothy", "Glinda", "Toto", "Uncle Henry", "Aunt Em", "the Wizard", "a farmer", "the Lion")


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def question(i: int, **more: Any) -> dict[str, Any]:
    return {"question": f"Who lived in house {i}?", "answer": f"{NAMES[i % len(NAMES)]} lived there.", **more}


def perturbed(i: int) -> dict[str, Any]:
    wrong = [f"{NAMES[(i + k) % len(NAMES)]} lived there." for k in (1, 2, 3)]
    return question(i, perturbed_answer=wrong, paraphrased_answer=f"It was {NAMES[i % len(NAMES)]}.")


def tofu(folder: Path, n: int = 6) -> Path:
    for name in ("forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        lines(folder / f"{name}.json", [perturbed(i) for i in range(n)])
    lines(folder / "forget10.json", [question(i) for i in range(n)])
    lines(folder / "retain90.json", [question(i) for i in range(n, 2 * n)])
    lines(folder / "holdout10.json", [question(i) for i in range(2 * n, 3 * n)])
    return folder


def muse(folder: Path) -> Path:
    def array(name: str, records: Sequence[Any]) -> None:
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(records)))

    array("raw/forget", [toys.TEXT, toys.TEXT[200:]])
    array("raw/retain1", [PLAIN * 2])
    array("raw/holdout", [PLAIN])
    array("verbmem/forget", [{"prompt": s[:30], "gt": s[30:]} for s in SENTENCES])
    array("knowmem/forget_qa", [question(i) for i in range(4)])
    array("knowmem/forget_qa_icl", [question(i) for i in range(10, 40)])
    array("knowmem/retain_qa", [question(i) for i in range(4, 8)])
    array("knowmem/retain_qa_icl", [question(i) for i in range(40, 42)])
    array("privleak/forget", SENTENCES[:4])
    array("privleak/retain", SENTENCES[4:6])
    array("privleak/holdout", [PLAIN[:60], PLAIN[60:120], PLAIN[120:]])
    return folder


def wmdp(folder: Path) -> Path:
    records = [
        {"question": f"Who lived in house {i}?", "choices": list(NAMES[i : i + 4]), "answer": i % 4} for i in range(3)
    ]
    records.append({"question": "word " * 400, "choices": list(NAMES[:4]), "answer": 0})
    lines(folder / "wmdp-bio" / "test.jsonl", records)
    return folder
