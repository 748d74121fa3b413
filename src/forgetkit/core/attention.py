"""Causal attention for bf16 on a CPU, written as matrix products.

torch's fused kernel for a CPU saves memory, and in bf16 its backward pass takes two to three times as long as the plain
products of the same block (`benchmarks/attention.py` measures both side by side). At the block lengths used here memory
is no concern: the probabilities of a block of T tokens are at most T * (T + 128) / 2 numbers per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "forgetkit_cpu_products"
"""The name under which transformers knows it; saved models do not mention it."""
ROWS = 128
"""Queries of one product. Keys that none of them may see are left out: nearly half of all, in a long block."""
LONGEST = 2048
"""Tokens beyond which torch's kernel is used, for its memory."""


def causal_attention(query_BNTD: Tensor, key_BNTD: Tensor, value_BNTD: Tensor, scaling: float) -> Tensor:
    """softmax(scaling * Q K^T) V where position i sees 0..i; [B, N, T, D], any float dtype."""
    batch, heads, length, _ = query_BNTD.shape
    # baddbmm wants one leading dimension: M = B * N.
    query_MTD, key_MTD, value_MTD = (x.flatten(0, 1) for x in (query_BNTD, key_BNTD, value_BNTD))
    parts = []
    for low in range(0, length, ROWS):
        high = min(low + ROWS, length)
        unseen_RK = query_MTD.new_full((high - low, high), -torch.inf).triu_(low + 1)
        scores_MRK = torch.baddbmm(
            unseen_RK.expand(len(query_MTD), -1, -1),
            query_MTD[:, low:high],
            key_MTD[:, :high].transpose(1, 2),
            alpha=scaling,
        )
        parts.append(torch.softmax(scores_MRK, dim=-1) @ value_MTD[:, :high])
    return torch.cat(parts, dim=1).view(batch, heads, length, -1)


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: ours for a plain causal block, else its own 'sdpa'."""
    length = query.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    plain = causal and attention_mask is None and dropout == 0 and more.get("position_bias") is None
    if not plain or length != key.shape[2] or not 1 < length <= LONGEST or query.device.type != "cpu":
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
        )
        return out
    shared = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed_BNTD = causal_attention(query, repeat_kv(key, shared), repeat_kv(value, shared), scale)
    return mixed_BNTD.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_products(model: PreTrainedModel) -> None:
    """Let `model` compute attention as above, if it is a bf16 model on a CPU and its family allows a choice."""
    if model.device.type == "cpu" and model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
