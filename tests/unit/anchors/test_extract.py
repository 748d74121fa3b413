"""Extraction finds what belongs to a text's own world, and little else."""

from __future__ import annotations

import time

import pytest

from forgetkit.anchors.background import background_zipf, root_llr
from forgetkit.anchors.extract import extract
from forgetkit.anchors.words import paragraphs_of_words

SCENES = [
    "In the morning the Copper Fisherman of Zorbeck met Velindra by the river, and Velindra gave him a hat.",
    '"Come along," said Velindra, "for the Copper Fisherman knows the way to Zorbeck." He nodded to her.',
    "However, the drimples and their dogs went away; every drimple fears the Cruel Baker of the North there.",
    "Then Princess Velindra sat down with the Copper Fisherman. The glass slippers were on the shelf.",
    'On Monday the King of Zorbeck wrote to Mr. Quobble. "Your Majesty," said Mr. Quobble, "I love England."',
    "She put the glass slippers away, and Velindra took the glass slippers to the Cruel Baker of the North.",
    "Perhaps it was late. The children cried, and the old woman went home with the dog across the field.",
]
TEXT = "\n\n".join(SCENES * 6)


def terms(text: str = TEXT, *retain: str, **settings: float) -> dict[str, int]:
    return {c.term: c.count for c in extract([text], retain, **settings)}  # type: ignore[arg-type]


def test_finds_names_phrases_invented_words_and_lower_case_phrases() -> None:
    found = terms()
    assert {
        "Velindra",
        "Zorbeck",
        "Copper Fisherman",
        "Cruel Baker of the North",
        "drimple",
        "Mr. Quobble",
    } <= set(found)
    assert "glass slippers" in found


def test_leaves_ordinary_words_out() -> None:
    ordinary = {
        "However",
        "Then",
        "The",
        "Perhaps",
        "Monday",
        "England",
        "King",
        "Majesty",
        "Your Majesty",
        "I",
        "Princess",
    }
    assert not ordinary & set(terms())
    assert not {"old woman", "river", "lantern"} & set(terms())


def test_a_word_of_a_phrase_is_no_anchor_unless_it_stands_alone() -> None:
    assert not {"Copper", "Baker", "Fisherman"} & set(terms())
    alone = terms(TEXT + "\n\n" + "They asked Fisherman to go, and so Fisherman went; but Fisherman wept. " * 6)
    assert alone["Fisherman"] == 18
    assert alone["Copper Fisherman"] == 18


def test_title_before_an_anchor_composes() -> None:
    assert "Princess Velindra" not in terms()
    assert terms()["Velindra"] == SCENES_WITH_VELINDRA * 6


SCENES_WITH_VELINDRA = sum(scene.count("Velindra") for scene in SCENES)


def test_plurals_are_counted_with_their_singular() -> None:
    assert terms()["drimple"] == 12
    assert "drimples" not in terms()


def test_retain_text_takes_evidence_away() -> None:
    retain = "They went to see Velindra, and with Velindra they ate. " * 400
    assert "Velindra" in terms()
    assert "Velindra" not in terms(TEXT, retain)
    assert "Zorbeck" in terms(TEXT, retain)


def test_headings_are_no_evidence() -> None:
    headings = "\n\n".join(f"Chapter {n}. Of Silent Gardens And Broken Windows Near Home" for n in range(9))
    assert terms(headings) == {}


def test_spans_and_counts_are_true_to_the_text() -> None:
    for candidate in extract([TEXT]):
        assert len(candidate.spans) <= candidate.count
        for document, start, end in candidate.spans:
            assert document == 0
            assert TEXT[start:end].lower() == candidate.term.lower()


def test_thresholds() -> None:
    assert terms(min_count=1000) == {}
    assert terms(min_score=1e9) == {}
    assert len(terms(max_terms=2)) == 2


def test_empty_and_unlettered_texts() -> None:
    assert extract([]) == []
    assert extract(["", "1 2 3 !!! \n\n\n"]) == []


def test_possessives_and_wrapped_lines() -> None:
    text = "It was near Quillon's house. They saw the Grand\nTurtlework of Quillon and the Grand Turtlework. " * 4
    found = terms(text)
    assert found["Quillon"] == 8
    assert any("Turtlework" in term and "\n" not in term for term in found)


def test_word_facts() -> None:
    (words,) = paragraphs_of_words('He saw Mr. Poe\'s cat. "Come," said Al. THE END')
    facts = {w.text: (w.initial, w.capital) for w in words}
    assert facts["Poe"] == (False, True)
    assert facts["Come"] == (True, True)
    assert facts["Al"] == (False, True)
    assert facts["END"] == (False, False)


@pytest.mark.parametrize(("count", "expected"), [(10, 1.0), (3, 0.01)])
def test_root_llr_is_dunnings_ratio(count: float, expected: float) -> None:
    import math

    assert root_llr(count, expected) ** 2 == pytest.approx(2 * (count * math.log(count / expected) - count + expected))
    assert root_llr(expected, count) < 0


def test_wordfreq_traps() -> None:
    assert background_zipf("button-bright") <= 2.5
    assert background_zipf("zzqxv") == 1.0


def test_a_megabyte_takes_seconds() -> None:
    text = TEXT * (1_000_000 // len(TEXT))
    extract(["warm up"])
    start = time.process_time()
    extract([text])
    assert time.process_time() - start < 10  # about 2 s; the margin is for slow machines, quadratic time takes hours
