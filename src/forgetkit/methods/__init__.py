"""Fine-tuning losses, one file per method; `get` finds a method by name, also from installed plugins."""

from __future__ import annotations

from functools import partial
from importlib.metadata import entry_points

from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.methods.base import Method
from forgetkit.methods.controls import GradientAscent, RandomLabels
from forgetkit.methods.whp import WhpLoss

_OWN = {
    "whp": Method("whp", WhpLoss),
    "whp_symmetric": Method("whp_symmetric", partial(WhpLoss, reverse=1.0)),
    "gradient_ascent": Method("gradient_ascent", GradientAscent),
    "random_labels": Method("random_labels", RandomLabels),
}


def available() -> dict[str, Method]:
    """Every method by name: ours, and those of the `forgetkit.methods` entry point group."""
    methods = dict(_OWN)
    for entry in entry_points(group="forgetkit.methods"):
        if entry.name in methods:
            raise ForgetkitError(
                f"two methods are called {entry.name!r}", where=entry.value, remedy="uninstall or rename one"
            )
        methods[entry.name] = entry.load()
    return methods


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
        ForgetkitError: no such method; the nearest name is suggested.
    """
    methods = available()
    if name not in methods:
        raise ForgetkitError(
            f"unknown method {name!r}" + (f", {hint}" if (hint := suggest(name, methods)) else ""),
            where="finetune.method",
            remedy=f"one of: {', '.join(sorted(methods))}",
        )
    return methods[name]
