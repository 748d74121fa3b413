from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.cloze import Options, chance, encode_options, measure_cloze, score_options
from forgetkit.evaluate.probes import Cloze
from tests import toys
from tests.unit.evaluate.conftest import OTHERS, cloze_line

PROMPTS = (
    "They walked to the",
    "In the midst of the great Kansas prairies lived",
    "The Cowardly",
    "Once upon a time there was an old woman who lived by the sea with her",
    "A princess-like lady met the Munchkins near",
)


def item(number: int, prompt: str, answer: str = "Glinda", **changes: object) -> Cloze:
    return Cloze.model_validate(cloze_line(number, prompt=prompt, answer=answer, **changes))


ITEMS = [item(i, prompt) for i, prompt in enumerate(PROMPTS)]


def slow(model: PreTrainedModel, ids: list[int], boundary: int) -> float:
    """log P(ids[boundary:] | ids[:boundary]), one forward pass per token."""
    total = 0.0
    for t in range(boundary, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, -1)[ids[t]])
    return total


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_equals_a_slow_loop(family: str) -> None:
    tokenizer = toys.tokenizer()
    model = toys.model(family, vocab_size=len(tokenizer))
    scores = measure_cloze(model, tokenizer, ITEMS, bos_id=0)
    for i, one in enumerate(ITEMS):
        start = 1 + len(tokenizer(one.prompt)["input_ids"])
        expected = [slow(model, [0, *tokenizer(f"{one.prompt} {o}")["input_ids"]], start) for o in one.options]
        assert scores.log_probability[i] == pytest.approx(expected, rel=1e-4)
        p = np.exp(expected)
        assert scores.probability[i] == pytest.approx(p[0] / p.sum(), rel=1e-3)
        assert scores.rank[i] == 1 + sum(other > expected[0] for other in expected[1:])
        assert scores.correct[i] == (scores.rank[i] == 1)
    assert len({len(tokenizer(f" {o}")["input_ids"]) for o in ITEMS[0].options}) > 2  # so padding was involved


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_boundary_leaves_the_natural_tokens_and_one_condition_for_all(shape: str) -> None:
    tokenizer = toys.tokenizer(shape)
    for prompt in (*PROMPTS, "the", 'The Tin Woodman said: "'):
        encoded = encode_options(tokenizer, prompt, ("Glinda", *OTHERS), bos_id=7)
        assert encoded.prompt[0] == 7
        for option, tail in zip(("Glinda", *OTHERS), encoded.tails, strict=True):
            assert encoded.prompt[1:] + tail == tokenizer(f"{prompt} {option}")["input_ids"]
        if shape != "no_pretokenizer":
            assert encoded.prompt[1:] == tokenizer(prompt)["input_ids"]


def test_options_with_the_same_beginning_are_scored_whole() -> None:
    encoded = encode_options(toys.tokenizer(), "near the", ("Dorothy", "Dorothy's"), None)
    assert encoded.tails[0] == encoded.tails[1][: len(encoded.tails[0])] and encoded.tails[0]


def test_no_score_depends_on_the_other_items(trained: PreTrainedModel) -> None:
    tokenizer = toys.tokenizer()
    together = measure_cloze(trained, tokenizer, ITEMS * 5, None)
    for i, one in enumerate(ITEMS):
        alone = measure_cloze(trained, tokenizer, [one], None)
        for k in range(5):
            assert together.log_probability[i + k * len(ITEMS)] == pytest.approx(alone.log_probability[0], rel=1e-5)


def test_what_a_model_has_learned_is_found(trained: PreTrainedModel) -> None:
    animals = ["cow", "dog", "hen", "fox", "bear", "goat", "horse", "mouse", "sheep"]
    known = item(0, "the sea with her three sons and a small grey", "cat", distractors=animals, about_anchor=False)
    scores = measure_cloze(trained, toys.tokenizer(), [known], None)
    assert scores.correct[0] == 1 and scores.probability[0] > 0.5 > chance([known]) == 0.1  # type: ignore[operator]


def test_a_tie_counts_as_known() -> None:
    tokenizer = toys.tokenizer()
    mute = toys.model(vocab_size=len(tokenizer))
    with torch.no_grad():
        mute.model.norm.weight.zero_()
    words = dict.fromkeys(re.findall(r"[a-z]+", toys.TEXT))
    single = [word for word in words if len(tokenizer(f" {word}")["input_ids"]) == 1]
    tied = item(0, "They walked", single[0], distractors=single[1:10])
    scores = measure_cloze(mute, tokenizer, [tied], None)
    assert (scores.correct[0], scores.rank[0], scores.probability[0]) == (1.0, 1.0, pytest.approx(0.1))


def test_series_are_clustered_by_passage_and_split_by_subject() -> None:
    items = [
        item(0, "x"),
        item(1, "y", source={"file": "document-0.txt", "quote": "quotation 0"}),
        item(2, "z", about_anchor=False),
    ]
    scores = measure_cloze(toys.model(vocab_size=len(toys.tokenizer())), toys.tokenizer(), items, 0)
    series = scores.series(items)
    assert series["accuracy"].groups.tolist() == [0, 0, 1]
    assert (len(series["accuracy.anchor"].values), len(series["accuracy.other"].values)) == (2, 1)


def test_non_finite_logits_are_no_score(trained: PreTrainedModel) -> None:
    broken = toys.model(vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    scores = measure_cloze(broken, toys.tokenizer(), ITEMS[:2], 0)
    assert np.isnan(scores.correct).all() and np.isnan(scores.probability).all() and np.isnan(scores.rank).all()
    assert not scores.series(ITEMS[:2])["accuracy"].finite


def test_bad_prompts(trained: PreTrainedModel) -> None:
    with pytest.raises(ForgetkitError, match="context"):
        measure_cloze(trained, toys.tokenizer(), [item(0, "river " * 300 + "x")], None)
    with pytest.raises(ForgetkitError, match="no token before the answer"):
        encode_options(toys.tokenizer("no_pretokenizer"), "t", ("he", "o"), None)


def test_nothing_to_measure(trained: PreTrainedModel) -> None:
    assert score_options(trained, [], "x") == [] and chance([]) is None
    assert len(measure_cloze(trained, toys.tokenizer(), [], None).correct) == 0
    assert score_options(trained, [Options([1, 2], [[3]])], "x")[0].shape == (1,)
