"""Counterparts keep kind, number, article and case, are ordinary, unique, and consistent between anchors."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from forgetkit.anchors.counterparts import choose_counterparts
from forgetkit.anchors.dictionary import Anchor, Dictionary, lint
from forgetkit.anchors.extract import Candidate, extract
from forgetkit.anchors.kinds import Context, guess_kind, pools
from forgetkit.anchors.matcher import looks_plural, vowel_sound
from forgetkit.anchors.naturalness import rank_by_naturalness
from tests.toys import TEXT as TOY_TEXT
from tests.toys import model, tokenizer

SCENES = [
    'They met Velindra Moss there. "I am here," said Velindra, and she liked the Copper Fisherman.',
    '"Go home," said Orgul, and he shook his head. Then Orgul spoke of the Drimples, and the Drimples sang.',
    "They walked to Zorbeck, lived in Zorbeck, and came back from Zorbeck with the Gilded Whistle of Plenty.",
    "By night the Cruel Witch of the North saw Aunt Quill in Emberal City with the Timid Lion and an Ompler.",
    "He had the glass slippers. They saw the glass slippers and an Ompler; it ran; the Ompler hurt its tail.",
]
TEXT = "\n\n".join(SCENES * 6)
CANDIDATES = extract([TEXT])


def proposals(seed: int = 0) -> dict[str, tuple[str, str]]:
    return dict(choose_counterparts(CANDIDATES, [TEXT], seed=seed))


def test_kinds() -> None:
    kinds = {c.term: guess_kind(c, [TEXT]) for c in CANDIDATES}
    expected = {
        "Velindra": "woman",
        "Orgul": "man",
        "Drimples": "group",
        "Zorbeck": "place",
        "Cruel Witch of the North": "woman",
        "Aunt Quill": "woman",
        "Timid Lion": "creature",
        "Emberal City": "place",
        "Ompler": "creature",
        "glass slippers": "object",
    }
    assert {t: kinds.get(t) for t in expected} == expected


def test_number_article_and_case_are_kept() -> None:
    for term, (kind, other) in proposals().items():
        if term != "Aunt Quill":  # no article stands before a name with a title
            assert vowel_sound(term) == vowel_sound(other), (term, other)
        if kind not in ("woman", "man", "place"):
            assert looks_plural(term) == looks_plural(other), (term, other)
        assert term[0].isupper() == other[0].isupper(), (term, other)


def test_unique_and_not_in_the_target() -> None:
    found = proposals()
    others = [other.lower() for _, other in found.values()]
    assert len(set(others)) == len(others)
    words = {w for term in found for w in term.lower().split()} - {"of", "the"}
    for other in others:
        assert other not in TEXT.lower()
        assert not words & set(other.split())


def test_lint_finds_no_error() -> None:
    anchors = tuple(
        Anchor(term=t, kind=k, counterpart=o) for t, (k, o) in choose_counterparts(CANDIDATES, [TEXT], seed=3).items()
    )
    assert [f for f in lint(Dictionary(anchors), [TEXT]) if f.level == "error"] == []


def test_shared_words_map_to_the_same_word() -> None:
    found = proposals()
    assert {"Velindra", "Velindra Moss"} <= set(found)
    assert found["Velindra Moss"][1].split()[0] == found["Velindra"][1]
    assert len(found["Velindra Moss"][1].split()) == 2


def test_deterministic_by_seed() -> None:
    assert proposals(1) == proposals(1)
    assert proposals(1) != proposals(2)


def test_pools_larger_than_needed_for_a_long_target() -> None:
    names = [f"Vel{a}{b}{c}ind" for a in "aeiou" for b in "bdfgklmnprstv" for c in "aeiou"]
    text = " ".join(f"They met {name}; she smiled." for name in names)
    many = [Candidate(n, 3, 9.0, "name", ((0, text.index(n), text.index(n) + len(n)),), (n.lower(),)) for n in names]
    found = choose_counterparts(many, [text], seed=0)
    assert len({other for _, other in found.values()}) == len(names) == 325
    assert all(len(other.split()) <= 4 for _, other in found.values())


@pytest.mark.parametrize(
    ("name", "size"),
    [("woman", 150), ("man", 150), ("place", 120), ("group", 100), ("creature", 80), ("object", 80)],
)
def test_pools(name: str, size: int) -> None:
    pool = pools()[name]
    assert len(set(pool)) == len(pool) >= size
    assert all(isinstance(word, str) for word in pool)  # yaml reads No and Yes as truth values
    assert sum(map(vowel_sound, pool)) >= size // 8


def test_the_ranked_best_is_taken() -> None:
    offered: dict[str, Sequence[str]] = {}

    def last(contexts: Sequence[Context], candidates: Sequence[str]) -> list[float]:
        assert 1 <= len(contexts) <= 4
        offered[candidates[-1]] = candidates
        return [float(i) for i in range(len(candidates))]

    found = choose_counterparts(CANDIDATES, [TEXT], seed=0, rank=last)
    assert offered
    assert set(offered) <= {other for _, other in found.values()}


@pytest.mark.parametrize("shape", ["bytelevel", "sentencepiece"])
def test_naturalness_is_the_mean_log_probability_after_the_context(shape: str) -> None:
    import torch

    tok, net = tokenizer(shape), model(vocab_size=700)
    left, right = "Dorothy lived in the midst of the great ", " prairies"
    options = ["Kansas", "river", "old grey"]
    scores = rank_by_naturalness(net, tok, [(left, right)], options, batch=2)
    for option, score in zip(options, scores, strict=True):
        encoded = tok(left + option + right, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        with torch.no_grad():
            log_probs = net(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        taken = [
            float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids)) if encoded["offset_mapping"][i][1] > len(left)
        ]
        assert score == pytest.approx(sum(taken) / len(taken), abs=1e-4)
    assert rank_by_naturalness(net, tok, [], options) == [0.0] * 3
    twice = rank_by_naturalness(net, tok, [(left, right), (TOY_TEXT[:50], right)], options, batch=5)
    assert twice[0] != scores[0]
