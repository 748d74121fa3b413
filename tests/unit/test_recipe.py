"""The recipe of the testbed: batches, rates, resuming, and what is refused. Tiny models, a made-up corpus."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from forgetkit import demo
from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.cloze import measure_cloze
from forgetkit.evaluate.probes import Cloze, load_probes
from forgetkit.evaluate.retraining import load_seeds
from forgetkit.settings import Settings
from tests import toys
from tests.unit.evaluate.conftest import cloze_line

RECIPE = Path(__file__).parents[2] / "recipes" / "oz"


@pytest.fixture(scope="module", autouse=True)
def modules() -> Any:
    """The recipe's scripts, which import each other by their bare names."""
    sys.path.insert(0, str(RECIPE))
    names = ("data", "train", "make")
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(RECIPE))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source folder: five books of a corpus, two of Oz, one held out."""
    folder = tmp_path_factory.mktemp("texts")
    with lzma.open(folder / "corpus.jsonl.xz", "wt", encoding="utf-8") as lines:
        for i in range(5):
            print(
                json.dumps({"author": "A", "title": str(i), "text": f"Book {i}. " + toys.TEXT[400:] * 30}), file=lines
            )
    for part, n in (("oz", 2), ("heldout", 1)):
        (folder / part).mkdir()
        for i in range(n):
            (folder / part / f"{i}.txt").write_text(f"{part} {i}. " + toys.TEXT * 8)
    return folder


@pytest.fixture(scope="module")
def fetched(texts: Path, tmp_path_factory: pytest.TempPathFactory, modules: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("out") / "data"
    modules["data"].fetch(texts, folder)
    return folder


def tiny_init(folder: Path) -> Path:
    toys.tokenizer("bytelevel").save_pretrained(folder)
    toys.model("llama").config.save_pretrained(folder)
    return folder


# --- batches and rates ---------------------------------------------------------------------------------

CORPUS = np.arange(50 * 8).reshape(50, 8).astype(np.uint16)
OZ = (1000 + np.arange(7 * 8)).reshape(7, 8).astype(np.uint16)


@pytest.mark.parametrize("oz", [4, 16])
def test_twins_read_the_same_corpus_blocks_and_one_reads_oz_besides(modules: Any, oz: int) -> None:
    for step in range(12):  # beyond one pass over the corpus and over Oz
        own = modules["train"].batch(CORPUS, OZ, step, 3, oz)
        twin = modules["train"].batch(CORPUS, OZ, step, 3, 0)
        assert len(own) == 16 + oz
        assert torch.equal(own[:16], twin)
        assert int(twin.max()) < 1000
        assert int(own[16:, 0].min()) >= 1000


def test_the_batches_of_the_shipped_models_stay_what_they_were(modules: Any) -> None:
    recorded = {
        (0, 1, 4): [0, 24, 48, 72, 120, 128, 160, 184, 192, 200, 216, 224, 240, 264, 296, 392, 1048, 1008, 1032, 1000],
        (5, 3, 0): [48, 64, 72, 80, 112, 128, 208, 216, 232, 248, 264, 272, 336, 352, 360, 376],
    }
    for (step, seed, oz), first in recorded.items():
        assert modules["train"].batch(CORPUS, OZ, step, seed, oz)[:, 0].tolist() == first


def test_every_pass_reads_every_block_once(modules: Any) -> None:
    corpus = np.arange(64)[:, None].astype(np.uint16)
    oz = (1000 + np.arange(8))[:, None].astype(np.uint16)
    read = torch.cat([modules["train"].batch(corpus, oz, step, 5, 4) for step in range(4)]).flatten()
    assert sorted(read[read < 1000].tolist()) == list(range(64))
    assert sorted(read[read >= 1000].tolist()) == sorted(2 * list(range(1000, 1008)))


def test_rates(modules: Any) -> None:
    rate = modules["train"].rate_at
    assert [rate(s, 10, 1.0, 4, "linear") for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4, 10, 1.0, 4, "linear") == 1.0
    assert rate(7, 10, 1.0, 4, "linear") == pytest.approx(0.5)
    assert rate(9, 10, 1.0, 4, "linear") == pytest.approx(1 / 6)
    assert rate(9, 10, 1.0, 4, "constant") == 1.0
    assert rate(0, 10, 1.0, 0, "linear") == 1.0


# --- training ------------------------------------------------------------------------------------------


def train_tiny(modules: Any, folder: Path, texts: Path) -> dict[str, torch.Tensor]:
    tiny_init(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    sizes = {"steps": 6, "peak": 1e-2, "warmup": 2, "decay": "linear", "oz": 4, "seed": 1}
    modules["train"].train(model, folder, texts, **sizes, save_every=3)
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return weights


def test_killed_after_three_of_six_steps_equals_six_straight(
    modules: Any, fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_tiny(modules, tmp_path / "straight", fetched)
    original = modules["train"].batch

    def killed(*given: Any) -> torch.Tensor:
        if given[2] == 4:  # one step beyond what has been saved
            raise KeyboardInterrupt
        rows: torch.Tensor = original(*given)
        return rows

    folder = tmp_path / "killed"
    monkeypatch.setattr(modules["train"], "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(modules, folder, fetched)
    assert (folder / "state.pt").exists()
    assert not modules["train"].finished(folder)

    steps: list[int] = []

    def recorded(*given: Any) -> torch.Tensor:
        steps.append(given[2])
        rows: torch.Tensor = original(*given)
        return rows

    monkeypatch.setattr(modules["train"], "batch", recorded)
    resumed = train_tiny(modules, folder, fetched)
    assert steps == [3, 4, 5]
    assert modules["train"].finished(folder)
    assert {k: v.dtype for k, v in resumed.items()} == dict.fromkeys(straight, torch.bfloat16)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)

    def losses(path: Path) -> list[list[str]]:
        return [line.split(",")[:3] for line in (path / "curve.csv").read_text().splitlines()]

    assert losses(folder) == losses(tmp_path / "straight")
    assert [row[0] for row in losses(folder)] == ["step", "3", "6"]


def test_weights_beside_a_state_are_not_finished(modules: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert modules["train"].finished(tmp_path)
    (tmp_path / "state.pt").touch()
    assert not modules["train"].finished(tmp_path)


# --- texts and tokenizer -------------------------------------------------------------------------------


def test_the_tokenizer_and_the_tokens(modules: Any, fetched: Path, tmp_path: Path) -> None:
    data = modules["data"]
    tokenizer = data.train_tokenizer(fetched, vocabulary=320)
    assert len(tokenizer) == 320
    assert {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} == {"<|endoftext|>"}
    assert tokenizer.all_special_ids == [0]
    text = 'The "Tin" Woodman\n\nsaid: caf\u00e9'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    own = tmp_path / "data"
    data.fetch(fetched, own)
    for part in data.PARTS:
        stream = data.tokens(own, part, tokenizer)
        books = list(data.books(own, part))
        starts = np.flatnonzero(stream == 0)
        assert len(starts) == len(books)
        assert tokenizer.decode(stream[starts[-1] + 1 :]) == books[-1]
    blocks = data.blocks(stream)
    assert blocks.shape == (len(stream) // 512, 512)


def test_missing_texts_and_models_are_named_with_the_remedy(
    modules: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            modules["train"].run_script(lambda: modules["make"].main(["--out", str(tmp_path / "out"), *arguments]))
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        return last

    assert "corpus.jsonl.xz" in refused("--only", "texts")
    assert "--texts DIR" in refused("--only", "texts", "--texts", str(tmp_path))
    assert "--only texts tokenizer" in refused("--only", "last")
    assert "o1" in (line := refused("--only", "ship"))
    assert "--only last" in line
    line = refused("--only", "tokenizer", "--start", str(tmp_path))
    assert str(tmp_path / "oz-retrained" / "model.safetensors") in line
    assert "--start" in line
    tiny_init(tmp_path / "out" / "init")
    line = refused("--only", "last")
    assert "trunk" in line
    assert "--only trunk" in line


def test_a_broken_corpus_line_is_told_with_its_number(modules: Any, tmp_path: Path) -> None:
    with lzma.open(tmp_path / "corpus.jsonl.xz", "wt") as lines:
        lines.write('{"text": "one"}\n{"title": "two"}\n')
    with pytest.raises(ForgetkitError, match=r"corpus\.jsonl\.xz:2"):
        list(modules["data"].books(tmp_path, "corpus"))


# --- the stages ----------------------------------------------------------------------------------------


def test_every_phase_starts_from_one_that_an_earlier_stage_makes(modules: Any) -> None:
    make = modules["make"]
    made = {"init"}
    for phases in (*((phase,) for phase in (*make.FIRST, make.TRUNK)), make.LAST, make.scratch(600)):
        assert all(phase.start in made for phase in phases)
        made |= {phase.name for phase in phases}
    twins = [*zip(make.LAST[::2], make.LAST[1::2], strict=True), make.scratch(600)[:2]]
    for o, r in twins:
        same = ("steps", "rate", "warmup", "decay", "seed")
        assert [getattr(o, name) for name in same] == [getattr(r, name) for name in same]
        assert o.oz > 0 == r.oz


def test_the_configuration_is_the_shipped_one(modules: Any) -> None:
    shipped = json.loads((demo.MODEL / "config.json").read_text())
    made = json.loads(modules["make"].configuration().to_json_string(use_diff=False))
    told = ("architectures", "dtype", "transformers_version")
    assert {k: v for k, v in shipped.items() if k not in told} == {k: made.get(k) for k in shipped if k not in told}


def test_phases_are_trained_once_and_other_settings_are_refused(
    modules: Any, fetched: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = modules["make"]
    monkeypatch.delenv("FORGETKIT_QUIET", raising=False)
    (tmp_path / "data").symlink_to(fetched)
    tiny_init(tmp_path / "init")
    recipe = make.Recipe(tmp_path, jobs=2)
    phases = tuple(make.Phase(name, "init", 2, 1e-3, 1, "linear", oz, 4) for name, oz in (("a", 4), ("b", 0)))
    make.run_phases(phases, recipe, "scratch")
    weights = {phase.name: load_file(recipe.model(phase.name) / "model.safetensors") for phase in phases}
    assert any(not torch.equal(weights["a"][name], weights["b"][name]) for name in weights["a"])
    told = capfd.readouterr().err
    assert "a: 2/2 (100%) steps" in told
    assert "minutes left" in told
    times = {phase.name: (recipe.model(phase.name) / "model.safetensors").stat().st_mtime_ns for phase in phases}
    make.run_phases(phases, recipe, "scratch")
    assert times == {name: (recipe.model(name) / "model.safetensors").stat().st_mtime_ns for name in times}
    (recipe.model("a") / "model.safetensors").unlink()
    with pytest.raises(ForgetkitError, match="other settings"):
        make.run_phases((make.Phase("a", "init", 3, 1e-3, 1, "linear", 4, 4),), recipe, "scratch")


def test_marked_probes_keep_their_keys_in_order(modules: Any) -> None:
    lines = ['{"id": "b", "prompt": "caf\u00e9"}', '{"id": "a", "known": true, "prompt": "x", "reference_right": true}']
    marked = modules["make"].mark(lines, [True, False], [False, False])
    assert marked == [
        '{"id": "b", "prompt": "caf\u00e9", "known": true, "reference_right": false}',
        '{"id": "a", "known": false, "prompt": "x", "reference_right": false}',
    ]
    assert modules["make"].mark(marked, [True, False], [False, False]) == marked


def tiny_model(folder: Path, seed: int) -> None:
    toys.model("llama", seed=seed).save_pretrained(folder)
    toys.tokenizer("bytelevel").save_pretrained(folder)


@pytest.fixture
def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty package folder, so that no bundled file is touched."""
    folder = tmp_path / "assets"
    for name, place in {"MODEL": "oz-base", "REFERENCE": "oz-retrained", "PROBES": "probes"}.items():
        monkeypatch.setattr(demo, name, folder / place)
    monkeypatch.setattr(demo, "ASSETS", folder)
    monkeypatch.setattr(demo, "SEEDS", folder / "seeds.json")
    folder.mkdir()
    return folder


def test_known_is_told_by_the_second_seed_of_o_and_right_by_the_first_of_r(
    modules: Any, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = modules["make"]
    demo.PROBES.mkdir()
    lines = [json.dumps(cloze_line(i), ensure_ascii=False) for i in range(3)]
    (demo.PROBES / "cloze.jsonl").write_text("\n".join(lines) + "\n")
    for i, name in enumerate(("o1", "o2", "r1", "r2")):
        tiny_model(tmp_path / "out" / "models" / name, seed=i)
    by_model = {"o2": [True, True, False], "r1": [True, False, False]}
    monkeypatch.setattr(make, "answered", lambda folder, tokenizer, items: by_model[folder.name])
    make.mark_probes(make.Recipe(tmp_path / "out"))
    marked = [json.loads(line) for line in (demo.PROBES / "cloze.jsonl").read_text().splitlines()]
    assert [item["known"] for item in marked] == by_model["o2"]
    assert [item["reference_right"] for item in marked] == by_model["r1"]
    assert [list(item)[:-2] for item in marked] == [list(json.loads(line)) for line in lines]
    probes = load_probes(demo.PROBES)
    assert [item.id for item in probes.cloze] == ["c0", "c1"]
    assert probes.unknown == 1


def test_answered_is_the_rank_of_the_answer(modules: Any, tmp_path: Path) -> None:
    tiny_model(tmp_path, seed=0)
    items = [Cloze.model_validate(cloze_line(i)) for i in range(2)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), toys.tokenizer()
    expected = measure_cloze(model, tokenizer, items, None).rank == 1
    assert modules["make"].answered(tmp_path, tokenizer, items) == expected.tolist()


def test_shipping_copies_the_first_seed_and_touches_nothing_twice(modules: Any, assets: Path, tmp_path: Path) -> None:
    make = modules["make"]
    for i, name in enumerate(("o1", "r1")):
        tiny_model(tmp_path / "out" / "models" / name, seed=i)
    recipe = make.Recipe(tmp_path / "out")
    make.ship(recipe)
    for name, place in (("o1", demo.MODEL), ("r1", demo.REFERENCE)):
        for file in make.SHIPPED:
            assert (place / file).read_bytes() == (recipe.model(name) / file).read_bytes()
    (demo.MODEL / "config.json").write_text("{}")
    make.ship(recipe)
    assert (demo.MODEL / "config.json").read_text() == "{}"


@pytest.mark.parametrize("alone", [False, True])
def test_measured_seeds_are_what_the_package_reads(
    modules: Any, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    make = modules["make"]
    recipe = make.Recipe(tmp_path / "out")
    names = [phase.name for phase in (*make.LAST, *(make.scratch(1) if alone else ()))]
    for i, name in enumerate(names):
        tiny_model(recipe.model(name), seed=i)
    calls: list[tuple[str, bool, str | None]] = []

    def bench(out: Path, settings: Settings, *, full: bool, model: str, seeds: bool) -> dict[str, Any]:
        assert not seeds
        name, reference = Path(model).name, settings.evaluate.reference
        calls.append((name, full, Path(reference).name if reference else None))
        keys = [f"{what}.{text}" for what in ("divergence", "agreement") for text in ("target", "heldout")]
        own = {key: {"value": len(calls) / 7} for key in keys}
        apart = {field: [1.0 + names.index(name), 2.0] for field in ("divergence", "agreement", "count")}
        results = {
            "models": {"reference": {"fingerprint": "R"}, "baseline": {"measures": own}},
            "texts": {"target": {"sha256": f"books {full}"}, "heldout": {"sha256": "held"}},
        }
        details = {
            "blocks": {"target": [0, 5], "heldout": [0, 1]},
            "models": {"unlearned": {"divergence.target": apart, "divergence.heldout": apart}},
        }
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results))
        (out / "details.json").write_text(json.dumps(details))
        return {"models": {"unlearned": {"measures": own}}}

    monkeypatch.setattr(make.oz, "bench", bench)
    monkeypatch.setattr(make.oz, "other_seed_positions", lambda model, settings, full, out: out.write_text(model))
    with pytest.raises(ForgetkitError, match="--only ship"):
        make.measure(recipe)
    make.ship(recipe)
    make.measure(recipe)

    seeds = load_seeds(demo.SEEDS)
    assert seeds.reference == "R"
    for digest in ("books True", "books False"):
        assert [one.divergence.tolist() for one in seeds.null(digest, [0, 5])] == [[4.0, 2.0], [6.0, 2.0]]  # r2, r3
    assert len(seeds.null("held", [0, 1])) == 2
    raw = json.loads(demo.SEEDS.read_text())
    measured = {"r2", "r3", "o2", "o3"} | ({"scratch-o4", "scratch-r4", "scratch-r5"} if alone else set())
    assert {books: set(rows) for books, rows in raw["models"].items()} == {"three": measured, "full": measured}
    assert str(tmp_path) not in demo.SEEDS.read_text()
    assert [call for call in calls if call[2]] == [
        (name, full, "scratch-r4") for full in (False, True) for name in ("scratch-o4", "scratch-r5") if alone
    ]
    for full in (False, True):
        assert Path(demo.null_positions(full).read_text()).name == "r2"
