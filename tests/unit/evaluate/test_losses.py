from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.losses import measure_divergence, measure_losses, sample_blocks
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, STORY, corpus


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equals_a_slow_loop_whatever_the_padding(family: str) -> None:
    blocks = corpus(STORY, PLAIN[:60], PLAIN[:20], block_tokens=48)  # lengths differ: padded batches
    model = toys.model(family, vocab_size=len(toys.tokenizer()))
    indices = list(range(len(blocks)))
    assert len({len(blocks[i].ids) for i in indices}) > 2
    scores = measure_losses(model, blocks, indices)
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    for i in indices:
        ids = torch.tensor([bos + blocks[i].ids.tolist()])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        loss = -sum(float(log_p[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1))
        entropy = -sum(float((log_p[t].exp() * log_p[t]).sum()) for t in range(ids.shape[1] - 1))
        assert scores.count[i] == ids.shape[1] - 1
        assert scores.loss[i] == pytest.approx(loss, rel=1e-4)
        assert scores.entropy[i] == pytest.approx(entropy, rel=1e-4)
        alone = measure_losses(model, blocks, [i])
        assert alone.loss[0] == pytest.approx(scores.loss[i], rel=1e-5)
    assert scores.series().mean == pytest.approx(scores.loss.sum() / scores.count.sum())


def test_sampled_blocks_are_spread() -> None:
    blocks = corpus(STORY * 4, block_tokens=8)
    picked = sample_blocks(blocks, 10)
    assert len(picked) == len(set(picked)) == 10 and picked == sorted(picked)
    assert picked[0] < len(blocks) / 10 and picked[-1] >= len(blocks) * 9 // 10
    assert max(np.diff(picked)) - min(np.diff(picked)) <= 1
    assert sample_blocks(blocks, 10_000) == list(range(len(blocks)))


def test_non_finite_is_counted_not_averaged_away() -> None:
    model = toys.model(vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = float("nan")  # tied: also one column of the logits
    scores = measure_losses(model, corpus(PLAIN), [0])
    assert scores.nonfinite > 0 and not scores.series().finite


def test_divergence_by_slow_loop() -> None:
    blocks = corpus(STORY[:200], PLAIN[:40])
    one = toys.model(vocab_size=len(toys.tokenizer()), seed=0)
    two = toys.model(vocab_size=len(toys.tokenizer()), seed=1)
    indices = list(range(len(blocks)))
    found = measure_divergence(one, two, blocks, indices)
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    for i in indices:
        ids = torch.tensor([bos + blocks[i].ids.tolist()])[:, :-1]
        with torch.no_grad():
            p, q = (torch.softmax(m(input_ids=ids).logits[0, :].double(), -1) for m in (one, two))
        # the last token of a block predicts nothing that is in the block: left out, as in the loss
        kl = sum(float((p[t] * (p[t] / q[t]).log()).sum()) for t in range(len(p)))
        assert found.divergence[i] == pytest.approx(kl, rel=1e-3)
        assert found.agreement[i] == int((p.argmax(-1) == q.argmax(-1)).sum())
        assert found.count[i] == len(p)
    same = measure_divergence(one, one, blocks, indices)
    assert np.abs(same.divergence).max() < 1e-6 and (same.agreement == same.count).all()


def test_window_and_vocabulary_are_checked() -> None:
    model = toys.model(vocab_size=len(toys.tokenizer()))
    long = corpus(STORY * 2, block_tokens=300)
    with pytest.raises(ForgetkitError, match="context"):
        measure_losses(model, long, [0])
    small = toys.model(vocab_size=50)
    with pytest.raises(ForgetkitError, match="vocabulary"):
        measure_losses(small, corpus(PLAIN), [0])
