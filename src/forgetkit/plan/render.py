"""The plan as text for a terminal."""

from __future__ import annotations

from typing import Any

from forgetkit.plan.fit import flags, gigabytes


def duration(seconds: float | None) -> str:
    """Seconds for people; 'not told' where they are withheld."""
    if seconds is None:
        return "not told"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def amount(count: float) -> str:
    """A large number for people: 1.23e15 as '1.2 P'."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count / 1e6:.3g} M"


def render(plan: dict[str, Any]) -> str:
    """The plan of `build.make_plan` as lines: texts, machine, stages, ways to fine-tune, what is recommended."""
    lines = [
        f"target: {plan['documents']} documents, {plan['tokens']:,} tokens, {plan['blocks']:,} blocks; "
        f"retain: {plan['retain_blocks']:,} blocks for training",
        f"model: {plan['parameters']:,} parameters; {plan['device']}, {plan['dtype']}, {plan['threads']} threads; "
        f"memory: {gigabytes(plan['memory_free'])} of {gigabytes(plan['memory_total'])} to be had",
        "",
    ]
    table = [["stage", "tokens", "steps", "FLOPs", "memory", "on disk", "time"]]
    table += [
        [
            row["stage"],
            f"{row['tokens']:,}" if row["tokens"] else "-",
            f"{row['steps']:,}" if row["steps"] else "-",
            amount(row["flops"]) if row["flops"] else "-",
            gigabytes(row["memory_bytes"]) + ("" if row["fits"] else " does not fit"),
            gigabytes(row["written_bytes"]),
            duration(row["seconds"]),
        ]
        for row in plan["stages"]
    ]
    total = ["in all", "", "", amount(plan["flops"]), gigabytes(plan["memory_bytes"])]
    table.append([*total, gigabytes(plan["written_bytes"]), duration(plan["seconds"])])
    lines += [*_columns(table), "", "ways to fine-tune (times of others than the run's own are scaled by FLOPs):"]
    lines += _columns(
        [["way", "trained", "FLOPs", "memory", "time"]]
        + [
            [
                row["way"],
                f"{row['trained']:,}",
                amount(row["flops"]),
                gigabytes(row["memory_bytes"]) + ("" if row["fits"] else " does not fit"),
                duration(row["seconds"]),
            ]
            for row in plan["ways_to_finetune"]
        ]
    )
    lines.append("")
    if plan["time_withheld"]:
        lines.append(f"time is not told: {plan['time_withheld']}")
    if plan["not_counted"]:
        lines.append(f"not counted: {', '.join(plan['not_counted'])}")
    lines += plan["problems"]
    if plan["recommended"] is None:
        lines.append("recommended: nothing that can be set makes this run fit here")
    elif plan["recommended"]:
        lines.append(f"recommended: {flags(tuple(plan['recommended']))}")
    else:
        lines.append("recommended: the settings as they are; every stage fits")
    lines.append("nothing was done")
    return "\n".join(lines)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        out.append("  ".join(cells).rstrip())
    return out
