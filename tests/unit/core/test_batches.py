from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetkit.core import heads
from forgetkit.core.batches import epoch_order, lm_loss, pad_blocks
from tests import toys

RNG = np.random.default_rng(0)
BLOCKS = [RNG.integers(1, 400, n).astype(np.int32) for n in (17, 5, 24, 1)]


def _batch(blocks: list[np.ndarray], pad_id: int = 0, bos_id: int | None = None) -> dict[str, torch.Tensor]:
    ids, valid = pad_blocks(blocks, pad_id, bos_id)
    return {"input_ids": ids, "valid": valid}


@pytest.mark.parametrize("bos", [None, 7])
def test_padded_blocks_come_back_whole(bos: int | None) -> None:
    ids, valid = pad_blocks(BLOCKS, pad_id=7, bos_id=bos)  # padding with a token that is also in use
    assert ids.dtype == torch.long
    assert valid.sum().item() == sum(map(len, BLOCKS)) + (0 if bos is None else len(BLOCKS))
    for row, block in enumerate(BLOCKS):
        first = int(bos is not None)
        assert ids[row, first : first + len(block)].tolist() == block.tolist()
        assert valid[row].tolist() == [i < first + len(block) for i in range(ids.shape[1])]  # padding on the right
    if bos is not None:
        assert (ids[:, 0] == bos).all()


@pytest.mark.parametrize("family", toys.FAMILIES)
@pytest.mark.parametrize("bos", [None, 0])
def test_lm_loss_equals_the_librarys(family: str, bos: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK", 8)  # several chunks, the last one partial
    model, batch = toys.model(family), _batch(BLOCKS, bos_id=bos)
    labels = batch["input_ids"].masked_fill(~batch["valid"], -100)
    theirs = model(input_ids=batch["input_ids"], labels=labels).loss
    theirs.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = lm_loss(model, batch)
    (loss.total / loss.count).backward()
    assert int(loss.count) == int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(loss.total / loss.count, theirs, rtol=1e-6, atol=1e-6)
    for n, p in model.named_parameters():
        if n in expected:
            torch.testing.assert_close(p.grad, expected[n], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", toys.FAMILIES)
def test_t5_loss_is_invariant_to_padding_and_to_values_under_the_mask(family: str) -> None:
    model, batch = toys.model(family), _batch(BLOCKS)
    loss = lm_loss(model, batch)
    changed = {**batch, "input_ids": batch["input_ids"].masked_fill(~batch["valid"], 399)}
    assert torch.equal(lm_loss(model, changed).total, loss.total)
    wide = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 9), value=3),
        "valid": torch.nn.functional.pad(batch["valid"], (0, 9)),
    }
    assert int(lm_loss(model, wide).count) == int(loss.count)
    torch.testing.assert_close(lm_loss(model, wide).total, loss.total, rtol=1e-5, atol=1e-5)
    alone = [lm_loss(model, _batch([block])) for block in BLOCKS]  # no padding at all
    torch.testing.assert_close(sum(x.total for x in alone), loss.total, rtol=1e-5, atol=1e-5)


def test_a_batch_without_targets_counts_nothing() -> None:
    model = toys.model("gpt2")
    loss = lm_loss(model, _batch([BLOCKS[3]]))
    loss.total.backward()
    assert (loss.total.item(), int(loss.count)) == (0.0, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_epoch_order_is_deterministic_and_complete() -> None:
    order = epoch_order(50, 3, seed=4)
    assert order.tolist() == epoch_order(50, 3, seed=4).tolist()
    epochs = order.reshape(3, 50)
    assert all(sorted(e.tolist()) == list(range(50)) for e in epochs)
    assert len({tuple(e) for e in epochs.tolist()}) == 3  # shuffled anew
    assert order[:50].tolist() == epoch_order(50, 1, seed=4).tolist()
    assert order.tolist() != epoch_order(50, 3, seed=5).tolist()
    assert epoch_order(50, 0, seed=4).shape == (0,)
