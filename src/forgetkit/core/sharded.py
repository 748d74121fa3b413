"""Full training of a model that one device cannot train: weights, gradients and moments cut over the ranks.

torch's FSDP2 (`fully_shard`, after ZeRO stage 3, arXiv 1910.02054) gathers one layer's weights when it is computed and
sums each gradient straight into the shard that owns it. The shards are fp32 and are themselves the masters; weights
are gathered, and layers computed, in the model's own dtype. Per rank and parameter: 16 bytes / ranks, one layer, and
the embeddings and head.

Every rank must call the model, and `gathered`, equally often: whoever waits alone waits for ever.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from forgetkit.core import distributed
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.optim import MasterAdamW
from forgetkit.settings import TrainSettings


def check_shards(settings: TrainSettings, ranks: int, where: str) -> None:
    """Raises ForgetkitError when `settings` ask for shards that cannot be; `where` names their section."""
    if not settings.fsdp:
        return
    what = f"{where}.fsdp"
    if ranks == 1:
        raise ForgetkitError("one process has nobody to share the weights with", what, "see docs/scale.md, or false")
    if settings.adapter != "full":
        raise ForgetkitError("adapters are trained without shards", what, "set it to false, or adapter=full")
    if settings.optimizer != "adamw":
        raise ForgetkitError("shards are trained by adamw", what, f"set it to false, or {where}.optimizer=adamw")


def shard(model: Any, device: str) -> None:
    """Cut a model over all ranks, in place: fp32 shards on this rank's `device` ("cpu" or "cuda"), never all at once.

    Layer by layer: with the model in host memory, a GPU never holds more than its shards and one layer.

    Raises:
        ForgetkitError: the model's family does not say what its layers are.
    """
    mesh = init_device_mesh(device, (distributed.world(),))
    policy = MixedPrecisionPolicy(param_dtype=model.dtype, reduce_dtype=torch.float32)
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        what = f"{model.config.model_type} models do not name their layers, so they cannot be sharded"
        raise ForgetkitError(what, "fsdp", "set it to false")
    for module in [*layers, model]:
        module.float()
        fully_shard(module, mesh=mesh, mp_policy=policy)
        # Sums, as `core.loop` counts positions itself; a mean over ranks would weigh unequal micro-batches alike.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def is_sharded(model: Any) -> bool:
    """Whether `shard` has been here."""
    return isinstance(model, FSDPModule)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a weight, detached; of a sharded one, all ranks must ask for it at the same time."""
    weight = tensor.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


class ShardedAdamW(MasterAdamW):
    """`MasterAdamW` over the shards of this rank, whose state has their shapes: a plain tensor for every parameter."""

    def _weight(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to_local()  # type: ignore[attr-defined, no-any-return]

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        return None if parameter.grad is None else parameter.grad.to_local()  # type: ignore[attr-defined]

    def sum_over_ranks(self) -> None:
        """Nothing: each gradient was summed as it was made."""

    def _norm(self, gradients: list[Tensor]) -> float:
        square = super()._norm(gradients) ** 2
        return math.sqrt(sum(distributed.gather(square)))

    def release(self) -> None:
        """Forget the moments; the shards are the masters already."""
        self.zero_grad()
        self.state.clear()
