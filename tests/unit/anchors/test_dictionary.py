from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from forgetkit.anchors.dictionary import Anchor, Dictionary, lint, merge_edits
from forgetkit.core.errors import ForgetkitError


def write(folder: Path, text: str) -> Path:
    path = folder / "anchors.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def anchor(term: str, counterpart: str, **rest: object) -> Anchor:
    return Anchor.model_validate({"term": term, "counterpart": counterpart, **rest})


def test_file_gives_back_what_was_saved_best_score_first(tmp_path: Path) -> None:
    awkward = [
        "No",
        "1900",
        "null",
        "- a: b",
        "# x",
        "Émile “x”",
        "😀",
        "a: b",
        "'quoted'",
        "yes",
        "*x",
        "tab\tx",
    ]
    anchors = [
        anchor(
            f"{text} {k}" if k % 2 else text,
            text,
            kind="creature",
            count=k,
            score=k / 4,
            contexts=(text, "b\nc"),
        )
        for k, text in enumerate(awkward)
    ]
    saved = Dictionary((*anchors, anchor("Oz", "Ash", source="statistics", keep=False, score=99.0)))
    saved.save(tmp_path / "anchors.yaml")
    loaded = Dictionary.load(tmp_path / "anchors.yaml")
    assert loaded.anchors == tuple(sorted(saved.anchors, key=lambda a: -a.score))
    assert "Oz" not in [a.term for a in loaded.kept]
    loaded.save(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "anchors.yaml").read_bytes()
    assert (tmp_path / "anchors.yaml").read_text(encoding="utf-8").startswith("# ")


def test_empty_dictionaries(tmp_path: Path) -> None:
    Dictionary().save(tmp_path / "anchors.yaml")
    for path in (tmp_path / "anchors.yaml", write(tmp_path, ""), write(tmp_path, "anchors:\n")):
        assert Dictionary.load(path) == Dictionary()


def test_a_person_needs_only_term_and_counterpart(tmp_path: Path) -> None:
    path = write(tmp_path, "- term: No\n  counterpart: 1900\n- {term: ' Oz ', counterpart: Ash, kind: place}\n")
    assert Dictionary.load(path).anchors == (anchor("No", "1900"), anchor("Oz", "Ash", kind="place"))
    assert Dictionary.load(path).anchors[0].source == "person"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("anchors:\n- term: Oz\n  conterpart: Ash\n", 3, "did you mean counterpart"),
        ("anchors:\n- term: Oz\n  kind: place\n", 2, "no counterpart for 'Oz'"),
        ("anchors:\n- term: Oz\n  counterpart:\n", 3, "no counterpart"),
        ("anchors:\n- term: Oz\n  counterpart: ~\n", 3, "no counterpart"),
        ("anchors:\n- counterpart: Oz\n", 2, "no term"),
        (
            "- term: Oz\n  counterpart: Ash\n- term: Em\n  counterpart: Al\n- term: Oz\n  counterpart: Elm\n",
            5,
            "line 1",
        ),
        ("- term: Oz\n  term: Em\n  counterpart: Ash\n", 2, "twice"),
        ("- term: Oz\n  counterpart: Ash\n  kind: plce\n", 3, "did you mean place"),
        ("- term: Oz\n  counterpart: Ash\n  keep: perhaps\n", 3, "keep 'perhaps'"),
        ("- term: Oz\n  counterpart: Ash\n  count: many\n", 3, "count 'many'"),
        ("- term: Oz\n  counterpart: [Ash]\n", 2, "single value"),
        ("- Oz\n", 1, "an entry must have"),
        ("anchor:\n- term: Oz\n", 1, "did you mean anchors"),
        ("- term: Oz\n  counterpart: 'Ash\n", 2, "not valid YAML"),
        ("just words\n", 1, "not a list"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ForgetkitError) as caught:
        Dictionary.load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="cannot be read"):
        Dictionary.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("- term: é\n".encode("latin-1"))
    with pytest.raises(ForgetkitError, match="UTF-8"):
        Dictionary.load(tmp_path / "latin.yaml")
    with pytest.raises(ForgetkitError, match="not valid YAML"):
        Dictionary.load(write(tmp_path, "- term: \x00\n"))


def test_duplicates_without_conflict(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "- {term: Oz, counterpart: Ash, keep: false}\n- {term: Oz, counterpart: Elm}\n"
        "- {term: Em, counterpart: Al}\n- {term: Em, counterpart: Al}\n",
    )
    assert [(a.term, a.counterpart, a.keep) for a in Dictionary.load(path).anchors] == [
        ("Oz", "Elm", True),
        ("Em", "Al", True),
    ]


def test_anchor_refuses_what_is_no_anchor() -> None:
    with pytest.raises(ValidationError):
        anchor(" ", "x")
    with pytest.raises(ValidationError):
        anchor("Oz", "x", colour="red")
    with pytest.raises(ValidationError):
        anchor("Oz", "x", score=float("nan"))


def test_a_persons_edits_win_over_a_rebuild() -> None:
    stats = {"source": "statistics"}
    before = Dictionary(
        tuple(anchor(t, "old", count=1, **stats) for t in ("changed", "same", "off", "removed", "gone", "mine"))
    )
    edited = Dictionary(
        (
            anchor("changed", "better", count=1, kind="place", **stats),
            anchor("same", "old", count=1, **stats),
            anchor("off", "old", keep=False, **stats),
            anchor("gone", "old", **stats),
            anchor("mine", "kept by hand"),
            anchor("added", "new"),
        )
    )
    now = Dictionary(
        tuple(anchor(t, "proposed", count=9, **stats) for t in ("changed", "same", "off", "removed", "fresh"))
    )
    merged = {a.term: a for a in merge_edits(before, edited, now).anchors}
    assert merged["changed"] == anchor("changed", "better", kind="place", count=9, source="person")
    assert merged["same"] == anchor("same", "proposed", count=9, **stats)
    assert merged["off"] == anchor("off", "old", count=9, keep=False, source="person")
    assert (merged["removed"].keep, merged["removed"].source) == (False, "person")
    assert merged["fresh"] == anchor("fresh", "proposed", count=9, **stats)
    assert merged["added"] == anchor("added", "new")
    assert merged["mine"].counterpart == "kept by hand"
    assert "gone" not in merged
    # and again, with the merged file itself as what the last build wrote
    first = merge_edits(before, edited, now)
    second = {a.term: a for a in merge_edits(first, first, now).anchors}
    assert second == merged


def levels(dictionary: Dictionary, texts: list[str], term: str) -> list[tuple[str, str]]:
    return [(f.level, f.message) for f in lint(dictionary, texts) if f.term == term]


TEXT = "Dorothy saw an Ozma near Oz. The Lion ran. A lion ran to the kingdom. " * 3


@pytest.mark.parametrize(
    ("entry", "level", "words"),
    [
        (anchor("Oz", "oz"), "error", "itself"),
        (anchor("Oz", "Dorothy"), "error", "is or contains the anchor 'Dorothy'"),
        (anchor("Oz", "Land of DOROTHY"), "error", "is or contains the anchor 'Dorothy'"),
        (anchor("Oz", "Dorothy's land"), "error", "is or contains the anchor 'Dorothy'"),
        (anchor("Oz", "Elm\nLand"), "error", "line break"),
        (anchor("Oz", "El\u200b\x07m"), "error", "control"),
        (anchor("Oz", "one two three four five six seven"), "error", "more than 6 words"),
        (anchor("saw", "viewed"), "warning", "common word"),
        (anchor("the", "a"), "error", "common word"),
        (anchor("The", "An"), "error", "common word"),
        (anchor("Toto", "Rex"), "warning", "does not occur"),
        (anchor("Oz", "kingdom"), "warning", "itself occurs 3 times"),
        (anchor("Ozma", "Mary", kind="woman"), "warning", "other article"),
        (anchor("Lion", "Tigers", kind="creature"), "warning", "number"),
    ],
)
def test_lint_finds(entry: Anchor, level: str, words: str) -> None:
    others = (anchor("Dorothy", "Alice", kind="woman"),)
    text = TEXT + (" the" * 3 if entry.term == "The" else "")
    found = [f for f in levels(Dictionary((entry, *others)), [text], entry.term) if words in f[1]]
    assert [f[0] for f in found] == [level]


def test_lint_has_nothing_to_say_of_a_good_dictionary() -> None:
    good = Dictionary(
        (
            anchor("Dorothy", "Alice", kind="woman"),
            anchor("Ozma", "Irene", kind="woman"),
            anchor("Oz", "Ash", kind="place"),
        )
    )
    assert lint(good, [TEXT]) == []


def test_lint_leaves_names_that_are_also_words_alone() -> None:
    assert levels(Dictionary((anchor("Will", "Tom", kind="man"),)), ["Then Will came to Will."], "Will") == []


def test_lint_shared_counterparts_are_errors_only_close_together() -> None:
    two = Dictionary((anchor("Ozma", "Irene", kind="woman"), anchor("Jinjur", "irene", kind="woman")))
    near = ["Ozma met Jinjur."]
    far = ["Ozma " + "went on " * 200 + "and met Jinjur."]
    apart = ["Ozma.", "Jinjur."]
    for texts, level in ((near, "error"), (far, "warning"), (apart, "warning")):
        found = [f for f in levels(two, texts, "Ozma") if "shares" in f[1]]
        assert [f[0] for f in found] == [level]


def test_lint_does_not_look_at_dropped_anchors() -> None:
    assert (
        lint(
            Dictionary((anchor("Oz", "Oz", keep=False), anchor("Dorothy", "Al Oz", kind="woman"))),
            ["Dorothy"],
        )
        == []
    )


def test_lint_puts_errors_first_and_works_without_texts() -> None:
    found = lint(Dictionary((anchor("Abe", "Cole", kind="man"), anchor("Oz", "Oz"))), [])
    assert [(f.level, f.term) for f in found] == [("error", "Oz"), ("warning", "Abe")]


def test_redealt_counterparts_stay_within_their_kind() -> None:
    names = [("woman", "Dorothy", "Martha"), ("woman", "Ozma", "Clara"), ("woman", "Glinda", "Ruth")]
    places = [("place", "Oz", "Morland"), ("place", "Ev", "Selm")]
    anchors = tuple(Anchor(term=t, kind=k, counterpart=c) for k, t, c in (*names, *places))
    dictionary = Dictionary((*anchors, Anchor(term="Toto", counterpart="Rex", keep=False)))
    dealt = [dictionary.redealt(seed) for seed in range(1, 9)]
    for one in dealt:
        assert [(a.term, a.kind) for a in one.anchors] == [(t, k) for k, t, _ in (*names, *places)]
        for kind in ("woman", "place"):
            own = sorted(a.counterpart for a in one.anchors if a.kind == kind)
            assert own == sorted(c for k, _, c in (*names, *places) if k == kind)
    assert len({tuple(a.counterpart for a in one.anchors) for one in dealt}) > 2
    assert dictionary.redealt(3) == dictionary.redealt(3)


def test_versions_begin_with_the_dictionary_and_none_comes_twice() -> None:
    pair = tuple(Anchor(term=t, kind="woman", counterpart=c) for t, c in (("Dorothy", "Martha"), ("Ozma", "Clara")))
    versions = Dictionary((*pair, Anchor(term="Toto", counterpart="Rex", keep=False))).versions(8)
    assert len(versions) == 2
    assert versions[0] == Dictionary(pair)
    assert [a.counterpart for a in versions[1].anchors] == ["Clara", "Martha"]
    assert Dictionary(pair[:1]).versions(4) == [Dictionary(pair[:1])]
    assert len(Dictionary(pair).versions(1)) == 1
