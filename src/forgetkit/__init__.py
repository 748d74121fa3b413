"""forgetkit: make a language model un-read a text, and say honestly how far that holds.

    import forgetkit
    results = forgetkit.unlearn(model="path/to/model", target="folder/of/text", out="runs/mine")

Every stage is a function too: `forgetkit.corpus.build`, `forgetkit.reinforce.run`, `forgetkit.anchors.build`,
`forgetkit.relabel.build`, `forgetkit.finetune.run`, `forgetkit.evaluate.run`, `forgetkit.report.build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from forgetkit.core.errors import ForgetkitError
    from forgetkit.pipeline import unlearn
    from forgetkit.settings import Settings

__all__ = ["ForgetkitError", "Settings", "__version__", "unlearn"]

_HOME = {
    "unlearn": "forgetkit.pipeline",
    "Settings": "forgetkit.settings",
    "ForgetkitError": "forgetkit.core.errors",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import forgetkit` alone must not cost the seconds that torch takes."""
    if name not in _HOME:
        raise AttributeError(f"module 'forgetkit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
