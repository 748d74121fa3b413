"""What a method is: a name and a loss over batches of labelled positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forgetkit.core.loop import Loss


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    `make()` gives the loss of one run. `loss(model, batch)` gets a batch of B blocks, T tokens, N labelled positions
    and K kept entries: `input_ids` long [B, T]; `rows` long [N], positions in the flattened [B * T]; `ids` long [N, K];
    `log_probs` float32 [N, K]; `log_rest` float32 [N]; `weight` float32 [N]; `is_retain` bool [N].
    """

    name: str
    make: Callable[[], Callable[[Any, dict[str, Tensor]], Loss]]
