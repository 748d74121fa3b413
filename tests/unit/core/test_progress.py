from __future__ import annotations

import contextlib
import io
import os
import pty
import re

import pytest

from forgetkit.core.progress import Progress, clean, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(out: io.StringIO) -> list[str]:
    return out.getvalue().splitlines()


def drain(terminal: int) -> str:
    """Everything written to a pseudo-terminal whose other end is closed."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(terminal, 65536):
            data += chunk
    os.close(terminal)
    return data.decode()


def test_plain_lines_are_rare_and_tell_rate_and_time_left() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("labels", 1000, "blocks", stream=out, clock=clock, quiet=False) as p:
        for _ in range(100):
            clock.now += 1
            p.advance(5, note="loss 3.21")
    # 100 seconds of work: a line at 10, 20, ... 100 seconds, and the last
    assert len(lines(out)) == 11
    assert lines(out)[0] == "labels: 50/1000 (5%) blocks, 5.0 blocks/s, 3:10 left, loss 3.21"
    assert lines(out)[-1] == "labels: 500/1000 (50%) blocks, done in 1:40, loss 3.21"


def test_resumed_work_does_not_count_into_the_rate() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("train", 1000, "steps", done=900, stream=out, clock=clock, quiet=False) as p:
        clock.now += 10
        p.advance(10)
    assert lines(out)[0] == "train: 910/1000 (91%) steps, 1.0 steps/s, 1:30 left"


def test_skipped_work_does_not_count_into_the_rate() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("train", 1000, "steps", stream=out, clock=clock, quiet=False) as p:
        p.skip(900, note="continued")
        clock.now += 10
        p.advance(10)
    assert lines(out)[0] == "train: 910/1000 (91%) steps, 1.0 steps/s, 1:30 left, continued"


def test_slow_and_unknown_totals() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress("train", None, "steps", stream=out, clock=clock, quiet=False) as p:
        clock.now += 30
        p.advance()
    assert lines(out)[0] == "train: 1 steps, 30.0 s per step"


def test_failure_is_not_called_done() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError), Progress("train", 0, stream=out, quiet=False):
        raise ValueError
    assert "stopped" in out.getvalue() and "done in" not in out.getvalue()


def test_quiet_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with progress("x", 2, quiet=True, stream=out) as p:
        p.advance(2)
    monkeypatch.setenv("FORGETKIT_QUIET", "1")
    with progress("x", 2, stream=out) as p:
        p.advance(2)
    assert out.getvalue() == ""
    with progress("x", 2, quiet=False, stream=out) as p:
        p.advance(2)
    assert out.getvalue() != ""


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 2, quiet=False) as p:
        p.advance(2)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("x: 2/2")


@pytest.mark.parametrize(("ci", "bar"), [("", True), ("1", False)])
def test_terminal_gets_a_bar_unless_ci(monkeypatch: pytest.MonkeyPatch, ci: str, bar: bool) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    outer, inner = pty.openpty()
    with (
        os.fdopen(inner, "w", encoding="utf-8") as stream,
        Progress("lab[b]els", 4, stream=stream, quiet=False) as p,
    ):
        for _ in range(4):
            p.advance(1, note="[red]n\x1b]0;title\x07ote")
    shown = drain(outer)
    assert "lab[b]els" in shown and "[red]n]0;titleote" in shown and "\x07" not in shown
    assert ("\x1b[" in shown) is bar
    assert ("100%" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)) is True


def test_clean() -> None:
    assert clean("a\x1b[31mb\x9bc\u202ed\u200be\nf\tg\x00") == "a[31mbcde f g"
    assert clean("héllo – “x” 中") == "héllo – “x” 中"
    assert len(clean("x" * 1000)) == 200
