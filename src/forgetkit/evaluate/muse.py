"""MUSE's six ways of looking at an unlearned model, in one table. Shi et al., 2024 (muse-bench)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from forgetkit.evaluate.significance import Sizes, estimate_mean, sizes
from forgetkit.evaluate.statistics import RESAMPLES, Estimate, Series

Better = Literal["lower", "zero", "higher"]
WAYS: dict[str, tuple[str, Better]] = {
    "verbmem": ("no verbatim memorisation", "lower"),
    "knowmem_forget": ("no knowledge memorisation", "lower"),
    "privleak": ("no privacy leakage", "zero"),
    "knowmem_retain": ("utility preserved", "higher"),
    "scalability": ("scales with the size of the forget set", "higher"),
    "sustainability": ("stands requests one after another", "higher"),
}
_MISSING = Estimate(None, reason="not measured")


@dataclass(frozen=True)
class Way:
    """One of the six, in percent (PrivLeak: in MUSE's own percent, -100 and up).

    reference: the same of the retrained model, if known; it, not 0, is what the first two should come down to. curve:
    for scalability and sustainability, the utility after each fold or request; value is then the last minus the first.
    """

    name: str
    meaning: str
    better: Better
    value: Estimate
    sizes: Sizes | None = None
    reference: Estimate = _MISSING
    curve: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {"value": self.value._asdict(), "reference": self.reference._asdict(), "curve": list(self.curve)}
        counted = None if self.sizes is None else asdict(self.sizes)
        return {"name": self.name, "meaning": self.meaning, "better": self.better, "sizes": counted, **plain}


def percent(estimate: Estimate) -> Estimate:
    """A share as percent, as MUSE reports it."""
    value, low, high = (None if x is None else 100 * x for x in estimate[:3])
    return Estimate(value, low, high, estimate.reason)


def muse_summary(
    *,
    verbmem: Series | None = None,
    knowmem_forget: Series | None = None,
    privleak: Estimate | None = None,
    privleak_sizes: Sizes | None = None,
    knowmem_retain: Series | None = None,
    scalability: Sequence[Series] = (),
    sustainability: Sequence[Series] = (),
    reference_verbmem: Series | None = None,
    reference_knowmem_forget: Series | None = None,
    reference_knowmem_retain: Series | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Way, ...]:
    """All six ways in MUSE's order; what is not given says "not measured".

    verbmem, knowmem_*: ROUGE-L F1 per item under `muse`. privleak: of `attacks.privleak`, in percent already.
    scalability: KnowMem on retain per item for models that unlearned 1, 2, ... folds at once; sustainability: after the
    1st, 2nd, ... request in turn.
    """

    def shares(name: str, series: Series | None, reference: Series | None = None) -> Way:
        told = [
            _MISSING if one is None else percent(estimate_mean(one, resamples=resamples, seed=seed))
            for one in (series, reference)
        ]
        return Way(name, *WAYS[name], told[0], None if series is None else sizes(series), told[1])

    def decline(name: str, steps: Sequence[Series]) -> Way:
        curve = tuple(100 * step.mean for step in steps)
        value = _MISSING
        if len(steps) > 1:
            value = percent(_change(steps[0], steps[-1], resamples, seed))
        return Way(name, *WAYS[name], value, sizes(steps[0]) if steps else None, curve=curve)

    zero = Estimate(0.0) if privleak is not None else _MISSING
    return (
        shares("verbmem", verbmem, reference_verbmem),
        shares("knowmem_forget", knowmem_forget, reference_knowmem_forget),
        Way("privleak", *WAYS["privleak"], privleak or _MISSING, privleak_sizes, zero),
        shares("knowmem_retain", knowmem_retain, reference_knowmem_retain),
        decline("scalability", scalability),
        decline("sustainability", sustainability),
    )


def _change(first: Series, last: Series, resamples: int, seed: int) -> Estimate:
    """mean(last) - mean(first), paired by item."""
    same = np.array_equal(first.groups, last.groups) and np.array_equal(first.weights, last.weights)
    if not same:
        return Estimate(None, reason="the steps were measured on different items")
    difference = Series(last.values - first.values, last.weights, last.groups)
    return estimate_mean(difference, resamples=resamples, seed=seed)
