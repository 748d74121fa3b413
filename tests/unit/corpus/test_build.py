from __future__ import annotations

import json
import logging

import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus import build, load
from forgetkit.corpus.inspect import inspect, render
from forgetkit.settings import CorpusSettings
from tests.toys import TEXT, tokenizer
from tests.unit.corpus.test_duplicates import prose

SETTINGS = CorpusSettings(block_tokens=16)


@pytest.fixture
def texts(tmp_path):
    target, retain = tmp_path / "target", tmp_path / "retain"
    target.mkdir()
    retain.mkdir()
    (target / "a.txt").write_text(TEXT)
    (target / "b.txt").write_text(TEXT)
    (target / "c.txt").write_bytes(("Le garçon déjà là, naïf. " * 5).encode("latin-1"))
    (target / "note.bin").write_bytes(b"\0")
    (retain / "r.txt").write_text(" ".join(prose(1, 200)))
    return target, retain


def test_build_writes_what_load_reads(texts, tmp_path):
    target, retain = texts
    out = tmp_path / "out"
    out.mkdir()
    summary = build([target], [retain], tokenizer(), SETTINGS, out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert sorted(p.name for p in out.iterdir()) == ["retain", "summary.json", "target"]
    corpus, kept = load(out)
    assert kept is not None
    assert [d.id for d in corpus.documents] == ["target/a.txt#0", "target/c.txt#0"]
    assert summary["target"]["tokens"] == corpus.n_tokens == sum(d["tokens"] for d in summary["target"]["list"])
    assert summary["target"]["blocks"] == len(corpus)
    assert summary["target"]["encodings"] == {"cp1252": 1, "utf-8": 1}
    assert summary["retain"]["blocks"] == len(kept)
    assert summary["duplicates"]["target"]["exact"] == [{"document": "target/b.txt#0", "same_as": "target/a.txt#0"}]
    assert any("note.bin" in w for w in summary["warnings"])
    assert any("cp1252" in w for w in summary["warnings"])


def test_copies_stay_when_asked_and_no_retain_is_none(texts, tmp_path):
    settings = SETTINGS.model_copy(update={"drop_duplicates": False})
    summary = build([texts[0]], [], tokenizer(), settings, tmp_path / "out")
    assert summary["target"]["documents"] == 3
    assert summary["retain"] is None
    assert load(tmp_path / "out")[1] is None


def test_target_text_in_the_retain_text_is_said_first(texts, tmp_path, caplog):
    target, retain = texts
    (retain / "copy.txt").write_text(TEXT)
    with caplog.at_level(logging.WARNING, logger="forgetkit"):
        summary = build([target], [retain], tokenizer(), SETTINGS, tmp_path)
    assert "TARGET TEXT IS ALSO RETAIN TEXT" in summary["warnings"][0]
    assert "retain/copy.txt#0" in summary["warnings"][0]
    assert summary["warnings"][0] in caplog.text
    assert "Dorothy" not in caplog.text


def test_shared_paragraphs_are_said(texts, tmp_path):
    target, retain = texts
    (retain / "r.txt").write_text(" ".join(prose(1, 2000)) + "\n\n" + TEXT)
    summary = build([target / "a.txt"], [retain], tokenizer(), SETTINGS, tmp_path)
    assert summary["duplicates"]["target_in_retain"]["paragraph_share"] == 1.0
    assert "100.0 %" in summary["warnings"][0]


def test_too_little_target_is_refused_and_single_tokens_are_left_out(tmp_path):
    (tmp_path / "tiny.txt").write_text("a b")
    with pytest.raises(ForgetkitError, match="8 tokens"):
        build([tmp_path / "tiny.txt"], [], tokenizer(), SETTINGS, tmp_path)
    assert not (tmp_path / "target").exists()
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "full.txt").write_text(TEXT)
    summary = build([tmp_path / "one.txt", tmp_path / "full.txt"], [], tokenizer(), SETTINGS, tmp_path)
    assert [d["id"] for d in summary["target"]["list"]] == ["full.txt#0"]
    assert any("one.txt" in w for w in summary["warnings"])


def test_the_same_input_gives_the_same_bytes(texts, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build([texts[0]], [texts[1]], tokenizer(), SETTINGS, tmp_path / name)
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_inspect_shows_what_the_model_will_see(texts):
    report = inspect([texts[0]], SETTINGS, tokenizer(), [texts[1]])
    assert len(report["first"]) == 3
    assert TEXT.startswith("".join(report["first"]))
    shown = render(report)
    for part in (
        "target: 2 documents",
        "cp1252 (1)",
        "exact copy in target",
        "note.bin",
        report["first"][2].strip(),
    ):
        assert part in shown
    json.dumps(report, allow_nan=False)


def test_inspect_without_a_tokenizer_counts_words(texts):
    report = inspect([texts[0]], SETTINGS)
    assert report["target"]["tokens"] is None
    assert report["target"]["words"] == len(TEXT.split()) + 25
    assert " ".join(report["first"]) == " ".join(TEXT.split(" ")[:48])
    assert f"{report['target']['words']:,} words" in render(report)


def test_rendering_cannot_steer_a_terminal(texts):
    report = inspect([texts[0]], SETTINGS)
    report["first"] = ["a\x1b[2J\u202eb"]
    report["target"]["list"][0]["name"] = "n\x1b]0;x\x07\nm"
    report["warnings"] = ["w\x1b[31m"]
    shown = render(report)
    assert not set(shown) & set("\x1b\x07\u202e")
    assert "n m" in shown
