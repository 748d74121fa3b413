"""Bytes that every stage holds at its fullest, found by running its step on tensors that have shapes but no values.

Activations, logits and gradients come from the model's own code under torch's `FakeTensorMode`, so every family,
adapter and checkpointing is counted as it is; weights, masters and moments are counted from the parameters.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forgetkit.core.heads import cross_entropy, head_loss, parts
from forgetkit.core.loop import recomputing
from forgetkit.evaluate.forward import LOGITS_ELEMENTS
from forgetkit.methods.whp import label_divergence
from forgetkit.plan.shape import skeleton, with_layers
from forgetkit.relabel.combine import average, generic_logits, hard_labels, in_space, salience, shift, soft_labels
from forgetkit.settings import FinetuneSettings, RelabelSettings, TrainSettings

FP32 = 4
MASTER = {"adamw": {2: 12, 4: 8}, "adamw_8bit": {2: 4, 4: 2}}
"""Bytes per trained parameter beside its weight of 2 or 4 bytes: fp32 masters (an fp32 weight is its own; with
`adamw_8bit` the 16 bits that bf16 leaves out) and two moments (fp32, or 8 bits)."""
DEEP = 8
"""Layers up to which a training step is followed layer by layer. A pass without gradients holds one layer's states at a
time, whatever the depth: two layers are enough."""
SIGNAL_BLOCKS = 8
"""Blocks whose logits `anchors.signal` holds at one time."""


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operations make while it is active: alive now, and at most at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.most = 0
        self._sizes = dict[int, int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.alive += storage.nbytes()
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)


def _without_values(net: Any, mode: FakeTensorMode) -> Any:
    """Turn a model's meta tensors into ones that behave as a CPU's; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in net.modules():
        for store in (module._parameters, module._buffers):
            for name, value in store.items():
                if value is None:
                    continue
                if id(value) not in made:
                    fake = mode.fake_tensor_converter.from_meta_and_device(mode, value.detach(), torch.device("cpu"))
                    parameter = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(fake, value.requires_grad) if parameter else fake
                store[name] = made[id(value)]
    return net


def _peak(net: Any, work: Callable[[Any], None]) -> int:
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own calls of what it renamed
        net = _without_values(net, mode)
        with Peak() as peak:
            work(net)
    return int(peak.most)


def training_step(config: Any, dtype: torch.dtype, settings: TrainSettings, rows: int, tokens: int, kept: int) -> int:
    """Most bytes alive in one micro-batch's forward and backward pass beyond weights and optimiser.

    Models deeper than `DEEP` layers are followed up to there and extended linearly, as every layer is like the others.

    Args:
        rows, tokens: blocks in the micro-batch, and tokens of the longest.
        kept: entries of a soft label; 1 for hard labels. Of no meaning to reinforcement (`lm_loss`).
    """
    layers = int(config.get_text_config().num_hidden_layers)
    if layers <= DEEP:
        return _training_step(config, dtype, settings, rows, tokens, kept)
    half, whole = (
        _training_step(with_layers(config, n), dtype, settings, rows, tokens, kept) for n in (DEEP // 2, DEEP)
    )
    return whole + (whole - half) * (layers - DEEP) // (DEEP - DEEP // 2)


def _training_step(config: Any, dtype: torch.dtype, settings: TrainSettings, rows: int, tokens: int, kept: int) -> int:
    net = skeleton(config, dtype, settings)
    net.train()

    def loss(net: Any) -> Tensor:
        _free_gradients(net)
        trunk, head = parts(net)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
        chosen = torch.zeros(rows * (tokens - 1), dtype=torch.long)
        rows_loss = cross_entropy(chosen)
        if isinstance(settings, FinetuneSettings) and kept > 1:
            values = torch.zeros(len(chosen), kept)
            rows_loss = label_divergence(values.long(), values, values[:, 0], 1.0)
        return head_loss(head, hidden.flatten(0, 1)[chosen], rows_loss)[0]

    # What the forward pass no longer needs is gone before the backward pass begins, as in a run.
    with recomputing(net, settings.gradient_checkpointing):
        return _peak(net, lambda net: torch.autograd.backward(loss(net)))


def _free_gradients(net: Any) -> None:
    """As in `core.optim`, which adds low-precision gradients to its fp32 sums and frees each at once."""

    def free(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in net.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.register_post_accumulate_grad_hook(free)


def label_batch(config: Any, dtype: torch.dtype, settings: RelabelSettings, rows: int, tokens: int) -> int:
    """Most bytes alive while a batch of blocks is labelled, beyond the two models' weights."""

    def work(net: Any) -> None:
        trunk, head = parts(net)
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        states = [trunk(input_ids=ids, use_cache=False).last_hidden_state for _ in range(2 + settings.dictionaries)]
        chosen = torch.zeros(min(settings.chunk_positions, rows * tokens), dtype=torch.long)

        def values(states_BTH: Tensor) -> Tensor:
            return in_space(head(states_BTH.flatten(0, 1)[chosen]), settings.space)

        def generic(states_BTH: Tensor) -> tuple[Tensor, Tensor | None]:
            base = values(states_BTH)
            v = generic_logits(base, raised, alpha=settings.alpha).div_(settings.temperature)
            if moved is not None:
                v.add_(moved)
            return v, None if settings.labels == "hard" else salience(base, raised, settings.space)

        raised = values(states[0]) if settings.uses_reinforced else None
        own = values(states[1]) if raised is not None and settings.contrast > 0 else None
        moved = shift(own, raised, settings.contrast, None, 0.0)
        v, salient = average(generic(states_BTH) for states_BTH in states[2:])
        if settings.labels == "hard":
            hard_labels(v)
        else:
            soft_labels(v, settings.top_k, salient)

    with torch.no_grad():
        return _peak(skeleton(with_layers(config, 2), dtype), work)


def forward_pass(config: Any, dtype: torch.dtype, rows: int, tokens: int) -> int:
    """Most bytes alive in a forward pass whose logits are all kept and looked through, beyond the weights."""

    def work(net: Any) -> None:
        logits = net(input_ids=torch.zeros(rows, tokens, dtype=torch.long), use_cache=False).logits
        torch.isfinite(logits)  # as `evaluate.extraction` asks of all of them at once

    with torch.no_grad():
        return _peak(skeleton(with_layers(config, 2), dtype), work)


@dataclass(frozen=True)
class Need:
    """Bytes of one stage on the device, by what they are for; not all stages have all of them."""

    weights: int = 0
    optimizer: int = 0
    """Masters and moments."""
    gradients: int = 0
    """fp32 sums of the gradients of low-precision weights."""
    step: int = 0
    """Activations, logits and one micro-batch's gradients."""
    least: int = 0
    """What the stage needs at another moment, if that is more: merging adapters, writing weights."""

    @property
    def held(self) -> int:
        """Bytes that stay from one step to the next."""
        return self.weights + self.optimizer + self.gradients

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return max(self.held + self.step, self.least)


def training(
    dtype: torch.dtype,
    settings: TrainSettings,
    *,
    all_parameters: int,
    trained: int,
    step: int,
    saves_here: bool = True,
    ranks: int = 1,
    gathered: int = 0,
) -> Need:
    """A training stage; `step` is its `training_step`.

    `saves_here`: weights to be saved are copied within the same memory (a CPU's), not to another.
    `ranks` and `gathered`: with `fsdp`, what shares the weights, and those that are whole on each rank at one time.
    """
    width = dtype.itemsize
    if settings.fsdp:
        mine = FP32 * -(-all_parameters // ranks)
        need = Need(weights=mine, optimizer=2 * mine, gradients=mine, step=step + gathered * (width + FP32))
        return replace(need, least=need.held + saves_here * width * all_parameters)
    own = FP32 if settings.adapter == "lora" else width  # adapters are fp32 whatever the model is
    frozen = all_parameters if settings.adapter == "lora" else 0
    sums = FP32 * trained if own != FP32 else 0
    optimizer = MASTER[settings.optimizer][own] * trained
    # With one micro-batch a step the sums are made when the activations are gone.
    collected = sums if settings.accumulation > 1 else 0
    weights = frozen * width + trained * own
    need = Need(weights=weights, optimizer=optimizer, gradients=collected, step=step)
    least = weights + optimizer + sums + (0 if own == FP32 else width * trained // 2)
    if settings.adapter == "lora":
        # Snapshots and result are merged in an fp32 copy on the CPU, while the adapted model stays.
        least = max(least, weights + optimizer + all_parameters * (FP32 + width) * saves_here)
    else:
        least = max(least, all_parameters * (FP32 + width * saves_here))
    return replace(need, least=least)


def labelling(
    config: Any, dtype: torch.dtype, settings: RelabelSettings, tokens: int, parameters: int, copies: int
) -> Need:
    """Stage 4: so many copies of the weights, and one batch."""
    step = label_batch(config, dtype, settings, settings.batch_blocks, tokens)
    return Need(weights=copies * parameters * dtype.itemsize, step=step)


def signal(config: Any, dtype: torch.dtype, tokens: int, parameters: int, vocabulary: int, copies: int) -> Need:
    """Stage 3: so many copies of the weights, and one batch's logits with the copy that drops their last position."""
    step = forward_pass(config, dtype, SIGNAL_BLOCKS, tokens)
    copy = SIGNAL_BLOCKS * tokens * vocabulary * dtype.itemsize
    return Need(weights=copies * parameters * dtype.itemsize, step=step + copy)


def evaluation(config: Any, dtype: torch.dtype, tokens: int, parameters: int, vocabulary: int, models: int) -> Need:
    """Stage 6: logits up to a fixed budget, two models and their logits while a reference is compared."""
    rows = max(1, min(32, LOGITS_ELEMENTS // (tokens * vocabulary)))
    step = forward_pass(config, dtype, rows, tokens) + 4 * FP32 * tokens * vocabulary
    another = rows * tokens * vocabulary * dtype.itemsize if models > 1 else 0
    return Need(weights=models * parameters * dtype.itemsize, step=step + another)
