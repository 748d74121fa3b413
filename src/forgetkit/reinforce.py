"""Component 1 of arXiv 2310.02238: the reinforced model, a baseline that reads the target once more.

Plain language-modelling loss on the target's blocks (paper: 3 epochs, rate 3e-6, 8 x 16 blocks of 512).
What it learnt too well, `v_reinforced - v_baseline`, marks the tokens that belong to the target.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from forgetkit.core import distributed, lora
from forgetkit.core.batches import epoch_order, lm_loss, pad_blocks
from forgetkit.core.loop import train
from forgetkit.core.models import load_model, save_model, source_dtype
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.settings import ModelSettings, ReinforceSettings


class BlockCollator:
    """Indices of blocks to the batch that `lm_loss` takes: `input_ids` long [B, T], `valid` bool [B, T]."""

    def __init__(self, corpus: BlockedCorpus, pad_id: int) -> None:
        self.corpus, self.pad_id = corpus, pad_id

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these blocks, with the corpus' beginning-of-text token in front, if it has one."""
        blocks = [self.corpus[index].ids for index in indices]
        input_ids, valid = pad_blocks(blocks, self.pad_id, self.corpus.bos_id)
        return {"input_ids": input_ids, "valid": valid}


def run(
    model_source: str | Path,
    target: BlockedCorpus,
    settings: ReinforceSettings,
    model_settings: ModelSettings,
    out: Path,
    *,
    work: Path,
    seed: int,
    pad_id: int = 0,
    identity: str = "",
) -> dict[str, Any]:
    """Train a copy of `model_source` on `target`; write `out/model/` (source's dtype), `out/log.jsonl`.

    With LoRA also `out/adapter/`, which the next stages put beside the one copy of the weights they hold.

    `work` keeps the checkpoints: the same call continues there. `pad_id` is any id of the vocabulary: padding
    is on the right and carries no loss. `identity`: what guards the checkpoints, see `core.loop.train`.
    Returns steps, blocks and tokens read (epochs counted), loss_first, loss_last (nats per token), seconds.
    On several ranks rank 0 writes. With 0 epochs nothing is written and {'steps': 0} returned.
    Raises ForgetkitError on a non-finite loss; Interrupted after a signal.
    """
    order = [int(index) for index in epoch_order(len(target), settings.epochs, seed)]
    if not order:
        return {"steps": 0}
    model: Any = load_model(model_source, model_settings, fsdp=settings.fsdp)
    if settings.adapter == "lora":
        model = lora.attach(model, settings.lora, seed=seed)
    result = train(
        model,
        order,
        BlockCollator(target, pad_id),
        lm_loss,
        settings,
        work / "checkpoints",
        seed=seed,
        label="reinforce",
        identity=identity,
    )
    if settings.adapter == "lora" and distributed.is_main():
        out.mkdir(parents=True, exist_ok=True)
        lora.save(model, out / "adapter")
        model = lora.merge(model)
    save_model(model, model_source, out / "model", source_dtype(model_source, model_settings))
    if distributed.is_main():
        with (out / "log.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in result.log)
    return {
        "steps": result.steps,
        "blocks": len(order),
        "tokens": target.n_tokens * settings.epochs,
        "loss_first": result.log[0]["loss"],
        "loss_last": result.log[-1]["loss"],
        "seconds": sum(row["seconds"] for row in result.log),
    }
