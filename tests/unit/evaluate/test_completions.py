from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.evaluate.completions import (
    SHOWN,
    Completions,
    choose_prompts,
    completion_json,
    measure_completions,
    prompt_text,
)
from forgetkit.evaluate.recall import eligible_places
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, STORY, corpus, dictionary

TERMS = ("Dorothy", "Tin Woodman", "Scarecrow", "Toto", "Glinda", "Wizard")


def test_prompts_end_before_anchors_or_at_sentences() -> None:
    blocks, words = corpus(STORY), dictionary(*TERMS)
    places, _ = eligible_places(blocks, words, context=20)
    prompts = choose_prompts(blocks, places, 6, 20, 30, seed=0)
    assert len(prompts) == 6 and len({p.anchor for p in prompts if p.kind == "anchor"}) == 4
    assert prompts == choose_prompts(blocks, places, 6, 20, 30, seed=0)
    for prompt in prompts:
        text, truth = prompt_text(blocks, prompt, 30)
        assert text + truth in STORY
        if prompt.kind == "anchor":
            assert truth.lstrip().startswith(words.kept[prompt.anchor].term)
            assert words.kept[prompt.anchor].term not in text
        else:
            assert text.rstrip()[-1] in '.!?"' and truth.lstrip()[0].isalpha()


@pytest.mark.parametrize("text", [PLAIN, "Too short.", ""])
def test_few_or_no_places(text: str) -> None:
    blocks = corpus(text)
    prompts = choose_prompts(blocks, [], 5, 20, 10, seed=0)
    assert all(p.kind == "sentence" and p.first < p.last for p in prompts)
    assert bool(prompts) == (text == PLAIN)


def test_continuations_are_greedy_and_each_is_its_prompts_own(trained: PreTrainedModel) -> None:
    blocks, words = corpus(STORY), dictionary(*TERMS)
    places, _ = eligible_places(blocks, words, context=20)
    prompts = choose_prompts(blocks, places, 8, 40, 20, seed=0)  # near the start: prompts of several lengths
    made = measure_completions(trained, blocks, prompts, 10, eos_id=None)
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    for i, prompt in enumerate(prompts):
        ids = bos + blocks.ids[prompt.first : prompt.last].tolist()
        with torch.no_grad():
            p = torch.softmax(trained(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        assert made.ids[i, 0] == int(p.argmax())
        assert made.probability[i, 0] == pytest.approx(float(p.max()), rel=1e-3)
        told = completion_json(toys.tokenizer(), blocks, prompt, made, i)
        assert told["text"] == toys.tokenizer().decode(made.ids[i].tolist())
        assert len(told["tokens"]) == len(told["probabilities"]) == 10


def test_alternatives_are_the_most_probable_other_tokens(trained: PreTrainedModel) -> None:
    blocks, words = corpus(STORY), dictionary(*TERMS)
    places, _ = eligible_places(blocks, words, context=20)
    prompts = choose_prompts(blocks, places, 4, 20, 20, seed=0)
    made = measure_completions(trained, blocks, prompts, 6, eos_id=None)
    assert made.top_ids.shape == made.top_probability.shape == (len(prompts), 6, 5)
    assert (made.top_ids[..., 0] == made.ids).all() and (np.diff(made.top_probability) <= 0).all()
    assert np.allclose(made.top_probability[..., 0], made.probability)
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    told_any = False
    for i, prompt in enumerate(prompts):
        ids = bos + blocks.ids[prompt.first : prompt.last].tolist()
        told = completion_json(toys.tokenizer(), blocks, prompt, made, i)["alternatives"]
        for at in range(6):
            with torch.no_grad():
                p = torch.softmax(trained(input_ids=torch.tensor([ids])).logits[0, -1], -1)
            expected = torch.argsort(p, descending=True)[1:5].tolist()
            assert made.top_ids[i, at, 1:].tolist() == expected
            assert list(told[at]) == [toys.tokenizer().decode([t]) for t in expected if p[t] >= SHOWN]
            assert list(told[at].values()) == pytest.approx([float(p[t]) for t in expected if p[t] >= SHOWN], abs=1e-3)
            told_any |= bool(told[at])
            ids.append(int(p.argmax()))
    assert told_any


def test_tokens_that_read_alike_are_told_once() -> None:
    blocks = corpus(STORY)
    alphabet = toys.tokenizer().get_vocab()
    halves = [alphabet[c] for c in ("Ã", "ä", "Ĥ")]  # single bytes above 127: none is a character of its own
    top = np.array([[[halves[0], halves[1], halves[2], alphabet["c"], alphabet["y"]]]])
    p = np.array([[[0.5, 0.2, 0.1, 0.05, 0.001]]])
    made = Completions(top[..., 0], p[..., 0], np.array([1]), top, p)
    told = completion_json(toys.tokenizer(), blocks, choose_prompts(blocks, [], 1, 20, 10, seed=0)[0], made, 0)
    assert told["alternatives"] == [{"\ufffd": 0.2, "c": 0.05}]
