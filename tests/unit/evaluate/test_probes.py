from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgetkit import pipeline
from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.probes import load_probes, probe_files
from forgetkit.settings import EvaluateSettings, Settings
from tests.unit.evaluate.conftest import OTHERS, cloze_line, completion_line, probability_line, write_probes


def test_what_is_loaded(tmp_path: Path) -> None:
    other = {"file": "other.txt", "quote": "y"}
    folder = write_probes(
        tmp_path,
        cloze=[cloze_line(0), cloze_line(1, split="test"), cloze_line(2, source=other), cloze_line(3, known=False)],
        completions=[completion_line()],
        probability=[probability_line()],
        lexicon={"3": ["Oz"]},
    )
    probes = load_probes(folder)
    assert [item.id for item in probes.cloze] == ["c0", "c1", "c2"]  # in the order of the file; c3 is not known
    assert (probes.unknown, probes.lexicon) == (1, {"3": ("Oz",)})
    assert probes.cloze[0].options == ("Glinda", *OTHERS)
    assert [item.id for item in load_probes(folder, {"document-0.txt"}).cloze] == ["c0", "c1"]
    dev = load_probes(folder, split="dev")
    assert ([c.id for c in dev.cloze], len(dev.completions), len(dev.probabilities)) == (["c0", "c2"], 1, 0)
    assert load_probes(folder, {"nothing.txt"}).cloze == ()


def test_any_subset_of_the_files_will_do_but_one_must_be_there(tmp_path: Path) -> None:
    folder = write_probes(tmp_path / "a", probability=[probability_line()])
    assert load_probes(folder).cloze == () and [path.name for path in probe_files(folder)] == ["probability.jsonl"]
    for missing in (tmp_path / "none", write_probes(tmp_path / "b", lexicon={})):
        with pytest.raises(ForgetkitError, match="no probes here"):
            load_probes(missing)


def test_the_evaluation_depends_on_the_probes_and_not_on_where_they_are(tmp_path: Path) -> None:
    one, two = (write_probes(tmp_path / name, cloze=[cloze_line()]) for name in "ab")
    assert pipeline._probes(one) == pipeline._probes(two) != pipeline._probes(None)
    write_probes(two, lexicon={"3": ["Oz"]})
    assert pipeline._probes(one) != pipeline._probes(two)
    settings = [Settings(evaluate=EvaluateSettings(probes=folder)) for folder in (one, two)]
    assert pipeline._without_paths(settings[0]) == pipeline._without_paths(settings[1])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"answer": ""}, "the answer is empty"),
    ({"answer": " Glinda"}, "begins or ends with white space"),
    ({"answer": "Anna"}, "the answer is among the distractors"),
    ({"answer": "Lady"}, "the prompt contains the answer"),
    ({"distractors": list(OTHERS[:8])}, "8 distractors, at least 9"),
    ({"distractors": [*OTHERS, "anna"]}, "a distractor is given twice"),
    ({"prompt": "Here is "}, "ends with white space"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"kind": "riddle"}, "kind: Input should be"),
    ({"split": "train"}, "split: Input should be"),
    ({"source": {"file": "x"}}, "source.quote: Field required"),
    ({"colour": "red"}, "colour: Extra inputs"),
    ({"id": "c0"}, "the id 'c0' is also at"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m for _, m in BAD])
def test_malformed_cloze_items_are_told_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_probes(tmp_path, cloze=[cloze_line(0), cloze_line(**{"number": 1, **change})])
    with pytest.raises(ForgetkitError) as caught:
        load_probes(folder)
    assert caught.value.where == f"{folder / 'cloze.jsonl'}:2"
    assert message in str(caught.value)


def test_an_answer_within_a_longer_word_of_the_prompt_is_no_leak(tmp_path: Path) -> None:
    folder = write_probes(tmp_path, cloze=[cloze_line(answer="like", prompt="An unlikely princess, likeable as")])
    assert len(load_probes(folder).cloze) == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("completions", completion_line(references={"4": ["x"]})),
        ("completions", completion_line(references={"3": [" "]})),
        ("completions", completion_line(subtlety=0)),
        ("probability", probability_line(familiar=[])),
        ("probability", probability_line(familiar=["City", "City"])),
        ("probability", probability_line(familiar=[" City"])),
        ("probability", probability_line(id="f0")),  # ids are unique over all files
    ],
)
def test_malformed_prompts(tmp_path: Path, kind: str, line: dict[str, Any]) -> None:
    lines = {"completions": [completion_line(0)], "probability": [probability_line(0)]}
    lines[kind] = [*lines[kind], line | {"id": line["id"] if line["id"] not in ("p0",) else "p1"}]
    folder = write_probes(tmp_path, **lines)
    with pytest.raises(ForgetkitError) as caught:
        load_probes(folder)
    assert caught.value.where == f"{folder / kind}.jsonl:2"


@pytest.mark.parametrize("raw", [b'{"id": "c0"', b"[]", b"\xff{}", b"[" * 5000])
def test_lines_that_are_no_objects(tmp_path: Path, raw: bytes) -> None:
    folder = write_probes(tmp_path, cloze=[cloze_line()])
    with (folder / "cloze.jsonl").open("ab") as file:
        file.write(b"\n" + raw + b"\n")
    with pytest.raises(ForgetkitError, match=r"cloze\.jsonl:3"):
        load_probes(folder)


@pytest.mark.parametrize("raw", ["{", '{"4": ["x"]}', '{"3": "Oz"}', '{"3": [""]}'])
def test_a_bad_lexicon(tmp_path: Path, raw: str) -> None:
    folder = write_probes(tmp_path, completions=[completion_line()])
    (folder / "lexicon.json").write_text(raw)
    with pytest.raises(ForgetkitError, match=r"lexicon\.json"):
        load_probes(folder)
