"""The one exception class for everything a user can put right, and the spelling helper."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForgetkitError(Exception):
    """A mistake or a condition outside the program, told in one line.

    ``str()`` gives ``where: what - remedy``; empty parts are left out.
    """

    exit_code: int = 2

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.remedy:
            line = f"{line} - {self.remedy}"
        return " ".join(line.split())


class Interrupted(ForgetkitError):  # noqa: N818 - nothing went wrong
    """The run was stopped by a signal; what is on disk can be continued from."""

    def __init__(self, number: int, where: str = "", remedy: str = "run the same command again to continue") -> None:
        super().__init__(f"stopped by signal {number}", where, remedy)
        self.args = (number, where, remedy)
        self.number = number
        self.exit_code = 128 + number


def suggest(name: str, choices: Iterable[str]) -> str:
    """``"did you mean X"`` for the choice closest to ``name``, or ``""`` when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"did you mean {close[0]}" if close else ""
