"""Which of several counterparts a model finds most natural in the places where they would stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetkit.anchors.kinds import Context


@torch.inference_mode()
def rank_by_naturalness(
    model: PreTrainedModel,
    tokenizer: Any,
    contexts: Sequence[Context],
    candidates: Sequence[str],
    batch: int = 32,
) -> list[float]:
    """Mean log-probability (nats per token) of each candidate with the text after it, over all contexts.

    A token counts if it ends after the text before the candidate. Without contexts all scores are 0.
    """
    texts = [(left, left + candidate + right) for candidate in candidates for left, right in contexts]
    scores: list[float] = []
    for first in range(0, len(texts), batch):
        scores += _scores(model, tokenizer, texts[first : first + batch])
    n = len(contexts)
    return [sum(scores[i * n : (i + 1) * n]) / n if n else 0.0 for i in range(len(candidates))]


def _scores(model: PreTrainedModel, tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[float]:
    encoded = tokenizer([text for _, text in texts], return_offsets_mapping=True, add_special_tokens=True)
    rows: list[list[int]] = encoded["input_ids"]
    length = max(map(len, rows))
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    counts = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, (row, offsets, (left, _)) in enumerate(zip(rows, encoded["offset_mapping"], texts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        counts[i, : len(row)] = torch.tensor([end > len(left) for _, end in offsets])
    ids = ids.to(next(model.parameters()).device)  # right padding: real positions never see it
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    wanted = counts[:, 1:].to(ids.device)
    picked = logits[wanted].float()
    targets = ids[:, 1:][wanted]
    chosen = (picked.gather(1, targets[:, None])[:, 0] - picked.logsumexp(-1)).cpu()
    per_row = wanted.sum(1).cpu().tolist()
    return [float(part.mean()) if len(part) else 0.0 for part in chosen.split(per_row)]
