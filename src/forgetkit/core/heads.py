"""Hidden states and language-model head apart, so that full-vocabulary logits exist only where they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SplitHead:
    """A causal LM as `hidden` (everything below the head) and `logits` (the head on chosen rows).

    Some families scale or cap their logits after the head. Whether `head(hidden)` really equals the model's own
    logits is checked once on a probe; where it does not, `hidden` returns the logits and `logits` passes them on:
    slower and larger, never wrong.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._trunk: Any = getattr(inner, inner.base_model_prefix, None)
        self._head: Any = inner.get_output_embeddings()
        self.split = self._trunk is not None and self._head is not None and self._agrees()

    @torch.no_grad()
    def _agrees(self) -> bool:
        rows = self.model.get_input_embeddings().weight.shape[0]
        device = self.model.get_input_embeddings().weight.device
        probe_BT = torch.arange(min(8, rows), device=device)[None]
        training = self.model.training
        self.model.eval()
        own_BTV = self.model(input_ids=probe_BT, use_cache=False).logits
        split_BTV = self._head(self._trunk(input_ids=probe_BT, use_cache=False).last_hidden_state)
        self.model.train(training)
        return bool(torch.allclose(own_BTV.float(), split_BTV.float(), rtol=1e-3, atol=1e-3))

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, H] (or logits [B, T, V] where the head cannot be split off)."""
        if self.split:
            assert self._trunk is not None
            states: Tensor = self._trunk(input_ids=input_ids_BT, use_cache=False).last_hidden_state
            return states
        logits: Tensor = self.model(input_ids=input_ids_BT, use_cache=False).logits
        return logits

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V] of chosen rows of `hidden`, in the model's own dtype."""
        return self._head(hidden_NH) if self.split else hidden_NH
