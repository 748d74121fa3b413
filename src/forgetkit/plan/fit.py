"""What fits into this machine: memory needed by stage, memory there is, and what to set where the two disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from forgetkit.core import models
from forgetkit.core.errors import ForgetkitError
from forgetkit.plan import memory
from forgetkit.plan.memory import Need
from forgetkit.plan.shape import Shape, micro_rows, read_config, trained_parameters
from forgetkit.settings import RelabelSettings, Settings, TrainSettings

USABLE = 0.9
"""Share of the free memory that a plan counts on; allocators and other programs take the rest."""
LAZY = 350e6
"""Bytes of code, kernels and caches that come into a CPU process while a run goes on, beside those there at its start:
what is there when evaluation ends, no tensor being alive (measured; a stage at the beginning has less)."""
HEAP = 1.3
"""What a CPU's heap takes for what one step allocates and frees, as a multiple of it: freed pieces below 32 MiB stay in
it, and not all are used again. Measured; with every piece given back at once it is 1.0."""
SECTIONS = {"2-reinforced": "reinforce", "5-unlearned": "finetune"}
TRAINING = ("2-reinforced", "5-unlearned")
SHARED = (*TRAINING, "4-labels")
"""Stages that the ranks of a run divide among them; of them a run refuses beforehand what cannot fit."""


@dataclass(frozen=True)
class Machine:
    """Memory of the device, in bytes."""

    device: torch.device
    total: int
    free: int
    """What this process may have in all: what nobody uses, and what it uses itself."""
    program: int
    """What this process takes before any model is loaded (on a CPU: Python and its libraries)."""

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """This machine's; a container's limit counts as its total."""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return cls(device, total, free + torch.cuda.memory_reserved(device), 0)
        import psutil  # type: ignore[import-untyped]

        state, own = psutil.virtual_memory(), psutil.Process().memory_info().rss
        total, free = int(state.total), int(state.available) + own
        limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
        if limit is not None:
            total, free = min(total, limit), min(free, limit - (used or 0) + own)
        return cls(device, total, free, own + int(LAZY))

    def bytes_for(self, need: Need) -> int:
        """Bytes of the whole process (on a GPU: of the device) at the fullest moment of a stage with this need."""
        heap = HEAP if self.device.type == "cpu" else 1.0
        return self.program + max(need.held + round(heap * need.step), need.least)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


class Case:
    """One model under one set of settings: what each stage needs."""

    def __init__(self, config: Any, settings: Settings, tokens: int, *, with_retain: bool) -> None:
        self.config, self.settings = config, settings
        self.tokens, self.with_retain = tokens, with_retain
        self.dtype = models.as_dtype(settings.model.dtype)
        self._steps = dict[str, int]()
        self._needs = dict[str, Need]()
        self._trained = dict[str, int]()

    @cached_property
    def shape(self) -> Shape:
        """The model's."""
        return Shape.of(self.config, self.dtype)

    def trained(self, settings: TrainSettings) -> int:
        """Parameters that a training changes."""
        if settings.adapter == "full":
            return self.shape.parameters
        key = settings.lora.model_dump_json()
        if key not in self._trained:
            self._trained[key] = trained_parameters(self.config, settings)
        return self._trained[key]

    def training(self, settings: TrainSettings) -> Need:
        """What a training needs under these settings, which may differ from the case's own."""
        return memory.training(
            self.dtype,
            settings,
            all_parameters=self.shape.parameters,
            trained=self.trained(settings),
            step=self._step(settings),
            ranks=self.settings.world_size,
            # Embeddings and head, the layer that is computed and the one that is fetched meanwhile.
            gathered=self.shape.parameters - self.shape.matmul + 2 * self.shape.matmul // self.shape.layers,
            saves_here=models.resolve_device(self.settings.model.device).type != "cuda",
        )

    def _step(self, settings: TrainSettings) -> int:
        """`memory.training_step` of these settings; kept, as ways to train share it."""
        rows = micro_rows(settings, with_retain=self.with_retain)
        relabel = self.settings.relabel
        kept = 1 if relabel.labels == "hard" else min(relabel.top_k, self.shape.vocabulary - 1)
        fields = {"adapter", "lora", "gradient_checkpointing"}
        key = f"{type(settings).__name__} {rows} {settings.model_dump_json(include=fields)}"
        if key not in self._steps:
            self._steps[key] = memory.training_step(self.config, self.dtype, settings, rows, self.tokens, kept)
        return self._steps[key]

    def copies(self, reinforced: bool) -> int:
        """Copies of the weights that a stage holds for baseline and, if it is used, reinforced model."""
        settings = self.settings.reinforce
        return 2 if reinforced and settings.epochs and settings.adapter == "full" else 1

    def labelling(self, settings: RelabelSettings) -> Need:
        """What labelling needs under these settings."""
        copies = self.copies(settings.uses_reinforced)
        return memory.labelling(self.config, self.dtype, settings, self.tokens, self.shape.parameters, copies)

    def need(self, stage: str) -> Need:
        """`Need` of a stage, found once."""
        if stage not in self._needs:
            self._needs[stage] = self._need(stage)
        return self._needs[stage]

    def _need(self, stage: str) -> Need:
        """What a stage needs on the device, the program itself left out."""
        settings, parameters, vocabulary = self.settings, self.shape.parameters, self.shape.vocabulary
        if stage in TRAINING:
            chosen: TrainSettings = getattr(settings, SECTIONS[stage])
            return self.training(chosen) if chosen.epochs else Need()
        if stage == "3-anchors" and settings.anchors.dictionary is None:
            copies = self.copies(settings.anchors.model_signal)
            return memory.signal(self.config, self.dtype, self.tokens, parameters, vocabulary, copies)
        if stage == "4-labels":
            return self.labelling(settings.relabel)
        if stage == "6-evaluation":
            several = 2 if settings.evaluate.reference else 1
            return memory.evaluation(self.config, self.dtype, self.tokens, parameters, vocabulary, several)
        return Need()

    def remedy(self, stage: str, machine: Machine, room: int) -> tuple[str, ...] | None:
        """The `section.key=value` settings with which a stage takes at most `room` bytes; None: there are none.

        Trainings try smaller micro-batches at the same effective batch first, then gradient checkpointing, then shards
        if there are several ranks, then 8-bit moments, then LoRA: what changes the result least comes first.
        """

        def fits(need: Need) -> bool:
            return machine.bytes_for(need) <= room

        if stage in TRAINING:
            section = SECTIONS[stage]
            asked: TrainSettings = getattr(self.settings, section)
            for changes in _ways(asked, self.settings.world_size):
                if not fits(self.training(_changed(asked, changes | _batch(asked, 1)))):
                    continue
                for size in _halves(asked.batch_blocks):
                    every = changes | _batch(asked, size)
                    if size == 1 or fits(self.training(_changed(asked, every))):
                        differing = {k: v for k, v in every.items() if v != getattr(asked, k)}
                        return tuple(f"{section}.{key}={_text(value)}" for key, value in differing.items())
            return None
        if stage == "4-labels":
            for size in _halves(self.settings.relabel.batch_blocks):
                smaller = self.settings.relabel.model_copy(update={"batch_blocks": size})
                if fits(self.labelling(smaller)):
                    return (f"relabel.batch_blocks={size}",)
        return None


def _changed(settings: TrainSettings, changes: dict[str, Any]) -> TrainSettings:
    return settings.model_copy(update=changes)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batch(settings: TrainSettings, size: int) -> dict[str, Any]:
    """A micro-batch of `size` blocks and as many of them as keep the effective batch (rounded up)."""
    return {"batch_blocks": size, "accumulation": -(-settings.batch_blocks * settings.accumulation // size)}


def _halves(size: int) -> Iterator[int]:
    while size > 1:
        yield size
        size //= 2
    yield 1


def _ways(asked: TrainSettings, ranks: int) -> list[dict[str, Any]]:
    """Changes to `asked`, from none to the most frugal."""
    saving: dict[str, Any] = {"gradient_checkpointing": True}
    ways: list[dict[str, Any]] = [{}, saving]
    if asked.adapter != "full":
        return ways
    if ranks > 1:
        ways.append(saving | {"optimizer": "adamw", "fsdp": True})
    whole: dict[str, Any] = {"fsdp": False}
    lora = whole | {"adapter": "lora"}
    return [*ways, whole | saving | {"optimizer": "adamw_8bit"}, lora, lora | saving]


def gigabytes(count: float) -> str:
    """Bytes for people, in units of 10^9."""
    return f"{count / 1e9:.1f} GB"


def flags(remedy: tuple[str, ...]) -> str:
    """Settings as they are typed."""
    return " ".join(f"--set {one}" for one in remedy)


def shortage(case: Case, stage: str, machine: Machine, limit: int) -> ForgetkitError | None:
    """The line that tells that a stage needs more than `limit` bytes, and what fits instead; None where it does not."""
    need = machine.bytes_for(case.need(stage))
    if need <= limit:
        return None
    remedy = case.remedy(stage, machine, int(limit * USABLE))
    where = "memory" if machine.device.type == "cpu" else f"memory of {machine.device}"
    return ForgetkitError(
        f"needs about {gigabytes(need)} of {where}, there are {gigabytes(limit)}",
        where=stage,
        remedy=f"what fits: {flags(remedy)}" if remedy else "nothing that can be set makes it fit; use a smaller model",
    )


def refuse_impossible(stage: str, folder: Path, settings: Settings, tokens: int, *, with_retain: bool) -> None:
    """Refuse a stage that needs more memory than the device has at all; a near miss is let pass.

    Args:
        tokens: of the longest block, a beginning-of-text token included.

    Raises:
        ForgetkitError: it certainly cannot fit; with the settings that do.
    """
    machine = Machine.here(models.resolve_device(settings.model.device))
    problem = shortage(
        Case(read_config(folder), settings, tokens, with_retain=with_retain), stage, machine, machine.total
    )
    if problem is not None:
        raise problem
