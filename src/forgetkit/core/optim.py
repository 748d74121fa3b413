"""AdamW whose weights live in fp32, whatever dtype the model computes in (trap P1 of the algorithm notes).

AdamW moves a weight by about the learning rate. At a rate of 1e-6 that is less than half a unit in the last
place of most bf16 weights, so an update of the bf16 weight itself is rounded away. Here the update is made on
an fp32 master, and the model's weight is the master, rounded. `core.compact` does the same in less memory.
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


class MasterAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) over fp32 masters of parameters of any floating dtype.

    State per parameter: `master`, `exp_avg`, `exp_avg_sq` (fp32, of its shape), `step` (fp32 scalar).
    An fp32 parameter is its own master: `master` then shares its storage.

    Gradients of other parameters are summed in fp32 over the backward passes of a step, each as soon as it is made and
    then freed: a bf16 sum would lose small contributions, and no two of these gradients need be alive at once.
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
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._collect)  # type: ignore[no-untyped-call]
            for parameter in self._parameters()
            if parameter.dtype != torch.float32
        ]
        for parameter in self._parameters():
            self.state[parameter] = self._start(self._weight(parameter))

    def _weight(self, parameter: Tensor) -> Tensor:
        """The weight of a parameter that this process trains."""
        return parameter.detach()

    def _start(self, weight: Tensor) -> dict[str, Tensor]:
        """The state before the first step."""
        master = weight.to(torch.float32)
        return {
            "master": master,
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
        }

    def master(self, parameter: Tensor) -> Tensor:
        """The fp32 weight that is trained, of the parameter's shape."""
        found: Tensor = self.state[parameter]["master"]
        return found

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.param_groups:
            yield from group["params"]

    def _gradient(self, parameter: Tensor) -> Tensor | None:
        return parameter.grad if parameter.dtype == torch.float32 else self._sums.get(parameter)

    @torch.no_grad()
    def _collect(self, parameter: Tensor) -> None:
        """Add a gradient just made to the parameter's fp32 sum, and free it."""
        assert parameter.grad is not None
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
        gradients = [g for p in self._parameters() if (g := self._gradient(p)) is not None]
        if not gradients:
            return 0.0
        inverse = 1.0 / divisor if divisor > 0 else 0.0
        raw = self._norm(gradients)
        norm = raw * inverse if raw < float("inf") else raw
        if not norm < float("inf"):
            return norm
        torch._foreach_mul_(gradients, inverse * min(1.0, max_norm / (norm + 1e-6)))
        return norm

    def _norm(self, gradients: list[Tensor]) -> float:
        """The norm of all gradients together."""
        return float(get_total_norm(gradients))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is not supported."""
        assert closure is None, "MasterAdamW takes no closure"
        for group in self.param_groups:
            used = [p for p in group["params"] if self._gradient(p) is not None]
            for parameter in used:
                self._check_place(parameter)
            if used:
                self._update(group, used)
        self._sums.clear()

    def _check_place(self, parameter: Tensor) -> None:
        """A model moved after this optimizer was made would be trained in name only."""
        state = self.state[parameter]
        held = state["master"] if "master" in state else state["low"]
        weight = self._weight(parameter)
        moved = weight.device != held.device
        if weight.dtype == torch.float32:
            moved = moved or weight.data_ptr() != held.data_ptr()
        assert not moved, "the model was moved while it was trained"

    def _update(self, group: dict[str, Any], used: list[Tensor]) -> None:
        """One update of the masters, and of the weights from them."""
        gradients = [g for p in used if (g := self._gradient(p)) is not None]
        self._adamw(group, [self.state[p]["master"] for p in used], gradients, [self.state[p] for p in used])
        self._publish(used)

    @staticmethod
    def _adamw(
        group: dict[str, Any], masters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]]
    ) -> None:
        """Torch's own AdamW on fp32 masters and moments, in place; fused where torch has it."""
        beta1, beta2 = group["betas"]
        fused = all(master.device.type in ("cpu", "cuda", "mps") for master in masters)
        adamw(
            masters,
            gradients,
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
                for name, own_value in state.items():
                    value = entry.get(name)
                    if value is None or (value.dtype, value.shape) != (own_value.dtype, own_value.shape):
                        raise problem
                    own_value.copy_(value)
            own.update({k: v for k, v in saved.items() if k != "params"})
            self._publish(own["params"])
        self._sums.clear()

    @torch.no_grad()
    def release(self) -> None:
        """Make every parameter its fp32 master (`param.data = master`); the optimizer is used up."""
        self.zero_grad()
        for hook in self._hooks:
            hook.remove()
        for parameter in self._parameters():
            parameter.data = self.master(parameter)
            # At once, so that the fp32 weights of a large model grow while its moments go.
            del self.state[parameter]
