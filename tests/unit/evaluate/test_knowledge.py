from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.knowledge import (
    Choice,
    Question,
    _letter_log_p,
    choice_prompt,
    credit,
    cut_answer,
    debias,
    knowmem_prompt,
    measure_choices,
    measure_knowmem,
    option_orders,
    score_choices,
    summarise_choices,
)
from forgetkit.evaluate.rouge import rouge_l
from forgetkit.evaluate.tokens import encode_text
from tests import toys

CHOICES = [
    Choice("Who barked?", ("Toto", "the sea", "Kansas", "a cat"), 0),
    Choice("Where did Dorothy live?", ("hills", "Kansas", "the river"), 1),
    Choice("Who was a farmer?", ("Toto", "Uncle Henry"), 1),
]


def test_prompt_and_cut_of_muse() -> None:
    shots = [Question("a?", "b"), Question("c?", "d")]
    assert knowmem_prompt("e?", shots) == (
        "Question: a?\nAnswer: b\n\nQuestion: c?\nAnswer: d\n\nQuestion: e?\nAnswer: "
    )
    assert cut_answer("Toto\n\nmore") == cut_answer("Toto\nQuestion: x") == cut_answer("TotoQuestion: x") == "Toto"
    assert cut_answer("Toto\nand more") == "Toto\nand more"


def test_knowmem_by_slow_loop(trained: PreTrainedModel) -> None:
    tokenizer = toys.tokenizer()
    questions = [Question("Who barked?", "Toto barked at the Lion"), Question("Where?", "Kansas"), Question("No?", "")]
    found = measure_knowmem(trained, tokenizer, questions, questions[:1], tokens=6)
    for i, question in enumerate(questions):
        prompt = knowmem_prompt(question.question, questions[:1])
        ids = encode_text(tokenizer, prompt, beginning(tokenizer))
        own: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                own.append(int(trained(input_ids=torch.tensor([ids + own])).logits[0, -1].argmax()))
            if own[-1] == tokenizer.eos_token_id:
                break
        assert found.answers[i] == cut_answer(tokenizer.decode(own, skip_special_tokens=True))
        slow = rouge_l(question.answer, str(found.answers[i]))
        assert (found.recall[i], found.f1[i]) == pytest.approx((slow.recall, slow.f1), nan_ok=True)
    assert np.isnan(found.f1[2])  # an empty answer is not measured


def test_orders() -> None:
    assert option_orders(3).tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert option_orders(3, "as_written").tolist() == [[0, 1, 2]]
    assert len(option_orders(4, "permutations")) == 24 and option_orders(4, "permutations")[0].tolist() == [0, 1, 2, 3]
    for orders in (option_orders(4), option_orders(4, "permutations")):
        for option in range(4):
            assert len(set((orders == option).sum(0).tolist())) == 1  # equally often at every position
    with pytest.raises(ForgetkitError, match="permutations"):
        option_orders(5, "permutations")


def test_prompt_of_a_choice() -> None:
    assert choice_prompt(" Who? ", ("x", "y"), [1, 0]) == "Who?\nA. y\nB. x\nAnswer:"
    assert choice_prompt(None, ("x", "y"), [0, 1]) == "A. x\nB. y\nAnswer:"


@pytest.mark.parametrize("how", ["rotations", "permutations"])
def test_a_liking_for_letters_cancels(how: str) -> None:
    truth = np.log([0.5, 0.3, 0.2])
    orders = option_orders(3, how)  # type: ignore[arg-type]
    liking = np.array([7.0, 0.0, -3.0])
    log_p = truth[orders] + liking - 11.0  # the rest of the vocabulary holds most of the probability
    assert np.exp(debias(log_p, orders)) == pytest.approx([0.5, 0.3, 0.2])
    assert credit(log_p[0], 0) == 1.0
    scores = score_choices([Choice("q", ("a", "b", "c"), 1)], [truth[orders] + liking], [orders])
    assert scores.correct.tolist() == [0.0] and scores.probability == pytest.approx([0.3])
    assert scores.letter_entropy == pytest.approx(0.0)  # always A
    assert scores.agreement == pytest.approx([1 / 3])
    assert scores.picked[:3].tolist() == [len(orders), 0, 0]


def test_plain_credit_is_of_the_written_order() -> None:
    found = np.log([[0.6, 0.4], [0.1, 0.9]])  # A = "a" as written, then B = "a"
    for answer, expected in ((0, 1.0), (1, 0.0)):
        scores = score_choices([Choice("q", ("a", "b"), answer)], [found], [option_orders(2)])
        assert scores.plain.tolist() == scores.correct.tolist() == [expected]
    found = np.log([[0.4, 0.6], [0.1, 0.9]])  # B = "b" as written, but "a" on average
    scores = score_choices([Choice("q", ("a", "b"), 0)], [found], [option_orders(2)])
    assert (scores.plain.tolist(), scores.correct.tolist()) == ([0.0], [1.0])


def test_credit_of_ties_and_gaps() -> None:
    assert credit(np.array([1.0, 1.0, 0.0]), 0) == 0.5
    assert credit(np.array([1.0, 1.0, 0.0]), 2) == 0.0
    assert math.isnan(credit(np.array([1.0, np.nan]), 0))
    orders = option_orders(2)
    broken = score_choices([Choice("q", ("a", "b"), 1)], [np.full((2, 2), np.nan)], [orders])
    assert np.isnan(broken.correct).all() and broken.chance.tolist() == [0.5]
    assert summarise_choices(broken).accuracy.value is None
    assert math.isnan(score_choices([], [], []).letter_entropy)


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("with_question", [True, False])
def test_choices_equal_a_slow_loop_whatever_the_batch(shape: str, with_question: bool) -> None:
    tokenizer = toys.tokenizer(shape)
    model = toys.model(vocab_size=len(tokenizer))
    found = measure_choices(model, tokenizer, CHOICES, with_question=with_question)
    for i, choice in enumerate(CHOICES):
        orders = option_orders(len(choice.options))
        log_p = np.zeros(orders.shape)
        for r, order in enumerate(orders.tolist()):
            prompt = choice_prompt(choice.question if with_question else None, choice.options, order)
            rows = [encode_text(tokenizer, f"{prompt} {'ABCD'[k]}", beginning(tokenizer)) for k in range(len(order))]
            for k, row in enumerate(rows):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([row])).logits[0].double()
                each = torch.log_softmax(logits, -1)[:-1].gather(-1, torch.tensor(row)[1:, None])[:, 0]
                log_p[r, k] = float(each.sum())  # of the whole text: what is common to the letters cancels
        assert found.probability[i] == pytest.approx(float(np.exp(debias(log_p, orders)[choice.answer])), rel=1e-3)
        alone = measure_choices(model, tokenizer, [choice], with_question=with_question)
        assert alone.probability[0] == pytest.approx(found.probability[i], rel=1e-5)
    assert found.chance.tolist() == [1 / 4, 1 / 3, 1 / 2] and found.picked.sum() == 9


def test_letters_of_one_token_are_read_off_one_pass() -> None:
    model = toys.model()
    single = [[[5, 6, 1], [5, 6, 2]], [[7, 8, 9, 1], [7, 8, 9, 2], [7, 8, 9, 3]]]
    longer = [[[5, 6, 1], [5, 6, 4, 2]], single[1]]
    for rows in (single, longer):
        found = _letter_log_p(model, rows, "letters")
        assert found.shape == (2, 3) and np.isnan(found[0, 2])
        for i, several in enumerate(rows):
            start = 2 + i
            for k, row in enumerate(several):
                with torch.no_grad():
                    log_p = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0].double(), -1)
                slow = sum(float(log_p[t - 1, row[t]]) for t in range(start, len(row)))
                assert found[i, k] == pytest.approx(slow, rel=1e-4)


def test_summary_shows_what_the_options_give_away() -> None:
    orders = [option_orders(2)] * 4
    choices = [Choice("q", ("a", "b"), 0)] * 4
    right, wrong = np.log([[0.9, 0.1], [0.1, 0.9]]), np.log([[0.1, 0.9], [0.9, 0.1]])
    asked = score_choices(choices, [right] * 4, orders)
    bare = score_choices(choices, [right, right, wrong, wrong], orders)
    told = summarise_choices(asked, bare)
    assert (told.accuracy.value, told.options_only.value, told.chance) == (1.0, 0.5, 0.5)
    assert told.gain is not None and told.gain.difference.value == 0.5 and told.gain.p == 0.5  # 8 of 16 sign vectors
    assert told.sizes.units == 4 and told.letter_entropy == pytest.approx(1.0)
    assert summarise_choices(asked).gain is None and summarise_choices(asked, groups=[0] * 4).sizes.clusters == 1


@pytest.mark.parametrize("choice", [Choice("q", ("a",), 0), Choice("q", ("a", "b"), 2), Choice("q", ("a", "b"), -1)])
def test_bad_questions_are_told(choice: Choice) -> None:
    with pytest.raises(ForgetkitError, match="question 0"):
        measure_choices(toys.model(), toys.tokenizer(), [choice])
