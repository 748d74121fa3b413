from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate import layouts
from forgetkit.evaluate.knowledge import Choice, Question
from forgetkit.evaluate.tofu import TofuItem

QA = {"question": "Who?", "answer": "Ann"}
WRONG = QA | {"perturbed_answer": ["Bob", "Cid"]}
PARA = WRONG | {"paraphrased_answer": "It was Ann", "paraphrased_question": "Who was it?"}


def lines(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def tofu(folder: Path) -> Path:
    for name in layouts.TOFU_NAMES:
        plain = PARA if name.startswith(("forget", "retain")) else WRONG
        lines(folder / f"{name}.json", [plain if name.endswith("_perturbed") else QA] * 2)
    return folder


def muse(folder: Path) -> Path:
    records = {
        "raw": ["A text.", "Another."],
        "privleak": ["A text."],
        "verbmem": [{"prompt": "A b", "gt": " c d"}],
        "knowmem": [QA],
        "scal": ["A text."],
        "sust": ["A text."],
    }
    for subset, splits in layouts.MUSE_SPLITS.items():
        for split in splits:
            path = folder / subset / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(records[subset], indent=4))
    return folder


def test_tofu(tmp_path: Path) -> None:
    found = layouts.read_tofu(tofu(tmp_path), "forget05")
    assert found.forget == found.retain == (TofuItem("Who?", "Ann", ("Bob", "Cid"), "It was Ann"),) * 2
    assert found.real_authors == found.world_facts == (TofuItem("Who?", "Ann", ("Bob", "Cid")),) * 2
    assert found.forget_all == found.retain_all == found.holdout == (Question("Who?", "Ann"),) * 2
    assert layouts.read_tofu_questions(tmp_path, "world_facts") == found.forget_all


def test_tofu_takes_the_retain_set_that_belongs_to_the_forget_set(tmp_path: Path) -> None:
    tofu(tmp_path)
    for name in ("retain99", "retain95", "retain90"):
        lines(tmp_path / f"{name}.json", [{"question": name, "answer": "x"}])
    pairs = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
    for forget, retain in pairs.items():
        assert layouts.read_tofu(tmp_path, forget).retain_all[0].question == retain


def test_an_old_copy_of_tofu_has_no_holdout(tmp_path: Path) -> None:
    (tofu(tmp_path) / "holdout10.json").unlink()
    assert layouts.read_tofu(tmp_path).holdout is None


@pytest.mark.parametrize("below", ["", "books", "data/books"])
def test_muse_as_the_hub_and_as_its_repository_lay_it_out(tmp_path: Path, below: str) -> None:
    muse(tmp_path / below)
    found = layouts.read_muse(tmp_path, "books")
    assert found.verbatim == (("A b", " c d"),)
    assert found.forget_questions == found.retain_shots == (Question("Who?", "Ann"),)
    assert found.private_holdout == ("A text.",)
    assert layouts.read_muse_texts(tmp_path, "books", "raw", "retain2") == ("A text.", "Another.")
    assert layouts.read_muse_texts(tmp_path, "books", "scal", "forget_3") == ("A text.",)


def test_muse_corpora_are_kept_apart(tmp_path: Path) -> None:
    muse(tmp_path / "news")
    with pytest.raises(ForgetkitError, match="verbmem/forget"):
        layouts.read_muse(tmp_path, "books")


@pytest.mark.parametrize("name", ["wmdp-bio/test.jsonl", "wmdp-bio/test.json", "bio_questions.json", "wmdp-bio.jsonl"])
def test_wmdp(tmp_path: Path, name: str) -> None:
    lines(tmp_path / name, [{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}])
    assert layouts.read_wmdp(tmp_path, "bio") == (Choice("Which?", ("a", "b", "c", "d"), 2),)
    with pytest.raises(ForgetkitError, match=r"no file wmdp-cyber/test.*WMDP.*question, choices, answer"):
        layouts.read_wmdp(tmp_path, "cyber")


@pytest.mark.parametrize("answer", [4, -1, "2", True, None, 1.0])
def test_wmdp_answers_must_be_indices(tmp_path: Path, answer: object) -> None:
    good = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 0}
    lines(tmp_path / "chem_questions.json", [good, good | {"answer": answer}])
    with pytest.raises(ForgetkitError, match=r"chem_questions.json:2: 'answer' is .* not an index from 0 to 3"):
        layouts.read_wmdp(tmp_path, "chem")


def test_what_is_wrong_and_where(tmp_path: Path) -> None:
    def fails(records: Sequence[Any], message: str) -> None:
        lines(tmp_path / "forget10_perturbed.json", records)
        with pytest.raises(ForgetkitError, match=message):
            layouts.read_tofu(tmp_path)

    tofu(tmp_path)
    fails([PARA, PARA | {"answer": "  "}], r"forget10_perturbed.json:2: 'answer' is empty")
    fails([PARA | {"perturbed_answer": ["Bob", ""]}], r":1: 'perturbed_answer\[1\]' is empty")
    fails([PARA | {"perturbed_answer": []}], r":1: 'perturbed_answer' is not a list of strings")
    fails([PARA, WRONG], r":2: no key 'paraphrased_answer'")
    fails([{"question": "Who?", "answers": "Ann"}], r":1: no key 'answer' \(it has answers\)")
    fails([PARA | {"answer": 7}], r":1: 'answer' is not a string")
    fails(["Who?"], r":1: expected an object with question, answer")
    fails([], "holds no records")
    (tmp_path / "retain_perturbed.json").unlink()
    fails([PARA], r"no file retain_perturbed.json.*TOFU.*perturbed_answer, paraphrased_answer")


def test_unknown_names_get_a_suggestion(tmp_path: Path) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: layouts.read_tofu(tmp_path, "forget1"), "did you mean forget"),
        (lambda: layouts.read_tofu_questions(tmp_path, "real_author"), "did you mean real_authors"),
        (lambda: layouts.read_muse(tmp_path, "book"), "did you mean books"),  # type: ignore[arg-type]
        (lambda: layouts.read_muse_texts(tmp_path, "news", "raw", "retain"), "did you mean retain"),
        (lambda: layouts.read_wmdp(tmp_path, "physics"), "use one of bio, cyber, chem"),
    ]
    for call, message in calls:
        with pytest.raises(ForgetkitError, match=message):
            call()


def test_lines_and_arrays_hold_the_same_and_know_their_lines(tmp_path: Path) -> None:
    values = [{"text": 'a "quoted"\u2028 word\n'}, {"text": "]"}, {"text": "[1, 2"}, "plain"]
    forms = {
        "lines.jsonl": "\ufeff" + "\r\n".join(json.dumps(v, ensure_ascii=False) for v in values) + "\n\n",
        "array.json": json.dumps(values, indent=2),
        "dense.json": json.dumps(values),
    }
    for name, text in forms.items():
        path = tmp_path / name
        path.write_bytes(text.encode())
        rows = list(layouts.read_rows(path))
        assert [row.value for row in rows] == values, name
    assert [row.where.rsplit(":")[-1] for row in layouts.read_rows(tmp_path / "lines.jsonl")] == ["1", "2", "3", "4"]
    assert [row.where.rsplit(":")[-1] for row in layouts.read_rows(tmp_path / "array.json")] == ["2", "5", "8", "11"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1}\n{"a": \n', 2),
        ('[{"a": 1},\n {"a": }]', 2),
        ('[{"a": 1}\n\n {"a": 2}]', 3),
        ('[{"a": 1},\n]', 2),
        ('[{"a": 1}', 1),
        ('[{"a": 1}] x', 1),
        ("[" * 100_000, 1),
    ],
)
def test_malformed_json_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ForgetkitError, match=rf"bad.json:{line}: not valid JSON"):
        list(layouts.read_rows(path))


def test_files_that_are_no_text_or_have_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for data, message in ((b"[\xff]", "not UTF-8 at byte 1"), (b"[ ]", "no records"), (b"\n", "no records")):
        path.write_bytes(data)
        with pytest.raises(ForgetkitError, match=message):
            list(layouts.read_rows(path))


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "wmdp-bio").mkdir()
    (tmp_path / "wmdp-bio" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ForgetkitError, match=r"pip install 'forgetkit\[eval\]'"):
        layouts.read_wmdp(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow comes with the extra eval")
def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "knowmem" / "forget_qa-00000-of-00001.parquet"
    muse(tmp_path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA | {"question": "New?"}]), path)
    # the Hub's MUSE repositories hold older JSON beside the parquet files of their data set card
    assert layouts.read_muse(tmp_path).forget_questions == (Question("New?", "Ann"),)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([QA, QA | {"answer": ""}]), path)
    with pytest.raises(ForgetkitError, match=r"parquet:2: 'answer' is empty"):
        layouts.read_muse(tmp_path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ForgetkitError, match="not a readable parquet file"):
        layouts.read_muse(tmp_path)
    path.with_name("forget_qa-00001-of-00002.parquet").write_bytes(b"")
    with pytest.raises(ForgetkitError, match="2 parquet files"):
        layouts.read_muse(tmp_path)


def test_the_hub_is_asked_only_with_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(source: str, **options: Any) -> str:
        asked.append({"source": source, **options})
        if options["local_files_only"]:
            raise FileNotFoundError("not cached")
        return str(tofu(tmp_path / "snapshot"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ForgetkitError, match=r"locuslab/TOFU: .*not in the local Hub cache.*allow_download=true"):
        layouts.read_tofu()
    assert layouts.read_tofu(allow_download=True).forget
    assert [one["local_files_only"] for one in asked] == [True, False]
    assert asked[1]["source"] == "locuslab/TOFU" and asked[1]["repo_type"] == "dataset"
    for missing in (tmp_path / "nothing", "./nothing", "a/b/c"):
        with pytest.raises(ForgetkitError, match="no such data folder"):
            layouts.read_tofu(missing, allow_download=True)
    assert len(asked) == 2
