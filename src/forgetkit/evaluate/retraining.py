"""Distance to retraining: how far a model is from one that never read the target, in units of luck.

Two models trained without the target, alike but for the seed, are not the same model. D = KL(R || U) / KL(R || R')
divides the unlearned model's distance to the retrained R by that of R's other seeds R': 1.0 = as close to a retrained
model as another retrained model is. R' need not be at hand: what was measured on it travels as a file of numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.losses import BlockDivergence
from forgetkit.evaluate.statistics import Estimate, Floats, ratio_of_means

FIELDS = ("divergence", "agreement", "count")


@dataclass(frozen=True)
class Seeds:
    """Measured distances of other retrained seeds from one reference.

    reference: that model's fingerprint. texts: token digest of a text -> seed -> sums per measured block, with the
    indices of those blocks.
    """

    reference: str
    texts: Mapping[str, Mapping[str, tuple[list[int], BlockDivergence]]]

    def null(self, digest: str, blocks: Sequence[int]) -> list[BlockDivergence]:
        """The other seeds at exactly these blocks of this text; empty where they were not measured there."""
        found = self.texts.get(digest, {})
        return [apart for own, apart in found.values() if own == list(blocks)]


def load_seeds(path: Path) -> Seeds:
    """Read a file that `collect_seeds` made.

    Raises:
        ForgetkitError: missing, or not such a file.
    """
    remedy = "make it with recipes/oz/make.py, or leave evaluate.seeds out"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ForgetkitError("no such file", where=str(path), remedy=remedy) from None
    except ValueError as error:
        raise ForgetkitError(f"not JSON ({error})", where=str(path), remedy=remedy) from None
    try:
        texts = {
            digest: {
                name: (list(own["blocks"]), BlockDivergence(*(np.array(own[field], np.float64) for field in FIELDS)))
                for name, own in seeds.items()
            }
            for digest, seeds in raw["texts"].items()
        }
        return Seeds(raw["reference"], texts)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ForgetkitError("not a file of other seeds' distances", where=str(path), remedy=remedy) from None


def collect_seeds(results: Mapping[str, tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Other seeds' distances as JSON: seed -> (results.json, details.json) of its evaluation as 'unlearned'.

    Raises:
        ForgetkitError: they were not measured against one and the same reference.
    """
    references = {measured["models"]["reference"]["fingerprint"] for measured, _ in results.values()}
    if len(references) != 1:
        raise ForgetkitError("the seeds were measured against different references", where="seeds")
    texts: dict[str, dict[str, Any]] = {}
    for name, (measured, details) in results.items():
        for text in ("target", "heldout"):
            apart = details["models"]["unlearned"].get(f"divergence.{text}")
            if apart is not None:
                own = {"blocks": details["blocks"][text], **{f: np.round(apart[f], 4).tolist() for f in FIELDS}}
                texts.setdefault(measured["texts"][text]["sha256"], {})[name] = own
    return {"reference": references.pop(), "texts": texts}


def distance(model: BlockDivergence, others: Sequence[BlockDivergence], what: str, seed: int) -> Estimate:
    """mean(model) / mean(others), per token, with its paired 95% interval over blocks.

    what: 'divergence' (D; 1 = a retrained seed, lower is closer) or 'agreement' (top-1 agreement with R over that of
    R's other seeds; 1 = a retrained seed, higher is closer).
    """
    if not others:
        return Estimate(None, reason="no other retrained seed was measured on these blocks")
    pooled: Floats = np.mean([getattr(one, what) for one in others], axis=0)
    null = BlockDivergence(pooled, pooled, others[0].count).series(what)
    return ratio_of_means(model.series(what), null, seed=seed)
