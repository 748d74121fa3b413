"""The training loop: the Hugging Face Trainer behind one thin adapter, made to stop and continue exactly.

What the Trainer does not do by itself and is done here: gradients normalised by the true number of positions
of an accumulation window, a stop before a non-finite update, checkpoints that are believed only when every
byte has the hash its manifest states, and signals that end the run at a step boundary.

Several ranks (`core.distributed`) take the steps of one process: each computes a part of a step's blocks, then
gradients and counts are summed once per step, in fp32. There is no DistributedDataParallel wrapper: it averages where
a sum over unequal counts is needed, sums bf16 gradients in bf16, keeps a second copy of all gradients, and does
nothing at all when a loss calls parts of the model (`core.heads`) instead of the whole.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import logging as hf_logging

from forgetkit.core import distributed
from forgetkit.core.artifacts import hash_json
from forgetkit.core.checkpoints import Signals, commit_checkpoint, newest_checkpoint
from forgetkit.core.compact import CompactAdamW, check_available
from forgetkit.core.errors import ForgetkitError, Interrupted
from forgetkit.core.optim import MasterAdamW
from forgetkit.core.progress import Progress, progress
from forgetkit.core.sharded import ShardedAdamW, is_sharded
from forgetkit.settings import TrainSettings

T = TypeVar("T")
OPTIMIZERS: dict[str, type[MasterAdamW]] = {"adamw": MasterAdamW, "adamw_8bit": CompactAdamW}


class Loss(NamedTuple):
    """The loss of one micro-batch; a step differentiates the sum of totals / the sum of counts."""

    total: Tensor
    """Scalar: the loss summed over positions, in nats."""
    count: Tensor | float  # type: ignore[assignment]  # hides tuple.count, which no one needs here
    """Number, or summed weight, of those positions; may be 0."""
    logs: dict[str, float]
    """Further numbers for the log; averaged over the micro-batches of a step."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished training reports."""

    steps: int
    log: list[dict[str, float]]
    """A row per optimiser step: step, loss (nats per position), lr, grad_norm (unclipped), seconds, logs."""


@dataclass
class _Window:
    """Running sums over the micro-batches of one optimiser step."""

    total: float = 0.0
    count: float = 0.0
    logs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, loss: Loss) -> None:
        self.total += loss.total.detach().item()
        self.count += float(loss.count)
        for key, value in loss.logs.items():
            self.logs.setdefault(key, []).append(value)

    def sum_over_ranks(self) -> None:
        """Make this the window of all ranks, in rank order; the same on each."""
        windows = distributed.gather((self.total, self.count, self.logs))
        self.total, self.count = sum(w[0] for w in windows), sum(w[1] for w in windows)
        names = dict.fromkeys(name for w in windows for name in w[2])
        self.logs = {name: [value for w in windows for value in w[2].get(name, [])] for name in names}


def _non_finite(what: str, step: int) -> ForgetkitError:
    return ForgetkitError(
        f"non-finite {what} at step {step}",
        "training",
        "lower the learning rate; nothing of this step was applied",
    )


def _zero(model: PreTrainedModel) -> Tensor:
    some: Tensor = next(p for p in model.parameters() if p.requires_grad)
    return 0.0 * some.sum()


IDLE = "idle"
"""The only field of a batch without items, which a rank gets when a run's last step has too few for all."""


class _Adapter(Trainer):  # type: ignore[misc]
    """The Trainer with the caller's loss and, on several ranks, their own batches."""

    loss_function: Callable[[PreTrainedModel, dict[str, Tensor]], Loss]
    window: _Window
    batches: list[list[int]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This rank's micro-batches; accelerate's own split repeats items to fill the last batch."""
        if distributed.world() == 1:
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=lambda items: self.data_collator(items) if items else self._idle_batch(),
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's summed loss; `_Steps` divides the summed gradients by the summed count."""
        if IDLE in inputs:
            return self._idle_loss(model, inputs)
        loss = self.loss_function(model, inputs)
        self.window.add(loss)
        if loss.total.requires_grad:
            return loss.total
        # A micro-batch without any counted position: zero gradient instead of an error in backward.
        return loss.total + _zero(model)

    def _idle_batch(self) -> dict[str, Tensor]:
        return {IDLE: torch.zeros(1)}

    def _idle_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        return _zero(model)


def _own_folder(checkpoint: str) -> Path:
    """Where this rank keeps its shards in a checkpoint."""
    return Path(checkpoint) / f"rank-{distributed.rank()}"


class _ShardedAdapter(_Adapter):
    """The same over shards: idle ranks compute too, as the others wait for their weights, and each saves its own."""

    def _idle_batch(self) -> dict[str, Tensor]:
        return {**self.data_collator([self.train_dataset[0]]), **super()._idle_batch()}

    def _idle_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        return 0.0 * self.loss_function(model, {k: v for k, v in inputs.items() if k != IDLE}).total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights are the optimizer's masters, and saved with it."""
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        pass

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        own = _own_folder(output_dir)
        own.mkdir()
        torch.save(self.optimizer.state_dict(), own / OPTIMIZER_NAME)
        torch.save(self.lr_scheduler.state_dict(), own / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(None if checkpoint is None else str(_own_folder(checkpoint)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the Trainer's and its library's own messages; ours remain."""
    before, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def recomputing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, backward passes in training mode recompute the layers' activations; the bits stay the same.

    Raises ForgetkitError for a model that cannot do it.
    """
    if not wanted:
        yield
        return
    # transformers 5.2x changed the name, and warns of the old one
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    # It makes the embeddings' output require a gradient, by hooks of its own beside any there are.
    model.disable_input_require_grads()
    try:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        what = f"{model.config.model_type} models cannot recompute activations"
        raise ForgetkitError(what, "gradient_checkpointing", "set it to false") from error
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        model.disable_input_require_grads()


@contextlib.contextmanager
def _same_randomness() -> Iterator[None]:
    """Restore all random states afterwards: what happens inside must not change the training."""
    python, array, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@dataclass
class _Plan:
    """What the callback needs to know about the run."""

    settings: TrainSettings
    folder: Path
    identity: str
    snapshot_steps: frozenset[int]
    on_snapshot: Callable[[int, PreTrainedModel], None] | None


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Everything that happens at step boundaries."""

    def __init__(self, plan: _Plan, optimizer: MasterAdamW, window: _Window, signals: Signals, bar: Progress) -> None:
        self.plan, self.optimizer, self.window, self.signals, self.bar = plan, optimizer, window, signals, bar
        self.rows: list[dict[str, float]] = []
        self.stopped = 0
        self._norm = self._rate = 0.0
        self._time = time.monotonic()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take over the log of a checkpoint."""
        self.rows = list(state.log_history)
        self._time = time.monotonic()
        if state.global_step:
            self.bar.skip(state.global_step, note=f"continued from step {state.global_step}")

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin an accumulation window."""
        self.window.total = self.window.count = 0.0
        self.window.logs.clear()

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Turn summed gradients into the step's gradient; refuse a non-finite one, on all ranks alike."""
        self.window.sum_over_ranks()
        if not math.isfinite(self.window.total) or not math.isfinite(self.window.count):
            raise _non_finite("loss", state.global_step + 1)
        self.optimizer.sum_over_ranks()
        self._norm = self.optimizer.normalise(self.window.count, self.plan.settings.clip_norm)
        if not math.isfinite(self._norm):
            raise _non_finite("gradient", state.global_step + 1)
        self._rate = float(self.optimizer.param_groups[0]["lr"])

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, *, model: PreTrainedModel, **_: Any
    ) -> None:
        """After the update: log, snapshot, and ask for a checkpoint when one is due or a signal came."""
        now = time.monotonic()
        loss = self.window.total / self.window.count if self.window.count > 0 else 0.0
        row = {"step": state.global_step, "loss": loss, "lr": self._rate, "grad_norm": self._norm}
        row |= {"seconds": now - self._time} | {k: sum(v) / len(v) for k, v in self.window.logs.items()}
        self._time = now
        self.rows.append(row)
        state.log_history.append(row)
        self.bar.advance(1, note=f"loss {loss:.3f}")
        writes = distributed.is_main() or is_sharded(model)  # shards are gathered by all
        due = state.global_step in self.plan.snapshot_steps and writes
        if self.plan.on_snapshot is not None and due:
            with _same_randomness():
                self.plan.on_snapshot(state.global_step, model)
            self._time = time.monotonic()
        last = state.global_step >= state.max_steps
        control.should_save = state.global_step % self.plan.settings.checkpoint_steps == 0 and not last
        # A signal reaches ranks at different moments; all are to stop after the same step.
        self.stopped = max(distributed.gather(self.signals.number))
        if self.stopped:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After the Trainer wrote a checkpoint: rank 0 the weights and the optimizer, each rank its random state."""
        distributed.barrier()
        if distributed.is_main():
            commit_checkpoint(self.plan.folder / f"checkpoint-{state.global_step}", self.plan.identity)


class _Arguments(TrainingArguments):  # type: ignore[misc]
    @property
    def place_model_on_device(self) -> bool:
        """Never: it is there. On several ranks accelerate says cpu:0 for cpu; a move would leave the masters behind."""
        return False


def _arguments(settings: TrainSettings, folder: Path, device: torch.device, seed: int) -> TrainingArguments:
    size, accumulation = distributed.micro_batch(settings.batch_blocks, settings.accumulation, distributed.world())
    arguments = _Arguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,  # clipped by `_Steps`, after normalisation
        remove_unused_columns=False,
        bf16=False,
        fp16=False,
        save_strategy="no",  # `_Steps` asks for checkpoints
        logging_strategy="no",
        report_to="none",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        average_tokens_across_devices=False,
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
    )
    assert arguments.device.type == device.type, f"model on {device}, training on {arguments.device}"
    # Several GPUs in one process would mean DataParallel, which splits batches behind our back.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def run_identity(model: PreTrainedModel, settings: TrainSettings, samples: int, seed: int, identity: str) -> str:
    """What a checkpoint must have in common with a run to be continued by it, as one hash."""
    shapes = [[n, list(p.shape), str(p.dtype), p.requires_grad] for n, p in model.named_parameters()]
    kept = settings.model_dump(mode="json", exclude={"checkpoint_steps", "snapshots"})
    what = {"settings": kept, "samples": samples, "seed": seed, "caller": identity, "parameters": shapes}
    # Each rank has a random state and a part of the blocks of its own.
    return hash_json(what if distributed.world() == 1 else {**what, "ranks": distributed.world()})


def learning_rate(settings: TrainSettings, model: PreTrainedModel) -> float:
    """The rate that `settings` give, or the one that goes with the model's size (see `TrainSettings`)."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    size = sum(p.numel() for p in model.parameters())
    rate: float = settings.RATE_AT_10M * (1e7 / size) ** 0.7
    return rate * (3 if settings.adapter == "lora" else 1)


def train(
    model: PreTrainedModel,
    dataset: Sequence[T],
    collate: Callable[[list[T]], dict[str, Tensor]],
    loss: Callable[[PreTrainedModel, dict[str, Tensor]], Loss],
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int,
    label: str,
    snapshot_steps: Sequence[int] = (),
    on_snapshot: Callable[[int, PreTrainedModel], None] | None = None,
    identity: str = "",
) -> TrainResult:
    """Train `model` in place, one pass over `dataset` in its given order (epochs are unrolled by the caller).

    ceil(len(dataset) / (batch_blocks * accumulation)) optimiser steps; each differentiates the sum of totals
    over the sum of counts of its micro-batches. Parameters that require a gradient are trained through fp32
    masters; at the end they are fp32 and hold those masters, and the model is in eval mode.

    `folder` belongs to this run: a call with the same arguments continues at its newest verified checkpoint
    and, on a CPU with the same number of threads, ends with the same bits as an undisturbed run. `identity`
    (say, a fingerprint of model and data) guards against continuing another run's checkpoint.
    `on_snapshot(step, model)` runs after the update of the steps named, and again when such a step is
    repeated after a crash; the model is then in its compute dtype and its weights must be left as found.

    On several ranks every one calls this with the same arguments and a `folder` that all can reach, and ends with
    the same model; rank 0 writes the checkpoints and takes the snapshots. A sharded model (`core.sharded`) stays
    sharded: each rank writes a part of the checkpoints, and `on_snapshot` is called on all, as saving gathers.

    Raises ForgetkitError on a non-finite loss or gradient, before the update; Interrupted after SIGINT or
    SIGTERM, when a checkpoint has been written.
    """
    settings = settings.model_copy(update={"learning_rate": learning_rate(settings, model)})
    assert settings.learning_rate is not None
    check_available(settings.optimizer, str(model.device), "optimizer")
    steps = math.ceil(len(dataset) / (settings.batch_blocks * settings.accumulation))
    optimizer = (ShardedAdamW if is_sharded(model) else OPTIMIZERS[settings.optimizer])(
        [p for p in model.parameters() if p.requires_grad],
        settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    rows: list[dict[str, float]] = []
    if steps:
        rows = _run(
            model, dataset, collate, loss, optimizer, steps, seed, label,
            _Plan(
                settings,
                folder,
                run_identity(model, settings, len(dataset), seed, identity),
                frozenset(snapshot_steps),
                on_snapshot,
            ),
        )  # fmt: skip
    optimizer.release()
    model.eval()
    return TrainResult(steps, rows)


def _run(
    model: PreTrainedModel,
    dataset: Sequence[T],
    collate: Callable[[list[T]], dict[str, Tensor]],
    loss: Callable[[PreTrainedModel, dict[str, Tensor]], Loss],
    optimizer: MasterAdamW,
    steps: int,
    seed: int,
    label: str,
    plan: _Plan,
) -> list[dict[str, float]]:
    plan.folder.mkdir(parents=True, exist_ok=True)
    settings = plan.settings
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    with (
        _quiet(),
        recomputing(model, settings.gradient_checkpointing),
        Signals() as signals,
        progress(label, steps, "steps") as bar,
    ):
        window = _Window()
        callback = _Steps(plan, optimizer, window, signals, bar)
        trainer = (_ShardedAdapter if is_sharded(model) else _Adapter)(
            model=model,
            args=_arguments(settings, plan.folder, model.device, seed),
            data_collator=collate,
            train_dataset=dataset,
            optimizers=(
                optimizer,
                get_scheduler(
                    name, optimizer, num_warmup_steps=min(settings.warmup_steps, steps // 4), num_training_steps=steps
                ),
            ),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.loss_function, trainer.window = loss, window
        trainer.batches = distributed.batches(len(dataset), settings.batch_blocks, settings.accumulation)
        # The model stays where and as it is, without a wrapper (reasons: top of this file).
        trainer.accelerator.prepare_model = lambda model, **_: model
        # Either tells the Trainer (newer, older) not to divide the loss by the number of micro-batches.
        trainer.loss_is_scaled_for_ga, trainer.compute_loss_func = True, loss
        checkpoint = distributed.from_main(lambda: newest_checkpoint(plan.folder, plan.identity))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if callback.stopped:
        raise Interrupted(callback.stopped)
    assert trainer.state.global_step == steps, f"{trainer.state.global_step} steps of {steps}"
    return callback.rows
