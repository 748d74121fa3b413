from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.evaluate.extraction import Extraction, measure_extraction
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, STORY, corpus


def test_strength_by_hand() -> None:
    scores = Extraction(np.array([0.0, 4.0, 3.0]), np.array([8.0, 4.0, 12.0]), np.array([0.0, 1.0, 1.0]))
    assert scores.series().values.tolist() == [0.0, 1.0, 0.25]
    assert scores.series().mean == pytest.approx(1.25 / 3)  # passages count alike


def test_equals_the_definition(trained: PreTrainedModel) -> None:
    blocks = corpus(STORY, PLAIN[:50])
    indices = list(range(len(blocks)))
    scores = measure_extraction(trained, blocks, indices)
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    seen = set()
    for i in indices:
        ids = bos + blocks[i].ids.tolist()
        with torch.no_grad():
            guesses = trained(input_ids=torch.tensor([ids])).logits[0, :-1].argmax(-1).tolist()
        truth = ids[1:]
        k = min(k for k in range(len(truth) + 1) if guesses[k:] == truth[k:])
        assert scores.series().values[i] == pytest.approx(1 - k / len(truth))
        seen.add(k == len(truth))
    assert seen == {True, False}  # both a wrong last token and a right one occur


def test_a_model_without_opinions_or_numbers() -> None:
    model = toys.model(vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    blocks = corpus(PLAIN)
    assert not measure_extraction(model, blocks, [0]).series().finite
    assert len(measure_extraction(model, blocks, []).matched) == 0
