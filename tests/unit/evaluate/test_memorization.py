from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.tokenise import beginning
from forgetkit.evaluate.memorization import (
    Passage,
    VerbatimScores,
    answer_probability,
    encode_passages,
    exact_memorization,
    perplexity,
    score_verbatim,
    truth_ratio,
    truth_ratio_scores,
    verbatim_scores,
)
from forgetkit.evaluate.tokens import TokenScores, continue_greedily, encode_answers, measure_tokens
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, STORY, train


def scores(log_p: list[list[float]], hit: list[list[float]] | None = None) -> TokenScores:
    flat = np.array([x for row in log_p for x in row])
    hits = np.array([x for row in hit or log_p for x in row])
    bounds = np.cumsum([0, *map(len, log_p)])
    return TokenScores(flat, hits, np.zeros(len(flat)), np.ones(len(flat)), bounds)


def test_by_hand() -> None:
    told = scores(
        [[math.log(0.5), math.log(0.125)], [], [math.log(0.2)]],
        [[1.0, 0.0], [], [0.5]],
    )
    assert exact_memorization(told)[[0, 2]].tolist() == [0.5, 0.5]
    assert answer_probability(told.mean_log_p)[[0, 2]] == pytest.approx([0.25, 0.2])
    assert np.isnan(exact_memorization(told)[1]) and np.isnan(answer_probability(told.mean_log_p)[1])
    assert perplexity(told.loss()).value == pytest.approx((0.5 * 0.125 * 0.2) ** (-1 / 3))
    estimate = perplexity(scores([[-1.0] * 3] * 5).loss())
    assert estimate[:3] == pytest.approx((math.e,) * 3)
    assert perplexity(scores([[]]).loss()).value is None
    assert perplexity(scores([[float("nan")], [-1.0]]).loss()).value is None


@pytest.mark.parametrize("seed", range(5))
def test_equals_openunlearning_on_random_tensors(seed: int) -> None:
    """Their loops over a padded batch: labels -100 on the prompt, EOS scored by the loss and left out by EM."""
    generator = torch.Generator().manual_seed(seed)
    model = toys.model(seed=seed)
    rows, starts = [], []
    for _ in range(6):
        n, start = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((6, 14), (2, 5)))
        rows.append([*torch.randint(1, 400, (n,), generator=generator).tolist(), 0])
        starts.append(start)
    width = max(map(len, rows))
    ids = torch.zeros(6, width, dtype=torch.long)
    labels, mask = torch.full((6, width), -100), torch.zeros(6, width, dtype=torch.long)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        labels[i, start : len(row)] = torch.tensor(row[start:])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    ).sum(-1)
    average = losses / (labels != -100).sum(-1)
    found = measure_tokens(model, rows, starts)
    assert found.mean_log_p == pytest.approx(-average.numpy(), rel=1e-4)
    assert answer_probability(found.mean_log_p) == pytest.approx(average.neg().exp().numpy(), rel=1e-4)
    slow = []
    for i in range(6):
        kept = (labels[i] != -100).nonzero()[:-1, 0]
        slow.append(float((logits[i, kept - 1].argmax(-1) == labels[i, kept]).float().mean()))
    without_end = measure_tokens(model, [row[:-1] for row in rows], starts)
    assert exact_memorization(without_end) == pytest.approx(slow)


def test_truth_ratio_by_hand_and_by_slow_loop() -> None:
    right, wrong = -np.log([0.5, 0.2]), -np.log([[0.1, 0.4], [0.2, 0.2]])
    assert truth_ratio(right, wrong, "tofu") == pytest.approx([0.5, 1.0])
    assert truth_ratio(right, wrong, "openunlearning") == pytest.approx([0.4, 1.0])  # sqrt(.1 x .4) / .5
    generator = np.random.default_rng(0)
    right, wrong = generator.gamma(2, 2, 50), generator.gamma(2, 2, (50, 5))
    for i, (one, five) in enumerate(zip(right, wrong, strict=True)):
        tofu = sum(math.exp(-x) for x in five) / 5 / math.exp(-one)
        theirs = math.exp(-sum(five) / 5) / (math.exp(-one) + 1e-10)
        assert truth_ratio(right, wrong, "tofu")[i] == pytest.approx(tofu)
        assert truth_ratio(right, wrong, "openunlearning")[i] == pytest.approx(theirs)


def test_truth_ratio_scores_by_hand() -> None:
    ratios = np.array([0.25, 1.0, 4.0, 0.0])
    assert truth_ratio_scores(ratios, "closer_to_one").tolist() == [0.25, 1.0, 0.25, 0.0]
    assert truth_ratio_scores(ratios, "right_is_likelier").tolist() == [0.75, 0.0, 0.0, 1.0]
    assert truth_ratio_scores(ratios, "probability") == pytest.approx([0.8, 0.5, 0.2, 1.0])


def test_a_right_answer_of_no_probability_at_all() -> None:
    ratios = truth_ratio(np.array([800.0]), np.array([[1.0, 2.0]]), "tofu")
    assert truth_ratio_scores(ratios, "closer_to_one").tolist() == [0.0]
    assert truth_ratio_scores(ratios, "right_is_likelier").tolist() == [0.0]


@pytest.mark.parametrize("shape", [(2, 0), (1, 3), (2,)])
def test_truth_ratio_needs_wrong_answers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ForgetkitError, match="wrong answers"):
        truth_ratio(np.ones(2), np.ones(shape), "tofu")


def test_verbatim_scores_of_edge_cases() -> None:
    recall, f1 = verbatim_scores(["one two three four", "", "one", "one"], ["two four six", "x", None, ""], "muse")
    assert recall.tolist() == pytest.approx([0.5, np.nan, np.nan, 0.0], nan_ok=True)
    assert f1.tolist() == pytest.approx([4 / 7, np.nan, np.nan, 0.0], nan_ok=True)


@pytest.mark.parametrize("bos", [True, False])
def test_passages_of_muse_are_cut_with_their_bos(bos: bool) -> None:
    tokenizer = copy.deepcopy(toys.tokenizer())
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    assert (beginning(tokenizer) is not None) == bos
    long = encode_passages(tokenizer, [("Dorothy lived", " in the midst of the prairies")], 4, "openunlearning")[0]
    cut = encode_passages(tokenizer, [("Dorothy lived", " in the midst of the prairies")], 4, "muse")[0]
    assert len(long.suffix) > 4 and cut.suffix == long.suffix[: 3 if bos else 4]
    assert cut.prefix == long.prefix and (cut.prefix[0] == 0) == bos and 0 not in long.suffix


def test_a_trained_model_recites_and_an_untrained_one_does_not(trained: PreTrainedModel) -> None:
    tokenizer = toys.tokenizer()
    ids = tokenizer(STORY, add_special_tokens=False)["input_ids"]

    def verbatim(model: PreTrainedModel, some: list[Passage]) -> VerbatimScores:
        made = continue_greedily(model, [p.prefix for p in some], 16, tokenizer.eos_token_id, "verbatim")
        return score_verbatim(tokenizer, some, made)

    passages = [Passage(ids[i : i + 24], ids[i + 24 : i + 40]) for i in (0, 10, 25, 40)] + [Passage(ids[:9], [])]
    reciter = train(copy.deepcopy(trained), STORY, 200)
    known = verbatim(reciter, passages)
    fresh = verbatim(toys.model(vocab_size=len(tokenizer)), passages)
    assert known.recall[:4].mean() > fresh.recall[:4].mean() + 0.3
    assert known.run[:4].max() >= 8 > fresh.run[:4].max()
    assert np.isnan([known.recall[4], known.f1[4], known.run[4]]).all() and known.length.tolist() == [16.0] * 4 + [0.0]
    alone = [verbatim(reciter, [p]).f1[0] for p in passages]
    assert alone == pytest.approx(known.f1.tolist(), nan_ok=True)
    probability = []
    for model in (trained, toys.model(vocab_size=len(tokenizer))):
        rows, starts = encode_answers(tokenizer, [(PLAIN[:60], PLAIN[60:100])])
        probability.append(answer_probability(measure_tokens(model, rows, starts).mean_log_p)[0])
    assert probability[0] > 10 * probability[1]
