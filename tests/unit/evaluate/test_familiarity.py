from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.familiarity import completion_score, measure_continuations, measure_probability, per_prompt
from forgetkit.evaluate.forward import generate
from forgetkit.evaluate.probes import ProbabilityProbe
from tests import toys
from tests.unit.evaluate.conftest import probability_line
from tests.unit.evaluate.test_cloze import PROMPTS, slow


def probe(*familiar: str, prompt: str = "They walked to the") -> ProbabilityProbe:
    return ProbabilityProbe.model_validate(probability_line(prompt=prompt, familiar=familiar))


def test_probability_is_the_sum_over_whole_words() -> None:
    tokenizer = toys.tokenizer()
    model = toys.model(vocab_size=len(tokenizer))
    words = ("Emerald", "Munchkins", "river")
    made = measure_probability(model, tokenizer, [probe(*words)], bos_id=0)
    start = 1 + len(tokenizer("They walked to the")["input_ids"])
    expected = sum(np.exp(slow(model, [0, *tokenizer(f"They walked to the {w}")["input_ids"]], start)) for w in words)
    assert made == pytest.approx([expected], rel=1e-4)


def test_words_that_contain_others_are_counted_once(trained: PreTrainedModel) -> None:
    tokenizer = toys.tokenizer()
    one, both, other = measure_probability(
        trained, tokenizer, [probe("Dorothy"), probe("Dorothy's", "Dorothy"), probe("river")], None
    )
    assert both == pytest.approx(one)
    assert other != pytest.approx(one)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_continuations_do_not_depend_on_their_batch(family: str) -> None:
    tokenizer = toys.tokenizer()
    model = toys.model(family, vocab_size=len(tokenizer))
    made = measure_continuations(model, tokenizer, PROMPTS, bos_id=0, eos_id=None, tokens=12)
    assert all(made.finite)
    for prompt, text in zip(PROMPTS, made.texts, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        alone = generate(model, torch.tensor([[0, *ids]]), 12).ids[0].tolist()
        head, whole = tokenizer.decode(ids), tokenizer.decode(ids + alone)
        assert text == whole[len(head) :]


def test_a_continuation_stops_at_the_end_of_text(trained: PreTrainedModel) -> None:
    tokenizer = toys.tokenizer()
    ids = tokenizer(PROMPTS[0])["input_ids"]
    alone = generate(trained, torch.tensor([ids]), 6).ids[0].tolist()
    (text,) = measure_continuations(trained, tokenizer, PROMPTS[:1], None, alone[3]).texts
    assert text == tokenizer.decode(alone[: alone.index(alone[3])])


def test_too_long_a_prompt_is_refused(trained: PreTrainedModel) -> None:
    with pytest.raises(ForgetkitError, match="context"):
        measure_continuations(trained, toys.tokenizer(), ["river " * 230], None, None)


def test_non_finite_continuations_are_no_score(trained: PreTrainedModel) -> None:
    broken = toys.model(vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    made = measure_continuations(broken, toys.tokenizer(), PROMPTS[:2], 0, None, tokens=3)
    assert made.finite == [False, False]
    assert np.isnan(completion_score([0, 3], made.finite)).all()


def test_the_papers_weights() -> None:
    values = completion_score([3, 2, 1, 0], [True] * 4)
    assert values.tolist() == [1.0, 0.2, 0.0, 0.0]
    series = per_prompt(values)
    assert series.mean == pytest.approx((5 * 1 + 1) / (5 * 4)) and len(set(series.groups.tolist())) == 4
