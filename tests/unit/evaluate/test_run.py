from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate import measure
from forgetkit.evaluate.compare import before_after_table, compare, load_results, to_csv, to_text
from forgetkit.evaluate.run import evaluate
from forgetkit.settings import EvaluateSettings, ModelSettings
from tests import toys
from tests.unit.evaluate.conftest import (
    PLAIN,
    STORY,
    cloze_line,
    completion_line,
    corpus,
    dictionary,
    probability_line,
    write_probes,
)

SETTINGS = EvaluateSettings(recall_places=20, recall_context=12, loss_blocks=6, completions=3, completion_tokens=5)
TERMS = ("Dorothy", "Tin Woodman", "Scarecrow", "Toto", "Glinda", "Wizard", "Munchkin", "Emerald City")


def run(models: dict[str, Path], out: Path, **extra: Any) -> dict[str, Any]:
    texts = {"heldout": corpus(PLAIN * 3), "neighbour": corpus(PLAIN[40:] * 2)}
    return evaluate(
        models,
        corpus(STORY),
        dictionary(*TERMS),
        extra.pop("texts", texts),
        toys.tokenizer(),
        extra.pop("settings", SETTINGS),
        ModelSettings(dtype="float32", device="cpu"),
        out,
        0,
        **extra,
    )


def probes(folder: Path, **more: Any) -> EvaluateSettings:
    """The settings with a folder of probes: three cloze items of two passages, two prompts of each other kind."""
    write_probes(
        folder,
        cloze=[
            cloze_line(0),
            cloze_line(0, id="c1", prompt="Near the castle of"),
            cloze_line(2, answer="cat", prompt="three sons and a small grey", about_anchor=False, reference_right=True),
            cloze_line(3, known=False),
            cloze_line(4, source={"file": "another-book.txt", "quote": "x"}),
        ],
        completions=[completion_line(0), completion_line(1, prompt="The Tin Woodman", split="test")],
        probability=[probability_line(0), probability_line(1, familiar=["Kansas"], prompt="the great", split="dev")],
        lexicon={"3": ["Munchkin"], "1": ["the", "a"]},
    )
    return SETTINGS.model_copy(update={"probes": folder} | more)


def strict(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def full(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("full") / "6-evaluation"
    roles = {role: folders[role] for role in ("baseline", "unlearned", "reference")}
    settings = probes(tmp_path_factory.mktemp("probes"))
    return out, run(roles, out, snapshots={3: folders["unlearned"], 1: folders["baseline"]}, settings=settings)


def test_results_are_strict_and_complete(full: tuple[Path, dict[str, Any]]) -> None:
    out, results = full
    assert strict(out / "results.json") == results
    details = strict(out / "details.json")
    assert results["schema_version"] == 1
    assert list(results["models"]) == ["baseline", "reference", "unlearned"]
    assert results["places"]["n"] == len(details["places"]) > 4
    for role, model in results["models"].items():
        own = details["models"][role]
        values = own["recall"]["probability"]
        assert model["measures"]["recall.probability"]["value"] == pytest.approx(sum(values) / len(values))
        losses = own["loss.target"]
        mean = sum(losses["loss"]) / sum(losses["count"])
        assert model["measures"]["loss.target"]["value"] == pytest.approx(mean)
        assert model["seconds"] > 0 and len(model["fingerprint"]) == 64
        assert model["measures"]["loss.retain"]["reason"] == "no retain text was given"
    assert results["models"]["reference"]["measures"]["divergence.target"]["value"] == 0
    assert [row["step"] for row in results["curve"]] == [0, 1, 3]
    assert len(results["completions"]) == 3
    assert set(results["completions"][0]["models"]) == {"baseline", "reference", "unlearned"}


def test_probes_are_measured_for_every_model_and_step(full: tuple[Path, dict[str, Any]]) -> None:
    out, results = full
    details = strict(out / "details.json")
    assert results["probes"]["cloze"] == {"n": 3, "unknown": 1, "chance": pytest.approx(0.1)}
    assert [item["id"] for item in details["probes"]["cloze"]] == ["c0", "c1", "c2"]
    assert details["probes"]["cloze"][2]["reference_right"] is True
    for role, model in results["models"].items():
        own, cells = details["models"][role], model["measures"]
        assert cells["cloze.accuracy"]["value"] == pytest.approx(sum(own["cloze"]["correct"]) / 3)
        assert (cells["cloze.accuracy.anchor"]["n"], cells["cloze.accuracy.other"]["n"]) == (2, 1)
        assert len(own["cloze"]["log_probability"][0]) == 10
        graded = own["familiarity.completion"]
        assert len(graded["texts"]) == len(graded["grade"]) == 2 and set(graded["grade"]) <= {0, 1, 2, 3}
        assert cells["familiarity.completion"]["value"] == pytest.approx(sum(graded["score"]) / 2)
        assert 0 < cells["familiarity.probability"]["value"] < 1
        strength = own["extraction"]
        mean = sum(m / n for m, n in zip(strength["matched"], strength["count"], strict=True)) / len(strength["count"])
        assert cells["extraction.strength"]["value"] == pytest.approx(mean)
    assert details["curve"][0]["step"] == 1 and details["curve"][0]["familiarity.completion"]["texts"]


def test_splits_and_targets_without_probes(folders: dict[str, Path], tmp_path: Path) -> None:
    models = {"baseline": folders["baseline"]}
    dev = run(models, tmp_path / "dev", settings=probes(tmp_path / "probes", probe_split="dev"))
    assert [dev["probes"][kind]["n"] for kind in ("cloze", "completion", "probability")] == [3, 1, 1]
    other = write_probes(tmp_path / "other", cloze=[cloze_line(source={"file": "b.txt", "quote": "x"})])
    none = run(models, tmp_path / "none", settings=SETTINGS.model_copy(update={"probes": other}))
    cells = none["models"]["baseline"]["measures"]
    assert cells["cloze.accuracy"]["reason"] == "no probe of this kind is about the target"
    without = run(models, tmp_path / "without")
    assert without["probes"] is None
    cells = without["models"]["baseline"]["measures"]
    assert cells["familiarity.completion"]["reason"] == cells["cloze.probability"]["reason"] == "no probes were given"


def test_new_grades_need_no_new_continuations(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, work, settings = {"baseline": folders["baseline"]}, tmp_path / "work", probes(tmp_path / "probes")
    first = run(models, tmp_path / "one", work=work, settings=settings)
    lexicon = {"3": ["Munchkin", "the", "a", "and", "she", "he", "in", "to", "of", "was"]}
    write_probes(tmp_path / "probes", lexicon=lexicon)

    def refused(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(measure, "load_model", refused)
    second = run(models, tmp_path / "two", work=work, settings=settings)
    key = "familiarity.completion"
    scores = [results["models"]["baseline"]["measures"][key]["value"] for results in (first, second)]
    assert scores[0] < scores[1]
    lines = [cloze_line(0, prompt="A changed prompt of")]
    write_probes(tmp_path / "probes", cloze=lines)
    with pytest.raises(AssertionError, match="a model was loaded"):
        run(models, tmp_path / "three", work=work, settings=settings)


def test_way_follows_from_the_values(full: tuple[Path, dict[str, Any]]) -> None:
    _, results = full
    for key in ("recall.probability", "loss.heldout"):
        o, u, r = (results["models"][role]["measures"][key]["value"] for role in ("baseline", "unlearned", "reference"))
        way = results["way_to_reference"][key]
        assert way["value"] == pytest.approx((o - u) / (o - r))
        assert way["low"] <= way["value"] <= way["high"]
        assert results["differences"][key]["value"] == pytest.approx(u - o)


def test_the_curve_uses_the_same_places(full: tuple[Path, dict[str, Any]]) -> None:
    _, results = full
    rows = {row["step"]: row["measures"] for row in results["curve"]}
    for role, step in (("baseline", 0), ("baseline", 1), ("unlearned", 3)):
        for key, cell in rows[step].items():
            assert cell["value"] == results["models"][role]["measures"][key]["value"]


@pytest.mark.parametrize("kind", ["dead", "mute"])
def test_a_dead_model_gets_no_forgetting_score(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    models = {
        "baseline": folders["baseline"],
        "unlearned": folders[kind],
        "reference": folders["reference"],
    }
    results = run(models, tmp_path / "out", snapshots={5: folders[kind]}, settings=probes(tmp_path / "probes"))
    strict(tmp_path / "out" / "results.json")
    dead = results["models"]["unlearned"]
    assert dead["health"]["status"] == "unhealthy"
    for key, cell in dead["measures"].items():
        assert cell["value"] is None or (kind == "mute" and key.endswith((".heldout", ".neighbour"))), key
        if key.startswith(("recall.", "cloze.", "familiarity.", "extraction.")) or key == "loss.target":
            assert cell["reason"].startswith("withheld: the model is not healthy")
    assert all(way["value"] is None for way in results["way_to_reference"].values())
    assert results["curve"][-1]["measures"]["recall.probability"]["value"] is None
    details = strict(tmp_path / "out" / "details.json")
    for name in ("recall", "cloze", "familiarity.completion", "familiarity.probability", "extraction"):
        assert details["models"]["unlearned"].get(name) is None
        assert details["curve"][0].get(name) is None
        assert details["models"]["baseline"][name]
    assert results["models"]["baseline"]["measures"]["recall.probability"]["value"] is not None
    assert any("withheld" in row for row in to_text(before_after_table(results))[2])


def test_a_killed_evaluation_goes_on(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    models = {"baseline": folders["baseline"], "unlearned": folders["unlearned"]}
    loaded: list[Path] = []
    real_load, real_loss = measure.load_model, measure.measure_losses

    def counted(source: Path, settings: ModelSettings) -> Any:
        loaded.append(source)
        return real_load(source, settings)

    def killed(model: Any, *rest: Any, **named: Any) -> Any:
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return real_loss(model, *rest, **named)

    monkeypatch.setattr(measure, "load_model", counted)
    monkeypatch.setattr(measure, "measure_losses", killed)
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path / "one", work=work)
    assert loaded == [folders["baseline"], folders["unlearned"]] and not (tmp_path / "one" / "results.json").exists()
    written = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    assert written
    monkeypatch.setattr(measure, "measure_losses", real_loss)
    loaded.clear()
    resumed = run(models, tmp_path / "two", work=work)
    assert loaded == [folders["unlearned"]]  # the baseline was finished, nothing of it runs again
    assert {path: path.stat().st_mtime_ns for path in written} == written
    loaded.clear()
    again = run(models, tmp_path / "three", work=work)
    assert loaded == [] and again == resumed
    straight = run(models, tmp_path / "four")
    for role in models:
        assert straight["models"][role]["measures"] == resumed["models"][role]["measures"]
    loaded.clear()
    run(models, tmp_path / "five", work=work, settings=SETTINGS.model_copy(update={"recall_context": 14}))
    assert loaded == list(models.values())  # other places: not from the cache


def test_a_damaged_cache_file_is_measured_again(folders: dict[str, Path], tmp_path: Path) -> None:
    models, work = {"baseline": folders["baseline"]}, tmp_path / "work"
    first = run(models, tmp_path / "one", work=work)
    for path in work.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    second = run(models, tmp_path / "two", work=work)
    assert first["models"]["baseline"]["measures"] == second["models"]["baseline"]["measures"]


def test_without_other_texts_and_without_anchors(folders: dict[str, Path], tmp_path: Path) -> None:
    results = evaluate(
        {"baseline": folders["baseline"]},
        corpus(PLAIN),
        dictionary("Nowhere"),
        {},
        toys.tokenizer(),
        SETTINGS,
        ModelSettings(dtype="float32", device="cpu"),
        tmp_path,
        0,
    )
    measures = results["models"]["baseline"]["measures"]
    assert "no cue-free place" in measures["recall.probability"]["reason"]
    assert measures["loss.target"]["value"] > 0
    assert results["models"]["baseline"]["health"]["text"] == "target"
    strict(tmp_path / "results.json")


def test_mistakes(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="role"):
        run({"original": folders["baseline"]}, tmp_path)
    with pytest.raises(ForgetkitError, match="no model"):
        run({}, tmp_path)
    with pytest.raises(ForgetkitError, match="unknown text"):
        run({"baseline": folders["baseline"]}, tmp_path, texts={"other": corpus(PLAIN)})


def test_another_tokenizer_is_refused(folders: dict[str, Path], trained: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    trained.save_pretrained(odd)
    other: PreTrainedTokenizerFast = toys.tokenizer("bytelevel", 350)
    other.save_pretrained(odd)
    with pytest.raises(ForgetkitError, match="reference model has another tokenizer"):
        run({"baseline": folders["baseline"], "reference": odd}, tmp_path / "out")


def test_compare_and_tables(full: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, results = full
    table = compare([out.parent, out, out / "results.json"][1:])
    name = out.parent.name
    assert table.columns[:2] == ["measure", f"{name}: baseline"] and f"{name}#2: unlearned" in table.columns
    cells = dict(zip(table.columns, next(r for r in table.rows if r[0] == "loss.target"), strict=True))
    assert cells[f"{name}: baseline"] == results["models"]["baseline"]["measures"]["loss.target"]["value"]
    text = to_csv(table)
    assert text.count("\n") == len(table.rows) + 1
    odd = table._replace(columns=["=cmd()", "@x"], rows=[["-1+1", -0.5], ["+x", None]])
    assert to_csv(odd).splitlines() == ["'=cmd(),'@x", "'-1+1,-0.5", "'+x,"]
    shown = before_after_table(results)
    assert shown.columns == ["measure", "baseline", "unlearned", "never read (reference)", "way there"]
    assert "%" in str(next(r for r in shown.rows if str(r[0]).startswith("loss on the target"))[-1])


def test_compare_refuses_what_is_not_results(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match=r"no results\.json"):
        load_results(tmp_path)
    for content in ('{"schema_version": 1, "x": NaN}', "{", '{"schema_version": 99}', "[]"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ForgetkitError):
            load_results(tmp_path)
