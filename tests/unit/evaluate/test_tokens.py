from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.tokens import (
    continue_greedily,
    decode_text,
    encode_answers,
    encode_text,
    measure_next,
    measure_tokens,
)
from tests import toys
from tests.unit.evaluate.conftest import STORY

ROWS = [[5, 9, 30, 7, 7, 12], [8, 3], [4], [], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [6, 6, 6]]
STARTS = [3, 1, 1, 0, 7, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_equals_a_slow_loop_whatever_the_padding(family: str) -> None:
    model = toys.model(family)
    scores = measure_tokens(model, ROWS, STARTS)
    assert scores.counts.tolist() == [3, 1, 0, 0, 4, 0]
    place = 0
    for row, start in zip(ROWS, STARTS, strict=True):
        for t in range(start, len(row)):
            with torch.no_grad():
                log_p = torch.log_softmax(model(input_ids=torch.tensor([row[:t]])).logits[0, -1].double(), -1)
            p = log_p.exp()
            mean = float((p * log_p).sum())
            assert scores.log_p[place] == pytest.approx(float(log_p[row[t]]), rel=1e-4)
            assert scores.hit[place] == float(log_p.argmax() == row[t])
            assert scores.mean[place] == pytest.approx(mean, rel=1e-4)
            assert scores.variance[place] == pytest.approx(float((p * log_p**2).sum()) - mean**2, rel=1e-3)
            place += 1
    assert place == len(scores.log_p)
    for i, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):
        alone = measure_tokens(model, [row], [start])
        for own, whole in ((alone.log_p, scores.log_p), (alone.variance, scores.variance), (alone.hit, scores.hit)):
            assert own == pytest.approx(scores.split(whole)[i], rel=1e-5, abs=1e-7)


def test_means_per_text_and_the_empty_one() -> None:
    scores = measure_tokens(toys.model(), ROWS, STARTS)
    parts = scores.split(scores.log_p)
    assert np.isnan(scores.mean_log_p[[2, 3, 5]]).all()
    for i in (0, 1, 4):
        assert scores.mean_log_p[i] == pytest.approx(parts[i].mean())
    loss = scores.loss()
    assert loss.groups.tolist() == [0, 1, 4] and loss.mean == pytest.approx(-scores.log_p.mean())
    none = measure_tokens(toys.model(), [])
    assert len(none.counts) == 0 and not none.loss().finite


def test_a_non_finite_model_and_ties_get_no_credit() -> None:
    model = toys.model()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    flat = measure_tokens(model, [[5, 9, 30]])
    assert flat.hit.tolist() == pytest.approx([1 / 400] * 2)
    assert flat.log_p == pytest.approx(-np.log(400)) and flat.variance == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    broken = measure_tokens(model, [[5, 9, 30], [4]])
    assert np.isnan(broken.log_p).all() and np.isnan(broken.hit).all() and np.isnan(broken.variance).all()
    assert continue_greedily(model, [[5, 9]], 3, None) == [None]


def test_one_broken_text_leaves_the_others() -> None:
    model = toys.model(family="phi3")  # input and output embeddings apart: only texts with token 77 break
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = float("nan")
    scores = measure_tokens(model, [[5, 77, 9], [5, 8, 9]])
    assert np.isnan(scores.mean_log_p).tolist() == [True, False]
    made = continue_greedily(model, [[5, 77], [5, 8]], 3, None)
    assert made[0] is None and made[1] == continue_greedily(model, [[5, 8]], 3, None)[0]


def test_bad_rows_are_told() -> None:
    model = toys.model()
    with pytest.raises(ForgetkitError, match="nothing stands before"):
        measure_tokens(model, [[3, 4]], [0])
    with pytest.raises(ForgetkitError, match="vocabulary"):
        measure_tokens(model, [[3, 400]])
    with pytest.raises(ForgetkitError, match="context"):
        measure_tokens(model, [[3] * 257])
    with pytest.raises(ForgetkitError, match="empty prompt"):
        continue_greedily(model, [[]], 3, None)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_answers_are_tokenised_with_their_prompt(shape: str) -> None:
    tokenizer = toys.tokenizer(shape)
    pairs = [("Dorothy lived in the", " midst"), ("The Tin Wood", "man said"), ("Where?", ""), ("Toto", " barked at")]
    rows, starts = encode_answers(tokenizer, pairs)
    for (prompt, answer), row, start in zip(pairs, rows, starts, strict=True):
        assert row == encode_text(tokenizer, prompt + answer, beginning(tokenizer))
        alone = encode_text(tokenizer, prompt, beginning(tokenizer))
        assert row[:start] == alone[:start] and (start == len(row)) == (answer == "")
    ended, same = encode_answers(tokenizer, pairs, end=True)
    assert same == starts
    assert [len(a) - len(b) for a, b in zip(ended, rows, strict=True)] == [1, 1, 0, 1]


def test_next_tokens_by_slow_loop() -> None:
    model = toys.model()
    rows, choices = [[5, 9, 30], [8, 3], [7, 7, 7]], [[1, 2], [3, 4, 5], [6, 7]]
    found = measure_next(model, rows, choices)
    for i, (row, ids) in enumerate(zip(rows, choices, strict=True)):
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0, -1].double(), -1)
        assert found[i, : len(ids)] == pytest.approx(log_p[ids].numpy(), rel=1e-4)
        assert np.isnan(found[i, len(ids) :]).all()
    assert measure_next(model, [], []).shape == (0, 0)


def test_continuations_are_each_prompts_own_and_end_at_eos(trained: PreTrainedModel) -> None:
    ids = toys.tokenizer()(STORY, add_special_tokens=False)["input_ids"]
    prompts = [ids[i : i + n] for i, n in ((0, 20), (30, 20), (60, 12), (90, 33))]
    made = continue_greedily(trained, prompts, 8, None)
    for prompt, row in zip(prompts, made, strict=True):
        slow = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                slow.append(int(trained(input_ids=torch.tensor([slow])).logits[0, -1].argmax()))
        assert row == slow[len(prompt) :]
    first = made[0]
    assert first is not None
    end = next(k for k in range(8) if first[k] not in first[:k] and k > 0)
    assert continue_greedily(trained, prompts[:1], 8, first[end]) == [first[:end]]
    assert decode_text(toys.tokenizer(), [0, *ids[:5]]) == decode_text(toys.tokenizer(), ids[:5])
