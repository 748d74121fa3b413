"""AdamW in 10 bytes per bf16 parameter where `core.optim` takes 18, with the same exact fp32 masters.

    bytes per parameter                          adamw    adamw_8bit
    weight, bf16                                     2             2
    fp32 master                                      4             2   the 16 bits that the weight lacks
    two moments                                      8             2   8 bits each, and a scale per 256 of them
    fp32 sum of a step's gradients                   4             4
                                                    18         10.03
    6.74e9 parameters (Llama-2-7B), GiB            113            63   activations and one layer's gradient come on top

The moments are rounded by bitsandbytes, block by block (Dettmers et al. 2022, arXiv 2110.02861); the weights are not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.optim import MasterAdamW

QUANTISED_FROM = 4096
"""Parameters with fewer elements keep fp32 moments, as in bitsandbytes: norms and biases cost nothing either way."""
BLOCK = 256
"""Moments that share a scale; fixed in the library's kernels."""
SLICE = 2**24
"""Elements of a parameter whose fp32 master exists at one time: 64 MiB of it."""


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 weight, and the int16 that `join` turns into the fp32 `master` again; both of its shape.

    Ties round away from zero, not to even: 65,537 fp32 values round to a bf16 number with an even last bit if ties go
    to even, one more than 16 bits can tell apart. Away from zero there are 65,536 for every one. It matters at one
    master in 65,536, and there both neighbours are equally near. A master beyond the largest bf16 number has the
    weight infinity, as everywhere, and still comes back exactly.
    """
    bits = master.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    low = bits - (upper << 16)
    return upper.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join(weight: Tensor, low: Tensor) -> Tensor:
    """The fp32 master that was `split`."""
    bits = (weight.view(torch.int16).to(torch.int32) << 16).add_(low)
    return bits.view(torch.float32)


@cache
def _library() -> Any:
    """`bitsandbytes.functional`."""
    return importlib.import_module("bitsandbytes.functional")


@cache
def _maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the 256 codes of a moment mean, with a sign (first moment) and without (second); fp32 [256] each."""
    make = _library().create_dynamic_map
    return make(signed=True).to(device), make(signed=False).to(device)


def check_available(optimizer: str, device: str, where: str) -> None:
    """Raises ForgetkitError when the optimizer of this name cannot be used here; `where` names the setting."""
    if optimizer != "adamw_8bit":
        return
    if not device.startswith(("cpu", "cuda")):
        raise ForgetkitError(f"adamw_8bit does not run on {device}", where, "use adamw")
    try:
        _library()
    except ImportError as error:
        remedy = "pip install 'forgetkit[8bit]', or use adamw"
        raise ForgetkitError("adamw_8bit needs bitsandbytes, which cannot be imported", where, remedy) from error


class CompactAdamW(MasterAdamW):
    """`MasterAdamW` with split masters and 8-bit moments.

    State of a bf16 parameter: `low` (int16, of its shape) makes its master together with the weight itself; a
    parameter of any other dtype has `master` as before. From `QUANTISED_FROM` elements on, `exp_avg` and `exp_avg_sq`
    are uint8 codes [n] with `exp_avg_scale` and `exp_avg_sq_scale` fp32 [ceil(n / BLOCK)]. `step`: fp32 scalar.

    A state is loaded beside the weights it was saved with, as checkpoints are: `low` alone makes no master.
    """

    def _start(self, weight: Tensor) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), dtype=torch.float32)}
        if weight.dtype == torch.bfloat16:
            state["low"] = torch.zeros_like(weight, dtype=torch.int16)
        else:
            state["master"] = weight.to(torch.float32)
        n = weight.numel()
        for moment in ("exp_avg", "exp_avg_sq"):
            if n < QUANTISED_FROM:
                state[moment] = torch.zeros_like(weight, dtype=torch.float32)
            else:
                state[moment] = torch.zeros(n, dtype=torch.uint8, device=weight.device)
                state[f"{moment}_scale"] = torch.zeros(-(-n // BLOCK), dtype=torch.float32, device=weight.device)
        if n < QUANTISED_FROM:  # the fused AdamW counts where it computes, the 8-bit kernel on the host
            state["step"] = state["step"].to(weight.device)
        return state

    def master(self, parameter: Tensor) -> Tensor:
        """The fp32 weight that is trained, of the parameter's shape; made anew for a bf16 parameter."""
        state = self.state[parameter]
        found: Tensor = state["master"] if "master" in state else join(parameter.detach(), state["low"])
        return found

    def _publish(self, parameters: Iterable[Tensor]) -> None:
        """Split masters are published as they are split."""
        super()._publish(p for p in parameters if "master" in self.state[p])

    def _update(self, group: dict[str, Any], used: list[Tensor]) -> None:
        for parameter in used:
            gradient = self._gradient(parameter)
            assert gradient is not None
            state = self.state[parameter]
            if "low" in state:
                weight, low, gradient = (t.view(-1) for t in (parameter.detach(), state["low"], gradient))
                for first in range(0, len(weight), SLICE):
                    rows = slice(first, first + SLICE)
                    master = join(weight[rows], low[rows])
                    self._adam(group, master, gradient[rows], state, first)
                    weight[rows], low[rows] = split(master)
            else:
                self._adam(group, state["master"].view(-1), gradient.view(-1), state, 0)
                self._publish([parameter])

    def _adam(
        self, group: dict[str, Any], master: Tensor, gradient: Tensor, state: dict[str, Tensor], first: int
    ) -> None:
        """AdamW on the flat piece of a parameter that begins at element `first`, in place."""
        if "exp_avg_scale" not in state:  # one piece, being smaller than any
            moments = {name: state[name].view(-1) for name in ("exp_avg", "exp_avg_sq")}
            self._adamw(group, [master], [gradient], [{**moments, "step": state["step"]}])
            return
        if first == 0:
            state["step"] += 1
        rows = slice(first, first + len(master))
        scales = slice(first // BLOCK, -(-rows.stop // BLOCK))
        signed, unsigned = _maps(master.device)
        beta1, beta2 = group["betas"]
        # The library's 'adam' decays weights as AdamW does: decoupled, before the update.
        _library().optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            master,
            state["exp_avg"][rows],
            state["exp_avg_sq"][rows],
            beta1,
            beta2,
            0.0,  # of other optimisers
            0.0,
            group["eps"],
            int(state["step"]),
            group["lr"],
            signed,
            unsigned,
            state["exp_avg_scale"][scales],
            state["exp_avg_sq_scale"][scales],
            group["weight_decay"],
        )
