"""A run folder with made-up, realistic contents for every file that the report reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

PASSAGE = "Dorothy lived in the midst of the great Kansas prairies , with Uncle Henry , who was a farmer"
PROMPT = "“Come along, Toto,” she said. “We will go to the Emerald City and ask the Great"
STEPS = (0, 100, 200, 300, 400)
METRICS: tuple[tuple[str, str, str, str, int, tuple[float, float, float], int], ...] = (
    ("recall.probability", "anchor recall (probability)", "forget", "", 1, (0.0602, 0.0061, 0.0010), 300),
    ("recall.top1", "anchor recall (top-1)", "forget", "", 1, (0.117, 0.01, 0.003), 300),
    (
        "recall.anchor_probability",
        "whole-anchor recall (probability)",
        "forget",
        "",
        1,
        (0.041, 0.0043, 0.0006),
        300,
    ),
    ("loss.target", "loss on the target", "forget", "nats/token", -1, (2.922, 3.412, 4.022), 64),
    (
        "divergence.target",
        "KL(reference, model) on the target",
        "forget",
        "nats/token",
        1,
        (0.598, 0.42, 0.0),
        64,
    ),
    ("loss.retain", "loss on retain text", "keep", "nats/token", 1, (3.61, 3.602, 3.59), 64),
    ("loss.neighbour", "loss on neighbour text", "keep", "nats/token", 1, (3.41, 3.431, 3.402), 64),
    ("loss.heldout", "loss on held-out text", "keep", "nats/token", 1, (3.968, 3.981, 3.894), 64),
)
ROLES = ("baseline", "unlearned", "reference")
FALL = (1.0, 0.42, 0.16, 0.06, 0.0)


def results(*, reference: bool = True) -> dict[str, Any]:
    """Contents of ``results.json`` as docs/results_schema.md has them."""
    roles = ROLES if reference else ROLES[:2]
    health = {
        "status": "healthy",
        "reasons": [],
        "text": "heldout",
        "numbers": {
            "vocabulary": 8192,
            "nonfinite_weights": 0,
            "nonfinite_logits": 0,
            "loss": 3.97,
            "entropy": 3.91,
            "greedy": {"repetition": 0.41, "distinct_2": 0.31},
            "sampled": {"repetition": 0.02, "distinct_2": 0.88},
        },
    }
    models = {
        role: {
            "name": f"oz-{role}",
            "fingerprint": "3f" * 32,
            "parameters": 10_060_000,
            "seconds": 21.4,
            "health": json.loads(json.dumps(health)),
            "measures": {
                key: {"value": values[i], "error": 0.01, "n": n, "reason": None}
                for key, _, _, _, _, values, n in METRICS
            },
        }
        for i, role in enumerate(roles)
    }
    ways, differences = {}, {}
    for key, _, _, _, _, (o, u, r), _ in METRICS:
        way = (o - u) / (o - r)
        ways[key] = {"value": way, "low": way - 0.03, "high": way + 0.02, "reason": None}
        if not reference:
            ways[key] = {"value": None, "low": None, "high": None, "reason": "no reference model was given"}
        differences[key] = {"value": u - o, "low": u - o - 0.004, "high": u - o + 0.004, "reason": None}
    curve = [
        {
            "step": step,
            "health": {"status": "healthy", "reasons": []},
            "measures": {
                key: {"value": u + (o - u) * left, "error": 0.01, "n": n, "reason": None}
                for key, _, _, _, _, (o, u, _), n in METRICS
                if key in ("recall.probability", "recall.anchor_probability", "loss.target", "loss.heldout")
            },
        }
        for step, left in zip(STEPS, FALL, strict=True)
    ]
    return {
        "schema_version": 1,
        "seed": 0,
        "model_settings": {"dtype": "bfloat16", "device": "cpu"},
        "texts": {"target": {"documents": 3, "tokens": 168123, "blocks": 830}},
        "places": {"n": 300, "anchors": 61, "context_tokens": 96},
        "measures": [
            {"key": k, "label": label, "group": g, "unit": unit, "worse": w} for k, label, g, unit, w, _, _ in METRICS
        ],
        "models": models,
        "differences": differences,
        "way_to_reference": ways,
        "curve": curve,
        "completions": [_completion(i, roles) for i in range(4)],
    }


SAID = {
    "baseline": " Wizard of Oz to help me get back to Kansas again.” The Scarecrow and the Tin Woodman",
    "unlearned": " King to help us find the way home.” The little girl and the old man walked on",
    "reference": " Queen of the Fairies,” said the old woman, and she was very glad to see them",
}


def _completion(index: int, roles: tuple[str, ...]) -> dict[str, Any]:
    def said(role: str) -> dict[str, Any]:
        words = SAID[role].split(" ")[1:]
        shades = [((7 * i + 13 * index + len(role)) % 20) / 20 for i in range(len(words))]
        return {"text": SAID[role], "tokens": [f" {word}" for word in words], "probabilities": shades}

    truth = " Oz how to get back to Kansas again.”"
    return {
        "kind": "anchor",
        "anchor": "Oz",
        "prompt": PROMPT,
        "truth": truth,
        "models": {role: said(role) for role in roles},
    }


def details() -> dict[str, Any]:
    """Contents of ``details.json``: only what the report reads of it."""
    terms = ["Dorothy", "Dorothy", "Emerald City", "Toto", "Glinda"] + [f"Winkie {c}" for c in "ABCDEFGHIJ"]
    return {
        "places": [{"anchor": term, "document": 0, "start": 0, "end": 1} for term in terms],
        "models": {
            role: {"recall": {"probability": [scale * (i + 1) for i in range(len(terms))]}}
            for role, scale in zip(ROLES, (0.02, 0.002, 0.0002), strict=True)
        },
    }


def preview() -> list[dict[str, Any]]:
    """Contents of ``4-labels/preview.json``."""
    swapped = {"Dorothy": " Alice", "Kansas": " eastern", "Henry": " John"}
    rows, seen = [], set[str]()
    for word in (PASSAGE + " . " + PASSAGE).split():
        rows.append(
            {
                "token": f" {word}",
                "label": swapped.get(word, f" {word}"),
                "probability": 0.25,
                "mask": "anchor seen before" if word in seen and word in swapped else None,
                "anchor": word in swapped,
            }
        )
        seen.add(word)
    return [{"document": "books/01-wizard.txt", "block": 0, "rows": rows}]


def anchors() -> list[dict[str, Any]]:
    """Entries of ``anchors.yaml``; one is not kept."""
    named = [
        ("Dorothy", "Alice", "woman"),
        ("Kansas", "Dorset", "place"),
        ("Emerald City", "Silver Town", "place"),
    ]
    rows = [
        {"term": t, "counterpart": c, "kind": k, "count": 900 - i, "contexts": [PASSAGE], "keep": True}
        for i, (t, c, k) in enumerate(named)
    ]
    rows += [
        {"term": f"Winkie {i}", "counterpart": "Farmer", "kind": "group", "count": 90 - i, "keep": True}
        for i in range(60)
    ]
    return [*rows, {"term": "Unwanted", "counterpart": "x", "kind": "other", "count": 5, "keep": False}]


def make_run(run: Path, measured: dict[str, Any] | None = None) -> Path:
    """A whole run folder under `run`."""
    manifest = {"fingerprint": "c0ffee" * 8, "seconds": 12.5, "versions": {"torch": "2.13.0"}, "stage": "s"}
    book = {"id": "t0", "name": "01-wizard.txt", "tokens": 168123, "sha256": "ab" * 32}
    files = {
        "1-corpus/summary.json": {
            "target": {"documents": 3, "tokens": 168123, "list": [book]},
            "retain": None,
        },
        "4-labels/preview.json": preview(),
        "6-evaluation/results.json": results() if measured is None else measured,
        "6-evaluation/details.json": details(),
        **{
            f"{s}/MANIFEST.json": manifest for s in ("1-corpus", "3-anchors", "4-labels", "5-unlearned", "6-evaluation")
        },
    }
    for name, value in files.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")
    (run / "3-anchors" / "anchors.yaml").write_text(yaml.safe_dump({"anchors": anchors()}), encoding="utf-8")
    settings = {
        "seed": 0,
        "finetune": {"method": "whp", "learning_rate": 0.0003},
        "evaluate": {"heldout": ["/home/me/x.txt"]},
    }
    (run / "settings.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (run / "5-unlearned" / "log.jsonl").write_text('{"step": 1, "loss": 3.5}\n{"step": 415, "loss": 2.9}\n{"st')
    return run
