"""AdamW whose weights live in fp32, whatever dtype the model computes in (trap P1 of the algorithm notes).

AdamW moves a weight by about the learning rate. At a rate of 1e-6 that is less than half a unit in the last
place of most bf16 weights, so an update of the bf16 weight itself is rounded away. Here the update is made on
an fp32 master, and the model's weight is the master, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adamw import adamw

from forgetkit.core import distributed
from forgetkit.core.errors import ForgetkitError

_STATE = ("master", "exp_avg", "exp_avg_sq", "step")


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) over fp32 masters of parameters of any floating dtype.

    State per parameter: `master`, `exp_avg`, `exp_avg_sq` (fp32, of its shape), `step` (fp32 scalar).
    An fp32 parameter is its own master: `master` then shares its storage.

    Gradients of other parameters can be summed in fp32 over several backward passes with `collect`.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._sums: dict[Tensor, Tensor] = {}
        for parameter in self._parameters():
            data = parameter.detach()
            master = data if data.dtype == torch.float32 else data.to(torch.float32)
            self.state[parameter] = {
                "master": master,
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
                "step": torch.zeros((), dtype=torch.float32, device=master.device),
            }

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        return parameter.grad if parameter.dtype == torch.float32 else self._sums.get(parameter)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of low-precision parameters to their fp32 sums and clear them.

        Called after every backward pass of an accumulation window; a bf16 sum would lose small contributions.
        """
        for parameter in self._parameters():
            if parameter.grad is None or parameter.dtype == torch.float32:
                continue
            if parameter in self._sums:
                self._sums[parameter].add_(parameter.grad)
            else:
                self._sums[parameter] = parameter.grad.to(torch.float32)
            parameter.grad = None

    @torch.no_grad()
    def sum_over_ranks(self) -> None:
        """Replace every gradient by its sum over all ranks, in fp32; the same bits on each rank.

        A parameter that got a gradient on some ranks only (an expert nobody here was sent to) counts as zero on the
        others; one that got none anywhere stays without.
        """
        self.collect()
        if distributed.world() == 1:
            return
        parameters = list(self._parameters())
        had = distributed.gather([self._gradient(p) is not None for p in parameters])
        gradients = []
        for parameter, anywhere in zip(parameters, map(any, zip(*had, strict=True)), strict=True):
            if not anywhere:
                continue
            gradient = self._gradient(parameter)
            if gradient is None:
                gradient = torch.zeros_like(parameter, dtype=torch.float32)
                if parameter.dtype == torch.float32:
                    parameter.grad = gradient
                else:
                    self._sums[parameter] = gradient
            gradients.append(gradient)
        distributed.sum_in_place(gradients)

    @torch.no_grad()
    def normalise(self, divisor: float, max_norm: float) -> float:
        """Divide the gradients by `divisor` (0 gives zero gradients), then clip their norm to `max_norm`.

        Returns the norm after division, before clipping; if that is not finite, nothing is changed.
        """
        self.collect()
        gradients = [g for p in self._parameters() if (g := self._gradient(p)) is not None]
        if not gradients:
            return 0.0
        inverse = 1.0 / divisor if divisor > 0 else 0.0
        raw = get_total_norm(gradients).item()
        norm = raw * inverse if raw < float("inf") else raw
        if not norm < float("inf"):
            return norm
        torch._foreach_mul_(gradients, inverse * min(1.0, max_norm / (norm + 1e-6)))
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is not supported."""
        assert closure is None, "MasterAdamW takes no closure"
        self.collect()
        for group in self.param_groups:
            used = [p for p in group["params"] if self._gradient(p) is not None]
            if not used:
                continue
            states = [self.state[p] for p in used]
            for p, s in zip(used, states, strict=True):
                # A model moved after this optimizer was made would be trained in name only.
                moved = p.device != s["master"].device or (
                    p.dtype == torch.float32 and p.data_ptr() != s["master"].data_ptr()
                )
                assert not moved, "the model was moved while it was trained"
            beta1, beta2 = group["betas"]
            fused = all(p.device.type in ("cpu", "cuda", "mps") for p in used)
            adamw(
                [s["master"] for s in states],
                [g for p in used if (g := self._gradient(p)) is not None],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [],
                [s["step"] for s in states],
                foreach=not fused,
                fused=fused,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            self._publish(used)
        self._sums.clear()

    def _publish(self, parameters: Iterable[Tensor]) -> None:
        """Round the masters into the model's weights."""
        for parameter in parameters:
            if parameter.dtype != torch.float32:
                parameter.copy_(self.state[parameter]["master"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, the fp32 sums included."""
        self._sums.clear()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore masters, moments and options exactly, and the weights from the masters.

        The inherited method would cast the state to each parameter's dtype: masters would lose 16 bits.
        Raises ForgetkitError when the state is not one of these very parameters.
        """
        problem = ForgetkitError("optimizer state does not fit the model", remedy="remove this checkpoint")
        groups = state_dict["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise problem
        for own, saved in zip(self.param_groups, groups, strict=True):
            for parameter, key in zip(own["params"], saved["params"], strict=True):
                entry = state_dict["state"].get(key, {})
                state = self.state[parameter]
                for name in _STATE:
                    value = entry.get(name)
                    if value is None or value.dtype != torch.float32 or value.shape != state[name].shape:
                        raise problem
                    state[name].copy_(value)
            own.update({k: v for k, v in saved.items() if k != "params"})
            self._publish(own["params"])
        self._sums.clear()

    @torch.no_grad()
    def release(self) -> None:
        """Make every parameter its fp32 master (`param.data = master`); the optimizer is used up."""
        self.zero_grad()
        for parameter in self._parameters():
            parameter.data = self.state[parameter]["master"]
        self.state.clear()
