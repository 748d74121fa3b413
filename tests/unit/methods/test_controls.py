"""The controls do what their names say: one raises the loss of the text, the other learns noise."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from forgetkit.methods import get
from tests import toys


def batch(ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every position but the last of the first block forgets, every one of the second is retained."""
    width = ids_BT.shape[1]
    rows = torch.cat([torch.arange(width - 1), torch.arange(width, 2 * width - 1)])
    return {"input_ids": ids_BT, "rows": rows, "is_retain": rows >= width}


def test_gradient_ascent_is_minus_the_loss_of_the_target_text_alone() -> None:
    model = toys.model("llama")
    ids = torch.arange(1, 17).reshape(2, 8)
    loss = get("gradient_ascent").make()(model, batch(ids))
    logits = model(input_ids=ids).logits[0, :-1].float()
    assert torch.allclose(loss.total, -F.cross_entropy(logits, ids[0, 1:], reduction="sum"), atol=1e-4)
    assert loss.count.item() == 7


def test_a_step_of_gradient_ascent_raises_the_loss_of_the_text() -> None:
    model = toys.model("llama")
    ids = torch.arange(1, 17).reshape(2, 8)
    method = get("gradient_ascent").make()
    before = method(model, batch(ids)).total
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad
    assert method(model, batch(ids)).total < before


def test_random_labels_follow_the_seed_and_leave_retain_text_alone() -> None:
    model = toys.model("llama")
    ids = torch.arange(1, 17).reshape(2, 8)
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loss = get("random_labels").make()(model, batch(ids))
        values.append(loss.total.item())
        assert loss.count.item() == 7
    assert values[0] == values[1] != values[2]
