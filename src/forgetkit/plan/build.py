"""The plan of a run as data: every stage's FLOPs, memory and time, what fits, and what is recommended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from forgetkit.core import models
from forgetkit.plan.fit import SECTIONS, SHARED, USABLE, Case, Machine, shortage
from forgetkit.plan.rates import Clock, Rates, TooNoisy, calibrate
from forgetkit.plan.shape import micro_rows, read_config
from forgetkit.plan.work import Plan, Texts, find_terms
from forgetkit.settings import Settings

WITH_MODELS = ("2-reinforced", "3-anchors", "4-labels", "5-unlearned", "6-evaluation")

_FULL: dict[str, Any] = {"adapter": "full", "optimizer": "adamw", "gradient_checkpointing": False, "fsdp": False}
WAYS: dict[str, dict[str, Any]] = {
    "full": _FULL,
    "full, gradient checkpointing": _FULL | {"gradient_checkpointing": True},
    "full, 8-bit moments": _FULL | {"optimizer": "adamw_8bit"},
    "full, both": _FULL | {"gradient_checkpointing": True, "optimizer": "adamw_8bit"},
    "LoRA": _FULL | {"adapter": "lora"},
}
"""Ways to fine-tune that the plan compares."""
_SHARDED = {"full, sharded": _FULL | {"fsdp": True}}
"""The one more that there is on several ranks."""


def make_plan(
    folder: Path, texts: Texts, settings: Settings, pad_id: int, threads: int, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Everything that can be told of a run of the model in `folder` on these texts; plain values, ready for JSON.

    Where calibration is too noisy all seconds are None, and `time_withheld` says why; the rest does not depend on it.

    Raises:
        ForgetkitError: a device that is not there, a model that cannot be loaded.
    """
    machine = Machine.here(models.resolve_device(settings.model.device))
    tokens = int((texts.target.bounds[:, 2] - texts.target.bounds[:, 1]).max()) + (texts.target.bos_id is not None)
    with_retain = texts.retain is not None and settings.relabel.retain != "none"
    case = Case(read_config(folder), settings, tokens, with_retain=with_retain)
    rates, withheld = _rates(folder, case, texts, settings, pad_id, clock)
    stored = models.source_dtype(folder)
    plan = Plan(case.shape, texts, find_terms(texts, settings), settings, stored, case.trained)
    work = plan.stages()
    room = int(machine.free * USABLE)
    problems = {s: p for s in WITH_MODELS if (p := shortage(case, s, machine, room)) is not None}
    rows: list[dict[str, Any]] = []
    for name, one in work.items():
        need = case.need(name) if name in WITH_MODELS else None
        rows.append(
            {
                "stage": name,
                "tokens": one.tokens,
                "steps": one.steps,
                "flops": one.flops,
                "memory_bytes": machine.program if need is None else machine.bytes_for(need),
                "memory_parts": {} if need is None else {k: v for k, v in vars(need).items() if v},
                "written_bytes": round(one.written),
                "fits": name not in problems,
                "seconds": None
                if rates is None
                else one.seconds(rates) / (settings.world_size if name in SHARED else 1),
            }
        )
    return {
        "documents": len(texts.target.documents),
        "tokens": texts.target.n_tokens,
        "blocks": len(texts.target),
        "retain_blocks": plan.retain_blocks,
        "parameters": case.shape.parameters,
        "trained": {section: case.trained(getattr(settings, section)) for section in SECTIONS.values()},
        "device": str(machine.device),
        "dtype": settings.model.dtype,
        "threads": threads,
        "memory_total": machine.total,
        "memory_free": machine.free,
        "stages": rows,
        "flops": sum(one.flops for one in work.values()),
        "memory_bytes": max(row["memory_bytes"] for row in rows),
        "written_bytes": sum(row["written_bytes"] for row in rows),
        "seconds": None if rates is None else sum(row["seconds"] for row in rows),
        "time_withheld": withheld,
        "not_counted": _not_counted(settings),
        "ways_to_finetune": _ways(case, plan, machine, rates, room),
        "problems": [str(problem) for problem in problems.values()],
        "recommended": _recommended(case, machine, tuple(problems), room),
        "micro_batch_blocks": micro_rows(settings.finetune, with_retain=with_retain),
    }


def _rates(
    folder: Path, case: Case, texts: Texts, settings: Settings, pad_id: int, clock: Clock
) -> tuple[Rates | None, str | None]:
    try:
        return calibrate(folder, case.config, case.shape.parameters, texts.target, settings, pad_id, clock), None
    except TooNoisy as error:
        return None, str(error)


def _ways(case: Case, plan: Plan, machine: Machine, rates: Rates | None, room: int) -> list[dict[str, Any]]:
    """The fine-tune in every way that could be chosen; only the run's own way was timed, the others go by FLOPs."""
    rows = []
    for name, changes in (WAYS | (_SHARDED if case.settings.world_size > 1 else {})).items():
        chosen = case.settings.finetune.model_copy(update=changes)
        work, need = plan.unlearned(chosen), case.training(chosen)
        rows.append(
            {
                "way": name,
                "trained": case.trained(chosen),
                "flops": work.flops,
                "memory_bytes": machine.bytes_for(need),
                "fits": machine.bytes_for(need) <= room,
                "seconds": None if rates is None else work.seconds(rates),
            }
        )
    return rows


def _recommended(case: Case, machine: Machine, problems: tuple[str, ...], room: int) -> list[str] | None:
    """Settings that make every stage fit, [] where all do as they are; None where nothing that can be set helps."""
    found: list[str] = []
    for stage in problems:
        remedy = case.remedy(stage, machine, room)
        if remedy is None:
            return None
        found += remedy
    return found


def _not_counted(settings: Settings) -> list[str]:
    """What the time leaves out, as nobody can know it beforehand."""
    left = []
    if settings.evaluate.suite != "default":
        left.append(f"the measures that suite {settings.evaluate.suite} adds")
    if settings.anchors.llm.base_url or settings.evaluate.judge == "llm":
        left.append("waiting for the language model's endpoint")
    return left
