"""The bundled testbed: a model that has read fifteen Oz books, its twin that has not, the books, texts and probes."""

from __future__ import annotations

from pathlib import Path

from forgetkit.core.errors import ForgetkitError
from forgetkit.settings import Settings

ASSETS = Path(__file__).parent / "assets"
MODEL, REFERENCE = ASSETS / "oz-base", ASSETS / "oz-retrained"
TARGET, REST, RETAIN = ASSETS / "oz", ASSETS / "oz_rest", ASSETS / "retain"
HELDOUT, NEIGHBOUR = ASSETS / "heldout", ASSETS / "neighbour"
PROBES, SEEDS = ASSETS / "probes", ASSETS / "seeds.json"


def target(full: bool = False) -> tuple[Path, ...]:
    """The first three Oz books, or all fifteen."""
    return (TARGET, REST) if full else (TARGET,)


def anchors(full: bool = False) -> Path:
    """Anchor terms of the target chosen by hand, not by forgetkit."""
    return ASSETS / ("probe_anchors_full.yaml" if full else "probe_anchors.yaml")


def null_positions(full: bool = False) -> Path:
    """What another retrained seed predicts at the label benchmark's positions, held against the reference."""
    return ASSETS / f"seed_positions_{'full' if full else 'three'}.npz"


def check(full: bool = False, seeds: bool = True) -> None:
    """Refuse an installation that lacks a bundled file.

    Raises:
        ForgetkitError: which file, and the command that makes it.
    """
    measured = (SEEDS, null_positions(full)) if seeds else ()
    for path in (MODEL / "model.safetensors", REFERENCE / "model.safetensors", *measured):
        if not path.exists():
            raise ForgetkitError(
                "a bundled file of the testbed is missing",
                where=str(path),
                remedy="install forgetkit again, or make it with: python recipes/oz/make.py",
            )
    for path in (*target(full), RETAIN, HELDOUT, NEIGHBOUR, PROBES, anchors(full)):
        if not path.exists():
            raise ForgetkitError(
                "a bundled text or probe file is missing", where=str(path), remedy="install forgetkit again"
            )


def apply(settings: Settings, full: bool = False, seeds: bool = True) -> Settings:
    """The settings with the bundled truth, texts, probes and seeds put in where nothing was chosen.

    seeds: False while the other seeds' measurements are being made.

    Raises:
        ForgetkitError: a bundled file is missing from the installation.
    """
    check(full, seeds)
    evaluate = settings.evaluate
    chosen = {
        "reference": evaluate.reference or str(REFERENCE),
        "heldout": evaluate.heldout or (HELDOUT,),
        "neighbour": evaluate.neighbour or (NEIGHBOUR,),
        "anchors": evaluate.anchors or anchors(full),
        "probes": evaluate.probes or PROBES,
        "seeds": evaluate.seeds or (SEEDS if seeds else None),
    }
    report = settings.report
    if report == type(report)():
        books = "fifteen" if full else "three"
        report = report.model_copy(update={"title": f"Un-reading {books} Oz books"})
    return settings.model_copy(update={"evaluate": evaluate.model_copy(update=chosen), "report": report})
