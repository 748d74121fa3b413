"""Hidden states and language-model head apart, so that full-vocabulary logits exist only where they are needed.

A loss over logits [N, V] is the largest thing in training: as bf16, as fp32, as log-probabilities and as gradients of
these. Here the gradient is written over the logits as soon as a few rows are known, and the head's two backward
products follow at once, so that of all this one [CHUNK, V] in the model's own dtype is alive (the idea of cut
cross-entropy, arXiv 2411.09009, and of Liger's fused linear loss, arXiv 2410.10989, in plain torch).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetkit.core.sharded import is_sharded

RowsLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""fp32 logits [C, V] of the rows that the slice names -> (their losses [C], the gradient of each by its logits [C, V]).
It may write over what it is given."""

CHUNK = 2048
"""Rows whose logits exist at one time, in the model's dtype."""
AT_ONCE = {"cpu": 2**19, "cuda": 2**25}
"""Logits that exist in fp32 at one time: on a CPU what stays in a core's cache, on a GPU what keeps it busy."""


def parts(model: Any) -> tuple[Any, Any]:
    """(everything below the head, the head) of a causal LM, with adapters or without; None for what it has not."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(inner, inner.base_model_prefix, None), inner.get_output_embeddings()


class SplitHead:
    """A causal LM as `hidden` (everything below the head) and `logits` (the head on chosen rows).

    Some families scale or cap their logits after the head. Whether `head(hidden)` really equals the model's own
    logits is checked on a probe, once for every model; where it does not, `hidden` returns the logits and `logits`
    passes them on: slower and larger, never wrong.
    """

    _checked: ClassVar[weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()

    def __init__(self, model: Any) -> None:
        self.model = model
        self._trunk, self._head = parts(model)
        if is_sharded(model):  # only a call of the whole model gathers weights
            self.split = False
            return
        if model not in self._checked:
            self._checked[model] = self._trunk is not None and self._head is not None and self._agrees()
        self.split = self._checked[model]

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

    def loss(self, hidden_NH: Tensor, rows_loss: RowsLoss, weight_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weighted sum of a loss over the logits of chosen rows of `hidden`; no [N, V] is kept for the backward pass.

        Args:
            hidden_NH: rows of `hidden`.
            rows_loss: the loss and its gradient.
            weight_N: float32 weight of each row; None: 1.

        Returns:
            (the sum, an fp32 scalar, differentiable once; the losses of the rows, float32 [N], which are not).
        """
        if self.split and type(self._head) is torch.nn.Linear:
            return head_loss(self._head, hidden_NH, rows_loss, weight_N)
        return head_loss(None, self.logits(hidden_NH), rows_loss, weight_N)


def head_loss(
    head: torch.nn.Linear | None, hidden_NH: Tensor, rows_loss: RowsLoss, weight_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`SplitHead.loss` for a head that stands alone; without one, `hidden_NH` are the logits."""
    if weight_N is None:
        weight_N = torch.ones(len(hidden_NH), device=hidden_NH.device)
    weight_VH, bias_V = (None, None) if head is None else (head.weight, head.bias)
    return _HeadLoss.apply(hidden_NH, weight_VH, bias_V, weight_N, rows_loss)  # type: ignore[no-untyped-call, no-any-return]


def cross_entropy(targets_N: Tensor) -> RowsLoss:
    """`-log softmax(logits)[target]` in nats; long [N]."""

    def loss(z_CV: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        targets_C1 = targets_N[rows, None]
        log_q_CV = torch.log_softmax(z_CV, dim=-1)
        loss_C = -log_q_CV.gather(-1, targets_C1).squeeze(-1)
        return loss_C, log_q_CV.exp_().scatter_add_(-1, targets_C1, -torch.ones_like(loss_C)[:, None])

    return loss


class _HeadLoss(torch.autograd.Function):
    """Loss of rows through the head (weight [V, H], bias [V]), or of logits where `weight_VH` is None."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor | None,
        bias_V: Tensor | None,
        scale_N: Tensor,
        rows_loss: RowsLoss,
    ) -> tuple[Tensor, Tensor]:
        """(Weighted sum, losses [N]); the gradients are made here, `backward` only scales them."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        loss_N = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
        grad_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        # fp32 sums: several chunks of bf16 would round away small contributions.
        grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if weight_VH is not None and wants_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and wants_bias else None
        for rows in _slices(len(hidden_NH), CHUNK):
            hidden_CH = hidden_NH[rows]
            logits_CV = hidden_CH.clone() if weight_VH is None else F.linear(hidden_CH, weight_VH, bias_V)
            vocabulary = logits_CV.shape[-1]
            few = max(1, AT_ONCE.get(logits_CV.device.type, AT_ONCE["cuda"]) // vocabulary)
            for part in _slices(len(logits_CV), few):
                at = slice(rows.start + part.start, rows.start + part.stop)
                loss_N[at], grad_PV = rows_loss(logits_CV[part].float(), at)
                logits_CV[part] = grad_PV.mul_(scale_N[at, None])
            if grad_V is not None:
                grad_V += logits_CV.sum(0, dtype=torch.float32)
            if weight_VH is None:
                if grad_NH is not None:
                    grad_NH[rows] = logits_CV
                continue
            if grad_NH is not None:
                torch.mm(logits_CV, weight_VH, out=grad_NH[rows])
            if grad_VH is not None:
                grad_VH += logits_CV.t() @ hidden_CH
        ctx.save_for_backward(
            grad_NH,
            None if grad_VH is None or weight_VH is None else grad_VH.to(weight_VH.dtype),
            None if grad_V is None or bias_V is None else grad_V.to(bias_V.dtype),
        )
        ctx.mark_non_differentiable(loss_N)
        return (loss_N * scale_N).sum(), loss_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by hidden states, head weight and bias."""
        scale = grad_outputs[0]
        return (*(None if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors), None, None)


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(low, min(low + size, n)) for low in range(0, n, size))
