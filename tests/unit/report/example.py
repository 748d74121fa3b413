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
    ("familiarity.completion", "familiarity (completion)", "forget", "", 1, (0.312, 0.0442, 0.0123), 60),
    ("familiarity.probability", "familiarity (probability)", "forget", "", 1, (0.221, 0.0217, 0.0093), 30),
    ("cloze.accuracy", "cloze accuracy", "forget", "", 1, (0.713, 0.331, 0.2431), 300),
    ("cloze.accuracy.other", "cloze accuracy, other answers", "forget", "", 1, (0.5813, 0.371, 0.272), 110),
    ("extraction.strength", "extraction strength", "forget", "", 1, (0.0211, 0.0193, 0.0182), 64),
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
PROBED = ("familiarity.", "cloze.", "extraction.")
WITHHELD = "baseline and reference differ by less than two standard errors"
CURVE = (
    "recall.probability",
    "recall.anchor_probability",
    "familiarity.completion",
    "familiarity.probability",
    "cloze.accuracy",
    "loss.target",
    "loss.heldout",
)


def results(*, reference: bool = True, probes: bool = True) -> dict[str, Any]:
    """Contents of ``results.json`` as docs/results_schema.md has them; without probes, of an older version."""
    roles = ROLES if reference else ROLES[:2]
    metrics = [m for m in METRICS if probes or not m[0].startswith(PROBED)]
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
                for key, _, _, _, _, values, n in metrics
            },
        }
        for i, role in enumerate(roles)
    }
    ways: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, Any]] = {}
    for key, _, _, _, _, (o, u, r), _ in metrics:
        way = (o - u) / (o - r)
        ways[key] = {"value": way, "low": way - 0.03, "high": way + 0.02, "reason": None}
        if key == "extraction.strength":
            ways[key] = {"value": None, "low": None, "high": None, "reason": WITHHELD}
        if not reference:
            ways[key] = {"value": None, "low": None, "high": None, "reason": "no reference model was given"}
        differences[key] = {"value": u - o, "low": u - o - 0.004, "high": u - o + 0.004, "reason": None}
    curve = [
        {
            "step": step,
            "health": {"status": "healthy", "reasons": []},
            "measures": {
                key: {"value": u + (o - u) * left, "error": 0.01, "n": n, "reason": None}
                for key, _, _, _, _, (o, u, _), n in metrics
                if key in CURVE
            },
        }
        for step, left in zip(STEPS, FALL, strict=True)
    ]
    new: dict[str, Any] = {
        "probes": {"split": "all", "judge": "offline", "cloze": {"n": 300, "unknown": 9, "chance": 0.0913}},
        "normalised_residual": {key: _residual(way) for key, way in ways.items()},
        "distance_to_retraining": {
            "target": {
                "divergence": {"value": 3.427, "low": 3.12, "high": 3.84, "reason": None},
                "agreement": {"value": 0.817, "low": 0.79, "high": 0.84, "reason": None},
            },
            "heldout": {
                "divergence": {"value": 1.318, "low": 1.22, "high": 1.43, "reason": None},
                "agreement": {"value": None, "low": None, "high": None, "reason": "no other seed was measured"},
            },
        },
    }
    return {
        **(new if probes else {}),
        "schema_version": 1,
        "seed": 0,
        "model_settings": {"dtype": "bfloat16", "device": "cpu"},
        "texts": {"target": {"documents": 3, "tokens": 168123, "blocks": 830}},
        "places": {"n": 300, "anchors": 61, "context_tokens": 96},
        "measures": [
            {"key": k, "label": label, "group": g, "unit": unit, "worse": w} for k, label, g, unit, w, _, _ in metrics
        ],
        "models": models,
        "differences": differences,
        "way_to_reference": ways,
        "curve": curve,
        "completions": [_completion(i, roles) for i in range(4)],
    }


def _residual(way: dict[str, Any]) -> dict[str, Any]:
    if way["value"] is None:
        return dict(way)
    return {"value": 1 - way["value"], "low": 1 - way["high"], "high": 1 - way["low"], "reason": None}


def suites(results: dict[str, Any]) -> dict[str, Any]:
    """`results` with a suite: a row of each group, an attack, MUSE's six ways, a family that was not measured."""

    def cell(value: float | None, **more: Any) -> dict[str, Any]:
        reason = None if value is not None else "withheld: the model is not healthy (NaN)"
        told = {"value": value, "error": 0.012, "low": None, "high": None, "n": 64, "clusters": 3, "reason": reason}
        return told | more

    def row(key: str, label: str, group: str, values: tuple[float, float, float], **more: Any) -> dict[str, Any]:
        to = "baseline" if group == "keep" else "reference"
        apart = {"error": 0.01, "low": -0.06, "high": -0.02, "p": 0.0004, "p_holm": 0.0008, "n": 64, "clusters": 3}
        models = {role: cell(value, **more) for role, value in zip(ROLES, values, strict=True)}
        same = {"to": to, "margin": 0.05, "smallest_margin": 0.08, "equivalent": False, "equivalent_holm": False}
        return {
            "key": key,
            "label": label,
            "group": group,
            "unit": "",
            "worse": 1,
            "chance": 0.25,
            "models": models,
            "difference": apart | {"value": values[1] - values[0], "reason": None},
            "to_reference": apart | {"value": values[1] - values[2], "p_holm": 0.2, "reason": None},
            "equivalence": same | {"reason": None},
        }

    def family(*rows: dict[str, Any], missing: str | None = None, **more: Any) -> dict[str, Any]:
        return {"about": {}, "missing": missing, "rows": list(rows)} | more

    sides = {"members": {"units": 200, "clusters": 3}, "nonmembers": {"units": 180, "clusters": 9}, "p_holm": 0.03}
    attack = row("privacy.min_k.auroc", "min-k attack, AUROC", "forget", (0.91, 0.62, 0.53), **sides)
    ways = [
        {
            "name": "verbmem",
            "meaning": "no verbatim memorisation",
            "better": "lower",
            "value": {"value": 17.3, "low": 15.1, "high": 19.2, "reason": None},
            "reference": {"value": 14.2, "low": None, "high": None, "reason": None},
            "sizes": None,
            "curve": [],
        }
    ]
    utility = row("utility.piqa.acc", "piqa (acc)", "keep", (0.771, 0.768, 0.765))
    utility["models"]["unlearned"]["delta"] = {"value": -0.003, "error": 0.002, "won": 3, "lost": 6, "tells": True}
    for point in results["curve"]:
        accuracy = 0.771 - point["step"] / 1e5
        delta = None if point["step"] == 0 else {"delta": {"value": accuracy - 0.771, "error": 0.0021}}
        cells = {"task": "piqa", "value": accuracy, "error": 0.01, "n": 1838, "chance": 0.5}
        point["utility"] = [cells | {"metric": metric} | (delta or {}) for metric in ("acc", "acc_norm")]
    results["suites"] = {
        "suite": "full",
        "statistics": {
            "resamples": 10_000,
            "margin": 0.05,
            "tests": {"difference": 3, "to_reference": 3, "attack": 1, "equivalence": 2},
        },
        "families": {
            "memorization": family(row("memorization.exact", "exact memorisation", "forget", (0.61, 0.42, 0.38))),
            "privacy": family(attack),
            "utility": family(utility),
            "muse": family(ways=ways, missing=None),
            "tofu": family(missing="no data folder that holds TOFU"),
        },
    }
    return results


SAID = {
    "baseline": " Wizard of Oz to help me get back to Kansas again.” The Scarecrow and the Tin Woodman",
    "unlearned": " King to help us find the way home.” The little girl and the old man walked on",
    "reference": " Queen of the Fairies,” said the old woman, and she was very glad to see them",
}


def _completion(index: int, roles: tuple[str, ...]) -> dict[str, Any]:
    def said(role: str) -> dict[str, Any]:
        words = SAID[role].split(" ")[1:]
        shades = [((7 * i + 13 * index + len(role)) % 20) / 20 for i in range(len(words))]
        others = [{" Nonesuch": 0.25, " <b>bold": 0.031} if i == 2 else {} for i in range(len(words))]
        return {
            "text": SAID[role],
            "tokens": [f" {word}" for word in words],
            "probabilities": shades,
            "alternatives": others,
        }

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
    cloze = [{"id": f"c{i}", "prompt": CLOZE.format(i), "answer": f"Billina {i}"} for i in range(12)]
    # Never-read values rise with the unlearned ones up to item 3, which everybody gets right.
    left = [0.31, 0.42, 0.53, 0.99, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.05]
    never = [0.01, 0.02, 0.03, 0.98] + [0.01] * 7 + [0.2]
    return {
        "places": [{"anchor": term, "document": 0, "start": 0, "end": 1} for term in terms],
        "probes": {
            "cloze": cloze,
            "completion": [
                {"id": "f0", "prompt": HINT, "references": {"3": ["Nick Chopper"], "2": ["oil can"], "1": ["axe"]}},
                {"id": "f1", "prompt": "A quiet hint", "references": {}},
            ],
            "probability": [{"id": "p0", "prompt": "She thanked the Tin", "familiar": ["Woodman", "Man"]}],
        },
        "models": {
            role: {
                "recall": {"probability": [scale * (i + 1) for i in range(len(terms))]},
                "cloze": {"probability": {"baseline": [0.9] * 12, "unlearned": left, "reference": never}[role]},
                "familiarity.completion": {"texts": [GAVE_AWAY, "x"], "grade": [3, 0], "score": [1.0, 0.0]}
                if role != "reference"
                else {"texts": ["y", "y"], "grade": [0, 0], "score": [0.0, 0.0]},
                "familiarity.probability": {"probability": [10 * scale + 0.2]},
            }
            for role, scale in zip(ROLES, (0.02, 0.002, 0.0002), strict=True)
        },
    }


CLOZE = "Then the yellow hen of Ozma began to cackle, and number {} of them was called"
HINT = "The rusty man told them that he had once been a woodchopper by the name of"
GAVE_AWAY = " Nick Chopper, who lived beside the Munchkin road"


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
    manifest = {"fingerprint": "c0ffee" * 8, "seconds": 12.5, "versions": {"torch": "2.13.0"}, "stage": "s"} | {
        "device": "cpu",
        "threads": 2,
    }
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
