"""The bundled model and books: what `forgetkit demo` runs on, and its settings."""

from __future__ import annotations

from pathlib import Path

from forgetkit.core.errors import ForgetkitError
from forgetkit.settings import Settings

ASSETS = Path(__file__).parent / "assets"
MODEL, REFERENCE = ASSETS / "oz-base", ASSETS / "oz-retrained"
TARGET, RETAIN = ASSETS / "oz", ASSETS / "retain"
HELDOUT, NEIGHBOUR = ASSETS / "heldout", ASSETS / "neighbour"
PROBES = ASSETS / "probe_anchors.yaml"


def apply(settings: Settings) -> Settings:
    """The settings with the bundled truth, held-out and neighbour texts and probes put in where nothing was chosen.

    Raises:
        ForgetkitError: a bundled file is missing from the installation.
    """
    for path in (MODEL, REFERENCE, TARGET, RETAIN, HELDOUT, NEIGHBOUR, PROBES):
        if not path.exists():
            raise ForgetkitError(
                f"the bundled {path.name} is missing", where=str(path), remedy="install forgetkit again"
            )
    evaluate = settings.evaluate
    chosen = {
        "reference": evaluate.reference or str(REFERENCE),
        "heldout": evaluate.heldout or (HELDOUT,),
        "neighbour": evaluate.neighbour or (NEIGHBOUR,),
        "anchors": evaluate.anchors or PROBES,
    }
    report = settings.report
    if report == type(report)():
        report = report.model_copy(update={"title": "Un-reading three Oz books"})
    return settings.model_copy(update={"evaluate": evaluate.model_copy(update=chosen), "report": report})
