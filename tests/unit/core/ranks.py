"""What two ranks do together, as a script that the tests start with torchrun and that leaves ranks-N.json behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from forgetkit.core import distributed
from forgetkit.core.batches import lm_loss, pad_blocks
from forgetkit.core.errors import ForgetkitError, Interrupted
from forgetkit.core.loop import Loss, train
from forgetkit.core.lora import attach
from forgetkit.core.optim import MasterAdamW
from forgetkit.core.sharded import ShardedAdamW, gathered, shard
from forgetkit.settings import LoraSettings, TrainSettings
from tests import toys

BLOCKS = [np.random.default_rng(i).integers(1, 400, 6 + i % 5).astype(np.int32) for i in range(29)]
SETTINGS = TrainSettings(learning_rate=1e-3, warmup_steps=2, batch_blocks=2, accumulation=2, checkpoint_steps=2)
"""8 steps over BLOCKS; the last one has a single block, so that one of two ranks has nothing to do."""


def collate(blocks: list[np.ndarray]) -> dict[str, torch.Tensor]:
    ids, valid = pad_blocks(blocks, 0)
    return {"input_ids": ids, "valid": valid}


def model(kind: str) -> Any:
    net = toys.model("llama").to(torch.bfloat16 if kind.startswith("bfloat16") else torch.float32)
    if kind.endswith("sharded"):
        shard(net, "cpu")
    return attach(net, LoraSettings(rank=4), seed=1) if kind == "lora" else net


def trajectory(
    folder: Path, kind: str, loss: Any = lm_loss, settings: TrainSettings = SETTINGS, **more: Any
) -> dict[str, Any]:
    net = model(kind)
    told = train(net, BLOCKS, collate, loss, settings, folder, seed=3, label="test", **more)
    trained = [gathered(p).double() for p in net.parameters() if p.requires_grad]
    return {
        "loss": [row["loss"] for row in told.log],
        "norm": [row["grad_norm"] for row in told.log],
        "weights": [p.flatten()[:5].tolist() for p in trained],
        "sum": sum(float(p.abs().sum()) for p in trained),
    }


def broken_on_one_rank(net: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Loss:
    loss = lm_loss(net, batch)
    return loss._replace(total=loss.total * float("nan")) if distributed.rank() == 1 else loss


def uneven_gradients() -> list[list[float]]:
    """Sums of gradients that rank 0, rank 1, or neither has, of an fp32 and of a bf16 parameter."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        parameters = [torch.nn.Parameter(torch.ones(2, dtype=dtype)) for _ in range(3)]
        optimizer = MasterAdamW(parameters, lr=1.0)
        (parameters[0] * (1.0 + distributed.rank())).sum().backward()
        if distributed.rank() == 1:
            (parameters[1] * 5.0).sum().backward()
        optimizer.sum_over_ranks()
        optimizer.step()
        found.append(
            [float("nan") if (g := optimizer.state[p]["exp_avg"])[0] == 0 else float(g[0]) for p in parameters]
        )
    return found


def held() -> dict[str, int]:
    """Elements of weights and of moments that this rank holds of a sharded model."""
    net = model("float32-sharded")
    optimizer = ShardedAdamW(net.parameters())
    moments = [entry[name].numel() for entry in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {"weights": sum(p.to_local().numel() for p in net.parameters()), "moments": sum(moments)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    distributed.join(2, "cpu", "the same")
    me = distributed.rank()
    told["gather"] = distributed.gather(me * 10)
    told["broadcast"] = distributed.broadcast(f"from {me}")
    told["share"] = list(distributed.share(5))
    told["uneven"] = uneven_gradients()
    for kind in ("float32", "bfloat16", "lora", "float32-sharded", "bfloat16-sharded"):
        told[kind] = trajectory(folder / kind, kind)
    told["held"] = held()
    try:
        trajectory(folder / "broken", "float32", broken_on_one_rank)
    except ForgetkitError as error:
        told["broken"] = str(error)

    def stop(step: int, _: Any) -> None:  # on rank 0 alone, as snapshots are unless they must be gathered
        if distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        trajectory(folder / "stopped", "float32", snapshot_steps=[3], on_snapshot=stop)
    except Interrupted as error:
        told["stopped"] = error.number
    told["continued"] = trajectory(folder / "stopped", "float32")
    try:
        trajectory(folder / "sharded", "float32-sharded", snapshot_steps=[3], on_snapshot=stop)
    except Interrupted as error:
        told["sharded"] = {
            "stopped": error.number,
            "files": sorted(str(p.relative_to(folder / "sharded")) for p in folder.glob("sharded/*-3/**/*.*")),
        }
    told["sharded"]["continued"] = trajectory(folder / "sharded", "float32-sharded")
    again = SETTINGS.model_copy(update={"gradient_checkpointing": True})
    told["recomputed"] = trajectory(folder / "recomputed", "bfloat16-sharded", settings=again)
    told["checkpoints"] = sorted(p.name for p in (folder / "stopped").iterdir())
    distributed.barrier()
    if me == 1:
        told["tells"] = distributed.tells()
        (folder / "ranks-1.json").write_text(json.dumps(told))
        os._exit(0)  # as a rank that met an error of its own, but without a failure that torchrun would act on
    try:
        distributed.barrier()
    except distributed.Lost as error:
        told["lost"], told["tells"] = str(error), distributed.tells()
    (folder / "ranks-0.json").write_text(json.dumps(told))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
