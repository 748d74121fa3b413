"""Suites end to end on tiny models that really learned a text, with data in the published layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import load_model
from forgetkit.evaluate import attacks, measure, rows, suites, utility
from forgetkit.evaluate.compare import suite_notes, suite_tables, to_text
from forgetkit.evaluate.data import FAMILIES, data_digest, data_texts, load_data
from forgetkit.evaluate.knowledge import Choice, measure_choices, measure_knowmem
from forgetkit.evaluate.layouts import read_muse, read_tofu
from forgetkit.evaluate.memorization import VERBATIM_TOKENS, encode_passages, score_verbatim
from forgetkit.evaluate.significance import holm, items
from forgetkit.evaluate.statistics import Estimate
from forgetkit.evaluate.tofu import forget_quality, forget_ratios, measure_tofu
from forgetkit.evaluate.tokens import continue_greedily, measure_tokens
from forgetkit.settings import EvaluateSettings, ModelSettings, Settings
from forgetkit.standalone import measure as measure_alone
from tests import toys
from tests.unit.evaluate import data_folder, test_utility
from tests.unit.evaluate.conftest import PLAIN, STORY, corpus
from tests.unit.evaluate.test_run import SETTINGS, probes, run, strict
from tests.unit.evaluate.test_utility import needs_lm_eval

ROLES = ("baseline", "unlearned", "reference")
MODEL = ModelSettings(dtype="float32", device="cpu")
HOLDOUT = corpus(PLAIN[:150], PLAIN[30:])


def with_suite(suite: str, **more: Any) -> EvaluateSettings:
    return SETTINGS.model_copy(update={"suite": suite, "passages": 12, "attack_texts": 12, **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TOFU and MUSE in folders of their own names, WMDP and the utility tasks directly in the data folder."""
    folder = tmp_path_factory.mktemp("data")
    data_folder.tofu(folder / "tofu")
    data_folder.muse(folder / "muse")
    data_folder.wmdp(folder)
    return test_utility.write(folder)


def all_models(folders: dict[str, Path]) -> dict[str, Path]:
    return {role: folders[role] for role in ROLES}


def by_key(results: dict[str, Any]) -> dict[str, Any]:
    families = results["suites"]["families"]
    return {row["key"]: row for family in families.values() for row in family["rows"]}


@pytest.fixture(scope="module")
def full(folders: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("lm_eval")
    out = tmp_path_factory.mktemp("suite") / "out"
    settings = probes(tmp_path_factory.mktemp("suite-probes"), suite="full", data_dir=str(data), passages=12)
    snapshots: dict[int, Any] = {2: folders["unlearned"]}
    return out, run(all_models(folders), out, settings=settings, holdout=HOLDOUT, snapshots=snapshots)


# --- every family, against the pure functions -----------------------------------------------------------------


def test_full_holds_every_family_and_is_strict(full: tuple[Path, dict[str, Any]]) -> None:
    out, results = full
    assert strict(out / "results.json") == results
    strict(out / "details.json")
    told = results["suites"]
    assert tuple(told["families"]) == FAMILIES["full"] and told["suite"] == "full"
    assert set(told["data"]["layouts"]) == set(told["data"]["sha256"]) == {"utility", "tofu", "muse", "wmdp"}
    for name, family in told["families"].items():
        assert family["missing"] is None and family["rows"], name
        for row in family["rows"]:
            assert set(row["models"]) == set(ROLES)
            for cell in row["models"].values():
                assert (cell["value"] is None) == (cell["reason"] is not None and "no interval" not in cell["reason"])
                if cell["low"] is not None:
                    assert cell["low"] <= cell["value"] + 1e-12 and cell["value"] <= cell["high"] + 1e-12


def test_memorisation_rows_are_those_of_the_pure_functions(
    full: tuple[Path, dict[str, Any]], folders: dict[str, Path]
) -> None:
    found = by_key(full[1])
    tokens, model = toys.tokenizer(), load_model(folders["unlearned"], MODEL)
    target = corpus(STORY)
    blocks = [np.asarray(target[i].ids).tolist() for i in suites.sample_blocks(target, 12)]
    starts = [len(ids) // 2 for ids in blocks]
    scores = measure_tokens(model, blocks, starts)
    cells = {key: found[f"memorization.{key}"]["models"]["unlearned"] for key in ("exact", "probability", "perplexity")}
    assert cells["exact"]["value"] == pytest.approx(scores.text_means(scores.hit).mean())
    assert cells["probability"]["value"] == pytest.approx(np.exp(scores.mean_log_p).mean())
    assert cells["perplexity"]["value"] == pytest.approx(math.exp(-scores.log_p.mean()))
    assert cells["exact"]["n"] == 12 and cells["exact"]["error"] > 0
    passages = [suites.Passage(ids[:at], ids[at:]) for ids, at in zip(blocks, starts, strict=True)]
    longest = max(len(one.suffix) for one in passages)
    made = continue_greedily(model, [one.prefix for one in passages], longest, tokens.eos_token_id, "verbatim")
    verbatim = score_verbatim(tokens, passages, made, "openunlearning")
    row = found["memorization.verbatim.openunlearning.recall"]["models"]["unlearned"]
    assert row["value"] == pytest.approx(verbatim.recall.mean())
    assert found["memorization.run"]["models"]["unlearned"]["value"] == pytest.approx(verbatim.run.mean())
    main = full[1]["models"]["unlearned"]["measures"]["extraction.strength"]["value"]
    assert found["extraction.strength"]["models"]["unlearned"]["value"] == main
    for convention in ("tofu", "openunlearning"):
        assert 0 < found[f"memorization.truth_ratio.{convention}"]["models"]["baseline"]["value"] <= 1


def test_tofu_muse_and_wmdp_rows_are_those_of_the_pure_functions(
    full: tuple[Path, dict[str, Any]], folders: dict[str, Path], data: Path
) -> None:
    found, tokens = by_key(full[1]), toys.tokenizer()
    models = {role: load_model(folders[role], MODEL) for role in ROLES}
    tofu = read_tofu(data / "tofu")
    scores = {role: measure_tofu(model, tokens, tofu.forget, tokens=20) for role, model in models.items()}
    for convention in ("tofu", "openunlearning"):
        own, other = (
            forget_ratios(scores[r].paraphrase, scores[r].wrong, convention) for r in ("unlearned", "reference")
        )  # type: ignore[arg-type]
        cell = found[f"tofu.forget_quality.{convention}"]["models"]["unlearned"]
        quality = forget_quality(own, other)
        assert (cell["value"], cell["p"], cell["n"]) == (quality.statistic.value, quality.p, 6)
        assert found[f"tofu.forget_quality.{convention}"]["models"]["reference"]["value"] == 0
        parts = found[f"tofu.model_utility.{convention}"]["models"]["baseline"]["parts"]
        assert len(parts) == 9
    muse = read_muse(data / "muse")
    passages = encode_passages(tokens, muse.verbatim)
    prefixes = [one.prefix for one in passages]
    recited = continue_greedily(models["baseline"], prefixes, VERBATIM_TOKENS, tokens.eos_token_id, "verbatim")
    verbatim = score_verbatim(tokens, passages, recited)
    cell = found["muse.verbmem.muse.f1"]["models"]["baseline"]
    assert cell["value"] == pytest.approx(verbatim.f1.mean())
    family = full[1]["suites"]["families"]["muse"]
    shots = family["about"]["knowmem"]["forget"]["examples"]
    assert 0 < shots < family["about"]["knowmem"]["forget"]["examples_given"] == 30  # the window of 256 holds no more
    made = measure_knowmem(models["unlearned"], tokens, muse.forget_questions, muse.forget_shots[:shots])
    assert found["muse.knowmem_forget.muse.f1"]["models"]["unlearned"]["value"] == pytest.approx(made.f1.mean())
    ways = {way["name"]: way for way in family["ways"]}
    assert ways["verbmem"]["value"]["value"] == pytest.approx(
        100 * found["muse.verbmem.muse.f1"]["models"]["unlearned"]["value"]
    )
    assert ways["privleak"]["value"]["value"] == found["muse.privleak.privleak"]["models"]["unlearned"]["value"]
    assert ways["scalability"]["value"]["reason"] == "not measured"
    choices = [Choice(f"Who lived in house {i}?", data_folder.NAMES[i : i + 4], i % 4) for i in range(3)]
    scored = measure_choices(models["baseline"], tokens, choices)
    row = found["wmdp.bio"]
    assert row["models"]["baseline"]["value"] == pytest.approx(scored.correct.mean()) and row["chance"] == 0.25
    assert full[1]["suites"]["families"]["wmdp"]["about"]["bio"] == {"n": 3, "left_out_too_long": 1}


def test_privacy_rows_are_those_of_the_pure_functions(
    full: tuple[Path, dict[str, Any]], folders: dict[str, Path]
) -> None:
    found = by_key(full[1])
    family = full[1]["suites"]["families"]["privacy"]
    assert family["about"]["source"] == "holdout text" and family["about"]["members"]["documents"] == 1
    sides: dict[str, list[Any]] = {}
    for role in ROLES:
        model = load_model(folders[role], MODEL)
        for text in (corpus(STORY), HOLDOUT):
            whole = [np.asarray(block.ids).tolist() for block in text if len(block.ids) == 32]
            sides.setdefault(role, []).append(measure_tokens(model, whole))
    pairs = {role: tuple(items(attacks.min_k_scores(one)) for one in own) for role, own in sides.items()}
    for role, (members, nonmembers) in pairs.items():
        assert found["privacy.min_k.auroc"]["models"][role]["value"] == attacks.auroc(members, nonmembers)
    own, reference = (attacks.auroc(*pairs[role]) for role in ("unlearned", "reference"))
    leak = found["privacy.privleak"]["models"]
    assert leak["unlearned"]["value"] == pytest.approx(attacks.privleak_value(own, reference))
    assert leak["reference"]["value"] == 0
    difference = found["privacy.min_k.auroc"]["to_reference"]
    assert difference["value"] == pytest.approx(own - reference)
    assert difference["low"] is None and "one document" in difference["reason"]  # the target is one document
    assert found["privacy.reference_ratio.auroc"]["models"]["reference"]["value"] is None
    assert "cannot resolve" in found["privacy.loss.tpr"]["models"]["unlearned"]["reason"]


def test_utility_rows_are_lm_evals_and_stand_along_the_curve(
    full: tuple[Path, dict[str, Any]], folders: dict[str, Path], data: Path
) -> None:
    _, results = full
    found = by_key(results)
    for role in ROLES:
        made = utility.measure_utility(load_model(folders[role], MODEL), toys.tokenizer(), data_dir=data)
        for task, scores in made.items():
            for metric in scores.metrics:
                cell = found[f"utility.{task}.{metric}"]["models"][role]
                assert (cell["value"], cell["n"]) == (pytest.approx(scores.series(metric).mean), len(scores.items))
        mean = np.mean([scores.acc.mean() for scores in made.values()])
        assert found["utility.mean"]["models"][role]["value"] == pytest.approx(mean)
    row = found["utility.arc_challenge.acc"]
    assert row["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 4) / 3)
    delta = row["models"]["unlearned"]["delta"]
    assert delta["value"] == pytest.approx(row["difference"]["value"]) and delta["error"] == row["difference"]["error"]
    steps = {
        one["step"]: {u["task"]: u["value"] for u in one["utility"] if u["metric"] == "acc"} for one in results["curve"]
    }
    assert steps[0]["piqa"] == found["utility.piqa.acc"]["models"]["baseline"]["value"]
    assert steps[2]["arc_easy"] == found["utility.arc_easy.acc"]["models"]["unlearned"]["value"]


def test_statistics_are_adjusted_over_all_families(full: tuple[Path, dict[str, Any]]) -> None:
    found = by_key(full[1])
    tests = full[1]["suites"]["statistics"]["tests"]
    for question in ("difference", "to_reference", "equivalence"):
        plain = [row[question]["p"] for row in found.values()]
        assert [row[question]["p_holm"] for row in found.values()] == holm(plain)
        assert tests[question] == sum(p is not None for p in plain) > 5
    auroc = [row["models"]["unlearned"] for key, row in found.items() if key.endswith(".auroc")]
    assert [cell["p_holm"] for cell in auroc] == holm([cell["p"] for cell in auroc])
    assert tests["attack"] == len(auroc) == 14
    for row in found.values():
        test = row["equivalence"]
        assert test["to"] == ("baseline" if row["group"] == "keep" else "reference")
        if row["key"].startswith("utility."):  # two or three items show no equivalence, however alike
            assert test["equivalent"] is None and test["reason"]
    assert found["memorization.exact"]["equivalence"]["equivalent"] in (True, False)


def test_the_tables_print_sizes_tests_and_reasons(full: tuple[Path, dict[str, Any]]) -> None:
    tables = dict(suite_tables(full[1]))
    families = list(FAMILIES["full"])
    after_muse = families.index("muse") + 1
    assert list(tables) == [*families[:after_muse], "muse: the six ways", *families[after_muse:]]
    assert tables["privacy"].columns[:3] == ["measure", "n (clusters)", "chance"]
    cells = next(row for row in to_text(tables["utility"]) if row[0] == "arc_challenge (acc)")
    assert cells[1:3] == ["3 (3)", "0.2778"] and "±" in cells[3] and "to" in cells[6]
    notes = suite_notes(full[1])
    assert "Holm" in notes[0] and "margin 0.05" in notes[0]
    assert any("cannot resolve a false-positive rate" in note for note in notes)
    assert suite_tables({"models": {}}) == suite_notes({}) == []


# --- health, cache, what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dead", "mute"])
def test_an_unhealthy_model_gets_no_forgetting_row(
    kind: str, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    settings = probes(tmp_path / "probes", suite="full", data_dir=str(data), passages=6, attack_texts=6)
    models = all_models(folders) | {"unlearned": folders[kind]}
    results = run(models, tmp_path / "out", settings=settings, holdout=HOLDOUT)
    details = strict(tmp_path / "out" / "details.json")["suites"]
    for key, row in by_key(results).items():
        cell = row["models"]["unlearned"]
        if row["group"] == "forget":
            assert cell["value"] is None and cell["reason"].startswith("withheld: the model is not healthy"), key
            for question in ("difference", "to_reference"):
                assert row[question]["value"] is None and row[question]["p"] is None, key
            assert row["equivalence"]["equivalent"] is None
            assert details.get(key, {}).get("unlearned") is None
        elif key.startswith("utility.") and kind == "mute":
            assert cell["value"] is not None, key
    ways = {way["name"]: way["value"] for way in results["suites"]["families"]["muse"]["ways"]}
    assert ways["verbmem"]["value"] is ways["privleak"]["value"] is None
    shown = dict(suite_tables(results))["privacy"]
    assert all("withheld" in row for row in shown.rows)


def test_a_killed_suite_goes_on(
    folders: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    work = tmp_path / "work"
    models = {role: folders[role] for role in ("baseline", "unlearned")}
    settings = with_suite("full", data_dir=str(data))
    loaded: list[Path] = []
    real_load, real_tofu = measure.load_model, suites.measure_tofu

    def counted(source: Path, settings: ModelSettings) -> Any:
        loaded.append(source)
        return real_load(source, settings)

    def killed(*arguments: Any, **named: Any) -> Any:
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return real_tofu(*arguments, **named)

    def go(name: str, **more: Any) -> dict[str, Any]:
        return run(models, tmp_path / name, work=work, settings=settings.model_copy(update=more), holdout=HOLDOUT)

    monkeypatch.setattr(measure, "load_model", counted)
    monkeypatch.setattr(suites, "measure_tofu", killed)
    with pytest.raises(KeyboardInterrupt):
        go("one")
    written = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    monkeypatch.setattr(suites, "measure_tofu", real_tofu)
    loaded.clear()
    resumed = go("two")
    assert loaded == [folders["unlearned"]]
    assert {path: path.stat().st_mtime_ns for path in written} == written  # no part was measured a second time
    loaded.clear()
    assert go("three")["suites"] == resumed["suites"] and loaded == []
    monkeypatch.setattr(measure, "load_model", real_load)
    straight = run(models, tmp_path / "four", settings=settings, holdout=HOLDOUT)
    assert straight["suites"] == resumed["suites"]
    monkeypatch.setattr(measure, "load_model", counted)
    for change in ({"tofu_template": "Q: {question} A:"}, {"utility_limit": 1}, {"passages": 5}, {"attack_texts": 5}):
        loaded.clear()
        go("again", **change)
        assert loaded == list(models.values()), change  # other inputs: not from the cache
    loaded.clear()
    go("margin", margin=0.2)
    assert loaded == []  # other statistics of the same measurements


def test_a_smaller_suite_is_answered_from_the_cache_of_a_larger_one(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, work = {"unlearned": folders["unlearned"]}, tmp_path / "work"
    everything = run(models, tmp_path / "a", settings=with_suite("full"), work=work, holdout=HOLDOUT)
    monkeypatch.setattr(measure, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for suite in ("memorization", "privacy", "paper"):
        some = run(models, tmp_path / suite, settings=with_suite(suite), work=work, holdout=HOLDOUT)
        cells = [(row["models"], by_key(everything)[key]["models"]) for key, row in by_key(some).items()]
        assert all(a["unlearned"]["value"] == b["unlearned"]["value"] for a, b in cells)


def test_what_is_missing_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    models = {"unlearned": folders["unlearned"]}
    texts = {"heldout": corpus(PLAIN * 3)}  # as the bundled sample: not given, so no non-members
    results = run(models, tmp_path / "a", settings=with_suite("full"), texts=texts)
    families = results["suites"]["families"]
    assert "--holdout" in families["privacy"]["missing"]
    assert "--data-dir" in families["utility"]["missing"]
    assert families["familiarity"]["missing"] == families["knowledge"]["missing"] == "no probes were given"
    assert families["tofu"]["missing"] == "no data folder that holds TOFU"
    assert families["memorization"]["missing"] is None
    truth = by_key(results)["memorization.truth_ratio.tofu"]["models"]["unlearned"]
    assert "cloze probes" in truth["reason"]
    exact = by_key(results)["memorization.exact"]
    assert exact["difference"]["reason"] == "no baseline model was given"
    assert exact["to_reference"]["reason"] == exact["equivalence"]["reason"] == "no reference model was given"
    titles = [title for title, _ in suite_tables(results)]
    assert "tofu: not measured (no data folder that holds TOFU)" in titles
    assert results["suites"]["statistics"]["tests"]["difference"] == 0


@pytest.mark.parametrize(
    ("given", "source"), [("heldout", "held-out"), ("neighbour", "neighbour"), ("holdout", "holdout")]
)
def test_where_non_members_come_from(given: str, source: str, folders: dict[str, Path], tmp_path: Path) -> None:
    settings = with_suite("privacy", heldout=(tmp_path,) if given == "heldout" else ())
    texts = {name: corpus(PLAIN * 2) for name in ("heldout", "neighbour") if name == given or name == "heldout"}
    holdout = HOLDOUT if given == "holdout" else None
    models = {"unlearned": folders["unlearned"]}
    results = run(models, tmp_path / "out", settings=settings, texts=texts, holdout=holdout)
    family = results["suites"]["families"]["privacy"]
    assert family["about"]["source"].startswith(source)
    assert "no reference" in by_key(results)["privacy.privleak"]["models"]["unlearned"]["reason"]
    assert by_key(results)["privacy.zlib.auroc"]["models"]["unlearned"]["value"] is not None


def test_the_default_suite_adds_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    results = run({"baseline": folders["baseline"]}, tmp_path)
    assert results["suites"] is None and strict(tmp_path / "details.json")["suites"] is None
    assert "utility" not in results["curve"][0]


def test_text_without_latin_letters_has_no_rouge(folders: dict[str, Path], tmp_path: Path) -> None:
    from forgetkit.evaluate.run import evaluate
    from tests.unit.evaluate.conftest import dictionary

    models = {"unlearned": folders["unlearned"]}
    settings = with_suite("memorization")
    results = evaluate(
        models, corpus("Жил-был кот. " * 9), dictionary("Nowhere"), {}, toys.tokenizer(), settings, MODEL, tmp_path, 0
    )
    found = by_key(results)
    assert "no words" in found["memorization.verbatim.muse.f1"]["models"]["unlearned"]["reason"]
    assert found["memorization.exact"]["models"]["unlearned"]["value"] is not None


# --- targets from the data folder ------------------------------------------------------------------------------


def alone(folders: dict[str, Path], out: Path, target: list[Path] | None = None, **more: Any) -> dict[str, Any]:
    chosen = with_suite(more.pop("suite"), **more)
    settings = Settings(model=MODEL, evaluate=chosen, threads=1)
    settings = settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"block_tokens": 32})})
    return measure_alone(str(folders["unlearned"]), str(folders["baseline"]), target or [], [], settings, out)


def test_muse_gives_target_retain_and_non_members(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = data_folder.muse(tmp_path / "data" / "data" / "news")
    assert folder.is_dir()
    results = alone(folders, tmp_path / "out", suite="memorization", data_dir=str(tmp_path / "data"))
    assert results["texts"]["target"]["documents"] == 2 and results["texts"]["retain"]["documents"] == 1
    assert results["suites"]["families"]["memorization"]["about"]["passages"]["source"] == "MUSE's passages"
    results = alone(folders, tmp_path / "out", suite="privacy", data_dir=str(tmp_path / "data"))
    about = results["suites"]["families"]["privacy"]["about"]
    assert (about["source"], about["members"]["n"], about["nonmembers"]["n"]) == ("MUSE's holdout", 4, 3)


def test_tofu_gives_the_target_its_questions_and_its_holdout(folders: dict[str, Path], tmp_path: Path) -> None:
    data_folder.tofu(tmp_path / "data")
    results = alone(folders, tmp_path / "out", suite="memorization", data_dir=str(tmp_path / "data"))
    assert results["texts"]["target"]["documents"] == results["texts"]["retain"]["documents"] == 6
    about = results["suites"]["families"]["memorization"]["about"]
    assert about["passages"]["source"] == "TOFU's questions" and "TOFU" in about["truth_ratio"]
    results = alone(folders, tmp_path / "out", suite="privacy", data_dir=str(tmp_path / "data"))
    assert results["suites"]["families"]["privacy"]["about"]["source"] == "TOFU's holdout questions"


def test_a_target_of_ones_own_goes_before_the_data_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    data_folder.tofu(tmp_path / "data")
    (tmp_path / "mine.txt").write_text(STORY)
    results = alone(
        folders, tmp_path / "out", [tmp_path / "mine.txt"], suite="memorization", data_dir=str(tmp_path / "data")
    )
    assert results["texts"]["target"]["documents"] == 1 and "retain" not in results["texts"]
    assert results["suites"]["families"]["memorization"]["about"]["passages"]["source"].startswith(
        "the target's blocks"
    )


def test_muse_scalability_and_sustainability(folders: dict[str, Path], tmp_path: Path) -> None:
    data_folder.muse(tmp_path / "data")
    several = (str(folders["baseline"]), str(folders["unlearned"]))
    settings = with_suite("full", data_dir=str(tmp_path / "data"), muse_scalability=several)
    results = run({"unlearned": folders["unlearned"]}, tmp_path / "out", settings=settings)
    ways = {way["name"]: way for way in results["suites"]["families"]["muse"]["ways"]}
    curve = ways["scalability"]["curve"]
    assert len(curve) == 2 and ways["scalability"]["value"]["value"] == pytest.approx(curve[1] - curve[0])
    assert ways["sustainability"]["curve"] == []
    with pytest.raises(ForgetkitError, match="need MUSE's questions"):
        run(
            {"unlearned": folders["unlearned"]},
            tmp_path / "out2",
            settings=with_suite("privacy", muse_sustainability=several),
        )


# --- the data folder -------------------------------------------------------------------------------------------


def settings_for(folder: Path | str, suite: str = "full", **more: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"suite": suite, "data_dir": str(folder), **more})


def test_layouts_are_found_directly_and_in_folders_of_their_names(tmp_path: Path) -> None:
    data_folder.tofu(tmp_path / "one")
    assert load_data(settings_for(tmp_path / "one"), MODEL).found == ("tofu",)
    data_folder.muse(tmp_path / "two" / "muse")
    data_folder.wmdp(tmp_path / "two" / "wmdp")
    found = load_data(settings_for(tmp_path / "two"), MODEL)
    assert found.found == ("muse", "wmdp") and set(found.wmdp) == {"bio"} and found.tofu is None
    assert data_texts(settings_for(tmp_path / "two"), MODEL).layout == "muse"


def test_the_digest_follows_the_files(tmp_path: Path) -> None:
    data_folder.tofu(tmp_path)
    settings = settings_for(tmp_path, "memorization")
    first = data_digest(settings, MODEL)
    assert first == data_digest(settings, MODEL) != ""
    data_folder.lines(tmp_path / "holdout10.json", [data_folder.question(99)])
    assert data_digest(settings, MODEL) != first
    assert data_digest(EvaluateSettings(), MODEL) == ""


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("make", "change", "suite", "said"),
    [
        (data_folder.tofu, remove("retain_perturbed.json"), "full", r"no file retain_perturbed\.json.*layout of TOFU"),
        (data_folder.muse, remove("verbmem/forget.json"), "memorization", r"no file verbmem/forget.*layout of MUSE"),
        (data_folder.tofu, lambda folder: None, "paper", r"no file arc_challenge/test\.jsonl.*utility tasks"),
        (
            data_folder.tofu,
            lambda folder: data_folder.lines(folder / "forget10.json", [{"question": "Who?", "answer": " "}]),
            "full",
            r"forget10\.json:1: 'answer' is empty",
        ),
        (
            data_folder.wmdp,
            lambda folder: data_folder.lines(
                folder / "wmdp-bio" / "test.jsonl", [{"question": "Who?", "choices": ["a", "b"], "answer": 4}]
            ),
            "full",
            r"test\.jsonl:1: 'answer' is 4",
        ),
    ],
)
def test_broken_data_folders(make: Any, change: Any, suite: str, said: str, tmp_path: Path) -> None:
    make(tmp_path)
    change(tmp_path)
    with pytest.raises(ForgetkitError, match=said):
        load_data(settings_for(tmp_path, suite), MODEL)


def test_folders_without_any_layout(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match=r"no file arc_challenge/test\.jsonl.*utility tasks.*answerKey"):
        load_data(settings_for(tmp_path, "paper"), MODEL)
    with pytest.raises(ForgetkitError, match=r"holds no file.*forget10_perturbed\.json \(TOFU\).*MUSE.*WMDP"):
        load_data(settings_for(tmp_path), MODEL)
    with pytest.raises(ForgetkitError, match=r"no such data folder - give a folder, or one of locuslab/TOFU"):
        load_data(settings_for(tmp_path / "gone"), MODEL)
    with pytest.raises(ForgetkitError, match=r"locuslab/TOFU: no such folder, and not in the local Hub cache"):
        load_data(settings_for("locuslab/TOFU"), MODEL)


def test_unknown_suites_and_tasks(tmp_path: Path) -> None:
    settings = EvaluateSettings().model_copy(update={"suite": "privcy"})
    with pytest.raises(ForgetkitError, match="unknown suite 'privcy' - did you mean privacy"):
        load_data(settings, MODEL)
    with pytest.raises(ForgetkitError, match="unknown utility task 'hellaswg' - did you mean hellaswag"):
        load_data(EvaluateSettings(suite="paper", utility_tasks=("hellaswg",)), MODEL)


@needs_lm_eval
def test_some_tasks_alone_need_their_files_alone(tmp_path: Path) -> None:
    test_utility.write(tmp_path, {"piqa": test_utility.DATA["piqa"]})
    found = load_data(settings_for(tmp_path, "paper", utility_tasks=["piqa"]), MODEL)
    assert found.tasks == ("piqa",)
    with pytest.raises(ForgetkitError, match=r"no file arc_challenge/test\.jsonl"):
        load_data(settings_for(tmp_path, "paper"), MODEL)


def test_lm_eval_missing_is_told_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_utility.write(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ForgetkitError, match=r"pip install 'forgetkit\[eval\]'"):
        load_data(settings_for(tmp_path, "paper"), MODEL)


# --- rows by hand ----------------------------------------------------------------------------------------------


def judged(line: rows.Line, n: int, folders: dict[str, Path]) -> dict[str, Any]:
    from forgetkit.evaluate.health import HealthVerdict
    from forgetkit.evaluate.plan import make_plan
    from tests.unit.evaluate.conftest import dictionary

    plan = make_plan(corpus(STORY), dictionary("Dorothy"), {}, toys.tokenizer(), with_suite("memorization"), 0)
    return rows._row(line, {role: HealthVerdict("healthy") for role in ROLES}, plan)


def test_equal_items_are_shown_equal_only_where_there_are_enough(folders: dict[str, Path]) -> None:
    """With a margin of 0.05, 60 items without a difference leave 3/60 = 0.05 open; 59 leave more."""
    for n, equivalent in ((59, None), (60, True)):
        same = items(np.ones(n))
        line = rows.Line("k", "k", "keep", -1, series={"unlearned": same, "baseline": same})
        assert judged(line, n, folders)["equivalence"]["equivalent"] is equivalent
    apart = items(np.tile([0.0, 0.02], 10))
    line = rows.Line("k", "k", "keep", -1, series={"unlearned": apart, "baseline": items(np.zeros(20))})
    row = judged(line, 20, folders)
    assert row["equivalence"]["equivalent"] is True and row["difference"]["value"] == pytest.approx(0.01)
    line.margin = False
    assert judged(line, 20, folders)["equivalence"]["equivalent"] is None


def test_one_cluster_has_no_interval_and_no_p(folders: dict[str, Path]) -> None:
    one = {role: items([0.1 * i, 0.5], [7, 7]) for i, role in enumerate(("baseline", "unlearned"))}
    row = judged(rows.Line("k", "k", "keep", -1, series=one), 2, folders)
    assert row["difference"]["value"] == pytest.approx(0.05)
    assert row["difference"]["low"] is None and row["difference"]["p"] is None
    assert (row["models"]["unlearned"]["n"], row["models"]["unlearned"]["clusters"]) == (2, 1)


def test_perplexity_is_the_exponential_of_the_weighted_loss(folders: dict[str, Path]) -> None:
    series = rows.Series(np.array([1.0, 3.0]), np.array([3.0, 1.0]), np.array([0, 1]))
    line = rows.Line("p", "p", "forget", -1, exponential=True, margin=False)
    line.series = {"unlearned": series, "reference": rows.Series(series.values + 1, series.weights, series.groups)}
    row = judged(line, 2, folders)
    assert row["models"]["unlearned"]["value"] == pytest.approx(math.exp(1.5))
    assert row["models"]["unlearned"]["error"] == pytest.approx(math.exp(1.5) * series.error)
    assert row["to_reference"]["value"] == pytest.approx(math.exp(1.5) - math.exp(2.5))


def test_a_mean_over_tasks_weighs_tasks_alike() -> None:
    lines = []
    for name, own, base in (("a", [1.0, 0.0], [1.0, 1.0]), ("b", [1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])):
        line = rows.Line(f"utility.{name}.acc", name, "keep", -1, chance=0.25)
        line.series = {"unlearned": items(own), "baseline": items(base)}
        lines.append(line)
    mean = rows._mean_utility(("a", "b"), lines)
    assert mean.cells["unlearned"][0].value == pytest.approx((0.5 + 0.75) / 2)
    # standard errors 0.5 and 0.25: sqrt(0.25 + 0.0625) / 2
    assert mean.errors["unlearned"] == pytest.approx(math.sqrt(0.3125) / 2)
    assert mean.differences["baseline"].value == pytest.approx((-0.5 + 0.25) / 2)
    assert isinstance(mean.differences["baseline"], Estimate) and mean.chance == 0.25


def test_spread_indices() -> None:
    assert suites.spread(3, 5).tolist() == [0, 1, 2]
    assert suites.spread(10, 2).tolist() == [2, 7]
    assert json.dumps(suites.spread(0, 2).tolist()) == "[]"
