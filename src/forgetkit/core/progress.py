"""Progress with rate and time left: a bar on a terminal, plain lines elsewhere, silence on request.

Everything goes to stderr, so that stdout stays a command's result.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

QUIET_VARIABLE = "FORGETKIT_QUIET"
_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.1


def clean(text: str, limit: int = 200) -> str:
    """``text`` without control, escape, bidi and line characters, so that it cannot steer a terminal."""
    kept = "".join(" " if c in "\n\r\t" else c for c in text if c in "\n\r\t" or unicodedata.category(c)[0] not in "C")
    kept = " ".join(kept.split())
    return kept if len(kept) <= limit else kept[: limit - 3] + "..."


def progress(
    label: str,
    total: float | None,
    unit: str = "",
    *,
    done: float = 0,
    quiet: bool | None = None,
    stream: TextIO | None = None,
) -> Progress:
    """``with progress("labels", 120, "blocks") as p: p.advance(8, note="loss 3.21")``; see `Progress`."""
    return Progress(label, total, unit, done=done, quiet=quiet, stream=stream)


class Progress:
    """One piece of work of ``total`` units (None: unknown), ``done`` of them before this process started.

    ``quiet``: show nothing; None: quiet when the environment variable FORGETKIT_QUIET is set. ``stream``:
    stderr unless given. A terminal gets a bar, unless CI is set or TERM is dumb; anything else gets a line
    at most every ten seconds and one at the end.
    """

    def __init__(
        self,
        label: str,
        total: float | None,
        unit: str = "",
        *,
        done: float = 0,
        quiet: bool | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.unit, self.total = clean(label), clean(unit), total
        self.done, self.note = done, ""
        self._first = done
        self._stream = stream or sys.stderr
        self._clock = clock
        self._quiet = bool(os.environ.get(QUIET_VARIABLE)) if quiet is None else quiet
        dumb = bool(os.environ.get("CI")) or os.environ.get("TERM") == "dumb"
        self._plain = dumb or not self._stream.isatty()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._begun = self._shown = clock()

    def __enter__(self) -> Self:
        self._begun = self._shown = self._clock()
        if not self._quiet and not self._plain:
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(
                self.label, total=self.total, completed=int(self.done), status=self._status()
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self._status())
            self._bar.stop()
            self._bar = None
        elif not self._quiet:
            elapsed = _duration(self._clock() - self._begun)
            ending = f"done in {elapsed}" if kind is None else f"stopped after {elapsed}"
            self._write(f"{self.label}: {self._count()}, {ending}" + (f", {self.note}" if self.note else ""))

    def skip(self, amount: float, note: str = "") -> None:
        """Count units that an earlier process did: done, but no evidence of this one's rate."""
        self._first += amount
        self.advance(amount, note)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count ``amount`` more units as done; ``note`` replaces the text at the end of the line."""
        self.done += amount
        if note:
            self.note = clean(note)
        now = self._clock()
        if self._quiet or now - self._shown < (_LINE_SECONDS if self._bar is None else _BAR_SECONDS):
            return
        self._shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=self._status())
        else:
            self._write(f"{self.label}: {self._count()}, {self._status()}")

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _count(self) -> str:
        share = f"/{_number(self.total)} ({self.done / self.total:.0%})" if self.total else ""
        return f"{_number(self.done)}{share}" + (f" {self.unit}" if self.unit else "")

    def _status(self) -> str:
        """Rate over this process's own work, time left at that rate, and the note."""
        elapsed = self._clock() - self._begun
        worked = self.done - self._first
        parts = []
        if elapsed > 0 and worked > 0:
            rate = worked / elapsed
            unit = self.unit or "units"
            parts.append(f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s per {unit.removesuffix('s')}")
            if self.total is not None:
                parts.append(f"{_duration(max(0.0, self.total - self.done) / rate)} left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts) or "starting"


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(stream: TextIO) -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=5,
    )
