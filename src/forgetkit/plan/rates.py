"""How fast this machine does a run's kinds of work: timed for some seconds with the run's own architecture.

A small model is timed as it is; of a large one copies with one and two layers are made, and what a layer costs and what
the rest costs follow from the two. Every kind of work is the real function, repeated after a warm-up; the median
counts. Timings that disagree are never averaged into a guess: `TooNoisy` is raised.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from forgetkit.core import lora, models
from forgetkit.core.batches import lm_loss, pad_blocks
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.loop import recomputing
from forgetkit.core.optim import MasterAdamW
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import forward_logits, generate
from forgetkit.methods.whp import WhpLoss
from forgetkit.plan.shape import with_layers
from forgetkit.relabel.build import Labeller, PreparedBlock, combined, plain_blocks, retain_settings
from forgetkit.relabel.consistency import Status
from forgetkit.settings import FinetuneSettings, Settings, TrainSettings

Clock = Callable[[], float]
NOISE_LIMIT = 0.25
"""Most that the middle half of repeated timings may span, as a share of their median. The plan promises its times
within 25%; measurements that differ by more among themselves cannot keep that."""
BUDGET = 0.3
"""Seconds of timing per kind of work; there are eight kinds."""
LONGEST = 1.0
"""Seconds that one repetition may take before it is given fewer rows than the run has."""
LEAST, MOST = 3, 9
"""Repetitions after the warm-up."""
WHOLE = 30_000_000
"""Parameters up to which a model is timed whole; a larger one by copies with one and two layers."""
SHORT = 64
"""Tokens of a block when a large model is timed on a CPU."""
UPDATED = 8_000_000
"""Parameters at most on which an update of the optimiser is timed."""
DECODED, DECODE_ROWS, DECODE_PROMPT = 16, 16, 32
"""Decoding is timed on so many new tokens, rows, and tokens of prompt. The prompt's own pass is in it: spread over 4
new tokens it adds half to a step, over 16 as little as over the 64 of evaluation."""
INNER_EVERY = 16


class TooNoisy(ForgetkitError):  # noqa: N818 - a condition, not a fault
    """Repeated timings disagree too much for a prediction."""


@dataclass(frozen=True)
class Rates:
    """Seconds of each kind of work with the whole model."""

    reinforce: float
    """Per token of a micro-batch: forward and backward pass of `lm_loss`."""
    finetune: float
    """Per token of a micro-batch: the same of the method's loss."""
    label: float
    """Per target token that gets a label from two models."""
    retain: float
    """Per retain token that gets a label from one."""
    score: float
    """Per token: forward pass, loss and entropy at every position."""
    forward: float
    """Per token: forward pass with all logits."""
    decode: float
    """Per step of decoding `DECODE_ROWS` continuations at once."""
    update: float
    """Per trained parameter: one step of the optimiser."""
    load: float
    """One loading of the model."""

    def deeper(self, two: Rates, layers: int) -> Rates:
        """The rates of a model with `layers` layers, self being one layer's and `two` two layers'."""

        def at(one: float, more: float) -> float:
            return one + max(0.0, more - one) * (layers - 1)

        names = ("reinforce", "finetune", "label", "retain", "score", "forward", "decode")
        return Rates(
            **{name: at(getattr(self, name), getattr(two, name)) for name in names},
            update=two.update,
            load=two.load,
        )


def repeat(work: Callable[[], object], budget: float = BUDGET, clock: Clock = time.perf_counter) -> list[float]:
    """Seconds of each of `LEAST` to `MOST` repetitions of `work`, about `budget` in all; the caller has warmed up."""
    seconds: list[float] = []
    while len(seconds) < LEAST or (sum(seconds) < budget and len(seconds) < MOST):
        began = clock()
        work()
        seconds.append(clock() - began)
    return seconds


def settle(seconds: Sequence[float], what: str) -> float:
    """The median.

    Raises:
        TooNoisy: the middle half spans more than `NOISE_LIMIT` of it.
    """
    low, median, high = np.percentile(seconds, [25, 50, 75])
    spread = float((high - low) / median)
    if not spread <= NOISE_LIMIT:
        raise TooNoisy(
            f"timings of {what} differ by {spread:.0%} among themselves (at most {NOISE_LIMIT:.0%} is believed)",
            where="calibration",
            remedy="something else is using the machine; try again when it is quiet",
        )
    return float(median)


def timed(work: Callable[[], object], what: str, clock: Clock = time.perf_counter) -> float:
    """Median seconds of `work`, which has been warmed up; timings that disagree get a second chance with more of them.

    Raises:
        TooNoisy: they still disagree.
    """
    seconds = repeat(work, clock=clock)
    try:
        return settle(seconds, what)
    except TooNoisy:
        more = repeat(work, 2 * BUDGET, clock) + repeat(work, 2 * BUDGET, clock)
        return settle([*seconds, *more], what)


class Bench:
    """The kinds of work, on one model and a sample of the target's blocks."""

    def __init__(self, net: Any, sample: BlockedCorpus, settings: Settings, pad_id: int, clock: Clock) -> None:
        self.net, self.sample, self.settings, self.pad_id, self.clock = net, sample, settings, pad_id, clock
        self.device = net.device
        self.vocabulary = int(net.get_output_embeddings().weight.shape[0])

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def per_token(self, work: Callable[[int], int], rows: int, what: str) -> float:
        """Median seconds per token of `work(rows)`, which returns how many tokens it did.

        Fewer rows than the run's are taken where its own would take longer than `LONGEST`: a call has costs whatever
        its size (the gradients of embeddings and head), so a row in a small batch is dearer than in the run's.
        """

        def run(count: int) -> int:
            tokens = work(count)
            self._sync()
            return tokens

        run(1)
        began = self.clock()
        run(1)
        affordable = math.ceil(LONGEST / max(self.clock() - began, 1e-6))
        rows = max(1, min(rows, len(self.sample), affordable))
        tokens = run(rows)
        return timed(lambda: run(rows), what, self.clock) / tokens

    def _blocks(self, rows: int) -> list[Any]:
        return [self.sample[i].ids for i in range(rows)]

    def _input(self, rows: int) -> tuple[Tensor, Tensor]:
        ids, valid = pad_blocks(self._blocks(rows), self.pad_id, self.sample.bos_id)
        return ids.to(self.device), valid.to(self.device)

    def training(self, settings: TrainSettings, kept: int) -> Callable[[int], int]:
        """Forward and backward pass of a micro-batch of so many blocks."""
        net = copy.deepcopy(self.net)
        if settings.adapter == "lora":
            net = lora.attach(net, settings.lora)
        loss = WhpLoss(1.0)

        def work(rows: int) -> int:
            net.train()
            ids, valid = self._input(rows)
            with recomputing(net, settings.gradient_checkpointing):
                if isinstance(settings, FinetuneSettings):
                    total = loss(net, self._labelled(ids, kept)).total
                else:
                    total = lm_loss(net, {"input_ids": ids, "valid": valid}).total
                torch.autograd.backward(total)
            net.zero_grad(set_to_none=True)
            net.eval()
            return int(valid.sum())

        return work

    def _labelled(self, ids: Tensor, kept: int) -> dict[str, Tensor]:
        """A batch as `finetune.LabelCollator` makes it, its labels uniform over `kept` entries."""
        rows, width = ids.shape
        at = torch.arange(rows * width, device=self.device).reshape(rows, width)[:, :-1].flatten()
        entries = torch.arange(kept, device=self.device).expand(len(at), kept).contiguous()
        rest = -float("inf") if kept == 1 else float(np.log(0.5))
        share = 0.0 if kept == 1 else float(np.log(0.5 / kept))
        return {
            "input_ids": ids,
            "rows": at,
            "ids": entries,
            "log_probs": torch.full((len(at), kept), share, device=self.device),
            "log_rest": torch.full((len(at),), rest, device=self.device),
            "weight": torch.ones(len(at), device=self.device),
            "is_retain": torch.zeros(len(at), dtype=torch.bool, device=self.device),
        }

    def labelling(self, *, retain: bool) -> Callable[[int], int]:
        """Labels of so many blocks; of target blocks some positions lie inside anchors."""
        settings = self.settings.relabel
        if retain:
            settings = retain_settings(settings)
        raised = self.net if self.settings.reinforce.epochs > 0 else None
        labeller = Labeller(
            self.net, raised, settings, pad_id=self.pad_id, bos_id=self.sample.bos_id, common=self.sample
        )
        inner = not retain and not settings.mask_inside_anchors

        def work(rows: int) -> int:
            plain = itertools.islice(plain_blocks(self.sample), rows)
            blocks = [combined([_with_inner(b) if inner else b] * settings.dictionaries) for b in plain]
            labeller.label(blocks)
            return sum(len(b.ids) for b in blocks)

        return work

    def forward(self, rows: int) -> int:
        """Forward pass with all logits."""
        ids, valid = self._input(rows)
        forward_logits(self.net, ids)
        return int(valid.sum())

    def score(self, rows: int) -> int:
        """Forward pass, loss and entropy, as `evaluate.losses` does them."""
        ids, valid = self._input(rows)
        for own in forward_logits(self.net, ids):
            log_p = torch.log_softmax(own.float(), -1)
            torch.special.entr(log_p.exp()).sum(-1).double().sum().item()
        return int(valid.sum())

    def decode(self) -> float:
        """Seconds of one step of decoding."""
        prompts = torch.from_numpy(np.resize(self.sample[0].ids, (DECODE_ROWS, DECODE_PROMPT)).astype(np.int64))
        window = getattr(self.net.config, "max_position_embeddings", None) or DECODE_PROMPT + DECODED
        new = max(1, min(DECODED, window - 1))
        prompts = prompts[:, : max(1, window - new)]
        generate(self.net, prompts, new)
        return timed(lambda: generate(self.net, prompts, new), "decoding", self.clock) / new

    def update(self) -> float:
        """Seconds of an optimiser step per trained parameter."""
        count = min(UPDATED, sum(p.numel() for p in self.net.parameters()))
        piece = torch.zeros(-(-count // 8), dtype=self.net.dtype, device=self.device)
        parameters = [torch.nn.Parameter(piece.clone()) for _ in range(8)]
        optimizer = MasterAdamW(parameters, 1e-6)

        def work() -> None:
            for parameter in parameters:
                torch.autograd.backward(parameter.sum())
            optimizer.normalise(1.0, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self._sync()

        work()
        # A few hundredths of a step: timings that disagree here cannot move the plan, and short as they are, they do.
        return float(np.median(repeat(work, clock=self.clock))) / (8 * len(piece))


def _with_inner(block: PreparedBlock) -> PreparedBlock:
    """The block with some positions inside anchors, which ask for a pass of the baseline over the original."""
    status, source = block.plan.status.copy(), block.plan.source.copy()
    some = np.arange(len(status)) % INNER_EVERY == 0
    some &= status == Status.LABEL
    status[some], source[some] = Status.INNER, -1
    return dataclasses.replace(block, plan=dataclasses.replace(block.plan, status=status, source=source))


def _rates(net: Any, sample: BlockedCorpus, settings: Settings, pad_id: int, load: float, clock: Clock) -> Rates:
    bench = Bench(net, sample, settings, pad_id, clock)
    kept = 1 if settings.relabel.labels == "hard" else min(settings.relabel.top_k, bench.vocabulary - 1)
    tune, relabel = settings.finetune, settings.relabel.batch_blocks
    forward = bench.per_token(bench.forward, relabel, "a forward pass")
    return Rates(
        forward=forward,
        score=bench.per_token(bench.score, relabel, "scoring"),
        label=bench.per_token(bench.labelling(retain=False), relabel, "labelling"),
        retain=bench.per_token(bench.labelling(retain=True), relabel, "labelling"),
        decode=bench.decode(),
        update=bench.update(),
        reinforce=bench.per_token(
            bench.training(settings.reinforce, kept), settings.reinforce.batch_blocks, "a training step"
        ),
        finetune=bench.per_token(
            bench.training(tune, kept), round(tune.batch_blocks * (1 + tune.retain_ratio)), "a fine-tuning step"
        ),
        load=load,
    )


def longest_blocks(corpus: BlockedCorpus, most: int, tokens: int) -> BlockedCorpus:
    """The corpus with its `most` longest blocks alone, cut to `tokens` tokens."""
    sizes = corpus.bounds[:, 2] - corpus.bounds[:, 1]
    bounds = corpus.bounds[np.argsort(-sizes, kind="stable")[:most]].copy()
    bounds[:, 2] = np.minimum(bounds[:, 2], bounds[:, 1] + tokens)
    return dataclasses.replace(corpus, bounds=bounds)


def calibrate(
    folder: Path,
    config: Any,
    parameters: int,
    target: BlockedCorpus,
    settings: Settings,
    pad_id: int,
    clock: Clock = time.perf_counter,
) -> Rates:
    """Time every kind of work on this machine; some two seconds for a small model, more where single steps take longer.

    `clock`: `time.process_time` leaves out what other programs take, on a CPU with one thread.

    Raises:
        TooNoisy: repeated timings disagree.
        ForgetkitError: the model cannot be loaded.
    """
    device, dtype = models.resolve_device(settings.model.device), models.as_dtype(settings.model.dtype)
    rows = max(settings.relabel.batch_blocks, *(2 * s.batch_blocks for s in (settings.reinforce, settings.finetune)))
    if parameters <= WHOLE:
        began = clock()
        net = models.load_model(folder, settings.model)
        load = clock() - began
        return _rates(net, longest_blocks(target, rows, settings.corpus.block_tokens), settings, pad_id, load, clock)
    tokens = SHORT if device.type == "cpu" else settings.corpus.block_tokens
    sample = longest_blocks(target, rows, tokens)
    both = []
    for layers in (1, 2):
        with device:
            net = AutoModelForCausalLM.from_config(
                with_layers(config, layers), dtype=dtype, attn_implementation="sdpa"
            ).eval()
        net.config.use_cache = False
        both.append(_rates(net, sample, settings, pad_id, 0.0, clock))
    return both[0].deeper(both[1], int(config.get_text_config().num_hidden_layers))
