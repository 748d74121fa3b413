"""What a person sees of the labels: original token beside its alternative, for a few passages."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.relabel.consistency import Role, Status
from forgetkit.relabel.shards import LabelShards

REASONS = {
    Status.NO_NEXT: "end of block",
    Status.SEEN_ANCHOR: "anchor already seen",
    Status.INSIDE_ANCHOR: "inside an anchor",
    Status.UNMAPPED: "no aligned position",
}
PASSAGES, TOKENS = 6, 120


def preview_rows(corpus: BlockedCorpus, labels: LabelShards, block: int, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows of one block, one per token after the first: `token`, `label`, `probability`, `mask`, `anchor`.

    Token j stands beside the label of position j - 1, which predicts it.
    """
    ids, entry = corpus[block].ids, labels[block]
    rows = []
    for j in range(1, min(len(ids), TOKENS)):
        status = Status(int(entry.status[j - 1]))
        labelled = status <= Status.INNER
        rows.append(
            {
                "token": tokenizer.decode([int(ids[j])]),
                "label": tokenizer.decode([int(entry.ids[j - 1, 0])]) if labelled else None,
                "probability": round(float(np.exp(np.float32(entry.log_probs[j - 1, 0]))), 4) if labelled else None,
                "mask": None if labelled else REASONS[status],
                "anchor": int(entry.role[j - 1]) != Role.OTHER,
            }
        )
    return rows


def write_preview(path: Path, corpus: BlockedCorpus, labels: LabelShards, tokenizer: Any) -> None:
    """Write evenly spread passages, those with most labelled anchors of their neighbourhood, as JSON."""
    edges = np.linspace(0, len(labels), PASSAGES + 1).astype(int)
    passages = []
    for low, high in pairwise(edges.tolist()):
        if low == high:
            continue
        block = max(range(low, min(high, low + 64)), key=lambda b: _anchors_labelled(labels, b))
        passages.append(
            {
                "document": corpus.documents[corpus[block].document].name,
                "block": block,
                "rows": preview_rows(corpus, labels, block, tokenizer),
            }
        )
    path.write_text(json.dumps(passages, ensure_ascii=False, allow_nan=False, indent=1))


def _anchors_labelled(labels: LabelShards, block: int) -> int:
    entry = labels[block]
    return int(((entry.role != Role.OTHER) & (entry.status <= Status.INNER))[:TOKENS].sum())
