from __future__ import annotations

import random

import numpy as np
import pytest

from forgetkit.corpus.duplicates import near_pairs, paragraph_share, report, similarity, sketch
from tests.unit.corpus.test_blocks import document


def prose(seed, count):
    generator = random.Random(seed)
    return [f"w{generator.randrange(3000)}" for _ in range(count)]


def grams(words):
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.mark.parametrize("changed", [0, 20, 100, 400])
@pytest.mark.parametrize("count", [300, 8000])
def test_similarity_is_near_the_true_jaccard_value(changed, count):
    a = prose(1, count)
    b = list(a)
    for place in random.Random(2).sample(range(count), changed * count // 8000):
        b[place] = "changed"
    true = len(grams(a) & grams(b)) / len(grams(a) | grams(b))
    found = similarity(sketch(" ".join(a)), sketch(" ".join(b).upper()))
    assert abs(found - true) < (0.1 if count > 512 else 1e-9)


def test_unrelated_and_empty_texts_are_not_similar():
    assert similarity(sketch(" ".join(prose(1, 5000))), sketch(" ".join(prose(2, 5000)))) == 0
    assert similarity(sketch(""), sketch("")) == 0
    assert similarity(sketch("only three words"), sketch("Only three words!")) == 1


def test_word_order_matters_and_sketches_do_not_depend_on_the_cache():
    assert similarity(sketch("a b c d e f g h"), sketch("h g f e d c b a")) == 0
    assert np.array_equal(sketch("a b c d e f"), sketch("a b c d e f", {"zzz": 5}))


def test_near_pairs_finds_pairs_also_among_many_texts_that_share_a_notice():
    notice = " notice" * 3 + " this text is free of charge for everybody who wants it"
    texts = [" ".join(prose(seed, 30)) + notice for seed in range(300)]
    texts[250] = texts[40] + " more"
    pairs = near_pairs([sketch(text) for text in texts], 0.8)
    assert [(a, b) for a, b, _ in pairs] == [(40, 250)]
    assert near_pairs([], 0.8) == near_pairs([sketch("a")], 0.8) == []
    assert near_pairs([sketch(""), sketch("")], 0.8) == []


def test_paragraph_share_counts_real_paragraphs_only():
    long = "The Tin Woodman said that he would take the heart."
    target = [document(f'{long}\n\n"Yes," he said.\n\nAnother paragraph that nobody else has in any book at all.')]
    retain = [document(f'"Yes," he said.\n\n{long.upper()}\n')]
    assert paragraph_share(target, retain) == 0.5
    assert paragraph_share([document("Yes.")], retain) == 0


def test_report_tells_copies_within_and_between():
    text = " ".join(prose(3, 400))
    near = text.replace("w", "w", 1) + " end"
    target = [document(text, "t0"), document(text, "t1"), document(" ".join(prose(4, 100)), "t2")]
    retain = [
        document(text, "r0"),
        document(text, "r1"),
        document(near, "r2"),
        document(" ".join(prose(5, 100)), "r3"),
    ]
    found = report(target, retain, 0.8)
    assert found["target"] == {"exact": [{"document": "t1", "same_as": "t0"}], "near": []}
    assert found["retain"]["exact"] == [{"document": "r1", "same_as": "r0"}]
    between = found["target_in_retain"]
    assert between["exact"] == [{"document": "r0", "same_as": "t0"}]
    assert [(p["document"], p["near"]) for p in between["near"]] == [("r2", "t0")]
    assert 0.9 < between["near"][0]["similarity"] < 1
    assert between["paragraph_share"] == pytest.approx(2 / 3, abs=1e-4)
