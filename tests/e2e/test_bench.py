"""`forgetkit bench oz` end to end on a testbed of seconds: a toy that has read the target, and one that has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from forgetkit import demo
from forgetkit.bench import ablation, oz
from forgetkit.core.config import load_settings
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import model_fingerprint
from forgetkit.evaluate.retraining import collect_seeds
from tests import toys
from tests.e2e.tiny import RETAIN, SETTINGS

ANCHORS = """
anchors:
- {term: Dorothy, counterpart: Martha, kind: woman}
- {term: Scarecrow, counterpart: Farmer, kind: person}
- {term: Toto, counterpart: Rover, kind: creature}
- {term: Oz, counterpart: Home, kind: place}
"""
CLOZE = {
    "id": "c1",
    "kind": "verbatim",
    "source": {"file": "one.txt", "quote": "Dorothy lived in the midst of the great Kansas prairies"},
    "prompt": "Dorothy lived in the midst of the great",
    "answer": "Kansas",
    "distractors": ["forest", "desert", "city", "mountain", "river", "sea", "island", "garden", "castle"],
    "about_anchor": True,
    "split": "dev",
}


def teach(model: Any, text: str, steps: int) -> None:
    ids = torch.tensor([toys.tokenizer()(text, add_special_tokens=False)["input_ids"][:250]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        logits = model(input_ids=ids).logits[0, :-1]
        F.cross_entropy(logits, ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture
def testbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assets = tmp_path / "assets"
    for name, text in (("oz-base", toys.TEXT + RETAIN), ("oz-retrained", RETAIN * 2)):
        model = toys.model("llama", 400, seed=1)
        teach(model, text, 120)
        model.save_pretrained(assets / name)
        toys.tokenizer("bytelevel").save_pretrained(assets / name)
    for name, text in (("oz", toys.TEXT * 3), ("retain", RETAIN * 8), ("heldout", RETAIN * 4), ("neighbour", RETAIN)):
        (assets / name).mkdir()
        (assets / name / "one.txt").write_text(text)
    (assets / "probes").mkdir()
    (assets / "probes" / "cloze.jsonl").write_text(json.dumps(CLOZE) + "\n")
    (assets / "probe_anchors.yaml").write_text(ANCHORS)
    monkeypatch.setattr(demo, "ASSETS", assets)
    for name, folder in (
        ("MODEL", "oz-base"),
        ("REFERENCE", "oz-retrained"),
        ("TARGET", "oz"),
        ("RETAIN", "retain"),
        ("HELDOUT", "heldout"),
        ("NEIGHBOUR", "neighbour"),
        ("PROBES", "probes"),
        ("SEEDS", "seeds.json"),
    ):
        monkeypatch.setattr(demo, name, assets / folder)
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    return tmp_path


def settings(testbed: Path) -> Any:
    return load_settings(testbed / "settings.yaml", ["evaluate.loss_blocks=16"], "default")


def test_the_whole_benchmark_with_controls_and_label_quality(testbed: Path) -> None:
    told = oz.bench(testbed / "run", settings(testbed), seeds=False)
    assert told == json.loads((testbed / "run" / "9-bench" / "bench.json").read_text())
    assert {"unlearned", "random_labels", "gradient_ascent"} <= set(told["models"])
    assert told["labels"]["all"]["positions"] > 50
    base = oz.bench(testbed / "base", settings(testbed), model=str(demo.MODEL), seeds=False)
    truth = oz.bench(testbed / "truth", settings(testbed), model=str(demo.REFERENCE), seeds=False)
    residual = {name: t["models"]["unlearned"]["normalised_residual"]["loss.target"] for name, t in
                (("base", base), ("truth", truth), ("ours", told))}  # fmt: skip
    assert residual["base"]["value"] == pytest.approx(1.0), residual
    assert residual["truth"]["value"] == pytest.approx(0.0)
    for title, rows in oz.tables(told):
        assert title and len({len(row) for row in rows}) == 1


def test_other_seeds_give_the_distance_to_retraining_its_unit(testbed: Path) -> None:
    """The other seed, measured as a model, is at distance 1; the baseline is farther."""
    other = toys.model("llama", 400, seed=1)
    teach(other, RETAIN * 2, 40)
    other.save_pretrained(testbed / "r2")
    toys.tokenizer("bytelevel").save_pretrained(testbed / "r2")
    oz.bench(testbed / "m", settings(testbed), model=str(testbed / "r2"), seeds=False)
    measured = tuple(json.loads((testbed / "m" / name).read_text()) for name in ("results.json", "details.json"))
    demo.SEEDS.write_text(
        json.dumps({**collect_seeds({"r2": measured}), "models": {"three": {"r2": {"measures": {}}}}})
    )
    oz.other_seed_positions(str(testbed / "r2"), settings(testbed), False, demo.null_positions())
    far = {}
    for name, path in (("r2", str(testbed / "r2")), ("base", str(demo.MODEL))):
        told = oz.bench(testbed / f"d-{name}", settings(testbed), model=path)
        far[name] = told["models"]["unlearned"]["distance_to_retraining"]["target"]["divergence"]["value"]
        assert "r2 (other seed)" in told["models"]
    assert far["r2"] == pytest.approx(1.0, abs=1e-3) and far["base"] > 1.5
    rows = ["labels:no dictionary", "labels:no prior", "training:one epoch"]
    table = ablation.ablate(testbed / "run", settings(testbed), rows)
    assert set(table["labels"]) == {"no dictionary", "no prior"}
    assert "closed" in table["labels"]["no prior"]["all"]
    assert table["training"]["one epoch"]["normalised_residual"]["loss.target"]["value"] is not None
    labels, training = (rows for _, rows in ablation.tables(table))
    assert [row[0] for row in labels[1:]] == ["no prior", "no dictionary"]
    assert training[1][0] == "one epoch" and len(training[1]) == len(training[0])
    again = ablation.ablate(testbed / "run", settings(testbed), ["labels:no prior"])
    assert again == table


def test_missing_weights_name_the_file_and_the_command(testbed: Path) -> None:
    (demo.REFERENCE / "model.safetensors").unlink()
    with pytest.raises(ForgetkitError, match=r"oz-retrained.*recipes/oz/make\.py"):
        oz.bench(testbed / "run", settings(testbed), seeds=False)


def test_a_malformed_probe_is_file_and_line(testbed: Path) -> None:
    (demo.PROBES / "cloze.jsonl").write_text(json.dumps(CLOZE) + "\n{\n")
    with pytest.raises(ForgetkitError, match=r"cloze\.jsonl:2"):
        oz.bench(testbed / "run", settings(testbed), seeds=False)


def test_another_tokenizer_is_refused(testbed: Path) -> None:
    shutil.copytree(demo.MODEL, testbed / "other")
    toys.tokenizer("bytelevel", 380).save_pretrained(testbed / "other")
    with pytest.raises(ForgetkitError, match="another tokenizer"):
        oz.bench(testbed / "run", settings(testbed), model=str(testbed / "other"), seeds=False)


def test_an_unknown_variant_is_refused_with_a_suggestion(testbed: Path) -> None:
    demo.SEEDS.write_text(json.dumps({"reference": model_fingerprint(str(demo.REFERENCE)), "texts": {}}))
    demo.null_positions().write_bytes(b"")
    with pytest.raises(ForgetkitError, match="labels:no prior"):
        ablation.ablate(testbed / "run", settings(testbed), ["labels:no priors"])
