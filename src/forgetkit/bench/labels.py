"""How good are the labels? The paper's central sentence, measured.

"Our labels aim to approximate the next-token predictions of a model that has not been trained on the target data"
(arXiv 2310.02238, section 2). Where such a model R exists, every alternative label can be held against R's own
prediction at the same position of the original text: KL(R || label) and whether the top tokens agree. Two yardsticks
go with it: the baseline's untranslated prediction (no unlearning at all), and R's other seed (no labels can be asked
to be closer to R than another retrained model is).

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetkit.anchors.dictionary import Dictionary
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.heads import SplitHead
from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.statistics import Series, bootstrap_means
from forgetkit.relabel.build import Labeller, PreparedBlock, near_anchors, prepare_blocks
from forgetkit.relabel.consistency import Role
from forgetkit.settings import RelabelSettings

CLASSES = ("first", "inside", "near", "elsewhere")
"""Where a position's next token stands: it begins an anchor not yet seen in the block; it continues one; it lies within
five tokens of an anchor; or none of these."""
_BATCH = 8
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Positions:
    """One value per position of the measured blocks, in text order.

    block, position [N]: where. divergence [N]: KL(R || prediction) in nats; NaN where there is no prediction (masked).
    agreement [N]: whether both have the same top token.
    """

    block: NDArray[np.int64]
    position: NDArray[np.int64]
    divergence: Floats
    agreement: Floats


def classify(prepared: Sequence[PreparedBlock]) -> NDArray[np.int64]:
    """Index into `CLASSES` of every position but the last of every block; [N]."""
    out: list[NDArray[np.int64]] = []
    for block in prepared:
        role = block.plan.role[:-1]
        kind = np.full(len(role), CLASSES.index("elsewhere"))
        kind[near_anchors(role)] = CLASSES.index("near")
        kind[role == Role.ANCHOR_BEGINS] = CLASSES.index("first")
        kind[role == Role.ANCHOR_CONTINUES] = CLASSES.index("inside")
        out.append(kind)
    return np.concatenate([*out, np.empty(0, np.int64)])


def _own(head: SplitHead, labeller: Labeller, blocks: Sequence[PreparedBlock]) -> list[Tensor]:
    """A model's log-probabilities on the original text, [n - 1, V] per block."""
    states = labeller._hidden(head, [b.ids for b in blocks])
    return [torch.log_softmax(head.logits(states[row, : len(b.ids) - 1]).float(), -1) for row, b in enumerate(blocks)]


def _against(reference_NV: Tensor, other_NV: Tensor) -> tuple[Floats, Floats]:
    p_NV = reference_NV.exp()
    kl_N = (p_NV * (reference_NV - other_NV)).sum(-1)
    same_N = reference_NV.argmax(-1) == other_NV.argmax(-1)
    return kl_N.double().cpu().numpy(), same_N.double().cpu().numpy()


@torch.inference_mode()
def measure_model(
    model: Any, reference: Any, target: BlockedCorpus, blocks: Sequence[int], *, pad_id: int, label: str
) -> Positions:
    """Hold a model's own predictions on the original text against the reference's."""
    ids = [PreparedBlock(target[b].ids, target[b].ids, None) for b in blocks]  # type: ignore[arg-type]
    labeller = Labeller(model, None, RelabelSettings(alpha=0, contrast=0), pad_id=pad_id, bos_id=target.bos_id)
    truth = SplitHead(reference)
    kl: list[Floats] = []
    same: list[Floats] = []
    with progress(label, len(ids), "blocks") as bar:
        for low in range(0, len(ids), _BATCH):
            some = ids[low : low + _BATCH]
            pairs = zip(_own(truth, labeller, some), _own(labeller.baseline, labeller, some), strict=True)
            for one in (_against(r, o) for r, o in pairs):
                kl.append(one[0])
                same.append(one[1])
            bar.advance(len(some))
    block, position = _grid(ids)
    return Positions(block, position, np.concatenate(kl), np.concatenate(same))


def _grid(blocks: Sequence[PreparedBlock]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = [len(b.ids) - 1 for b in blocks]
    return np.repeat(np.arange(len(blocks)), lengths), np.concatenate([np.arange(n) for n in lengths])


@torch.inference_mode()
def measure_labels(blocks: Sequence[PreparedBlock], labeller: Labeller, reference: Any, *, label: str) -> Positions:
    """Hold the labels that a labeller would make for its prepared blocks against the reference's predictions.

    Whole distributions are compared, before they are cut to the top k. Masked positions stay NaN.
    """
    truth = SplitHead(reference)
    block, position = _grid(blocks)
    first = np.concatenate([[0], np.cumsum([len(b.ids) - 1 for b in blocks])])
    kl, same = np.full(len(block), np.nan), np.full(len(block), np.nan)
    with progress(label, len(blocks), "blocks") as bar:
        for low in range(0, len(blocks), _BATCH):
            high = min(low + _BATCH, len(blocks))
            reference_NV = torch.cat(_own(truth, labeller, blocks[low:high]))
            for row, at, v_NV, _ in labeller.predictions(blocks[low:high]):
                where = first[low + row] + at
                rows = torch.from_numpy(where - first[low])
                kl[where], same[where] = _against(reference_NV[rows], torch.log_softmax(v_NV, -1))
            bar.advance(high - low)
    return Positions(block, position, kl, same)


def sample(target: BlockedCorpus, n: int) -> list[int]:
    """Evenly spread block indices, at most `n`."""
    return sorted({int(i) for i in np.linspace(0, len(target) - 1, n)})


def prepared_blocks(
    target: BlockedCorpus, blocks: Sequence[int], dictionary: Dictionary, tokenizer: Any, settings: RelabelSettings
) -> list[PreparedBlock]:
    """The chosen blocks, translated and planned."""
    chosen = set(blocks)
    every: Iterator[PreparedBlock] = prepare_blocks(target, dictionary, tokenizer, settings)
    return [block for i, block in enumerate(every) if i in chosen]


def quality(
    labels: Positions, baseline: Positions, other: Positions | None, kinds: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Label quality by class and over all: KL(R || .), top-1 agreement, and the share of the gap that is closed.

    closed = (KL(R, baseline) - KL(R, labels)) / (KL(R, baseline) - KL(R, other seed)), all three at the labelled
    positions alone, with its 95% interval by bootstrap over blocks. relative_agreement: the labels' agreement with R
    over the other seed's.
    """
    usable = np.isfinite(labels.divergence)
    out: dict[str, Any] = {}
    for name in ("all", *CLASSES):
        mask = usable if name == "all" else usable & (kinds == CLASSES.index(name))
        out[name] = _summary(labels, baseline, other, mask, seed) if mask.any() else {"positions": 0}
    return out


def _summary(
    labels: Positions, baseline: Positions, other: Positions | None, mask: NDArray[np.bool_], seed: int
) -> dict[str, Any]:
    def series(one: Positions, what: str) -> Series:
        values = getattr(one, what)[mask]
        return Series(values, np.ones(len(values)), labels.block[mask])

    found: dict[str, Any] = {"positions": int(mask.sum()), "blocks": len(np.unique(labels.block[mask]))}
    for name, one in (("labels", labels), ("baseline", baseline), ("other_seed", other)):
        if one is not None:
            found[name] = {what: series(one, what).mean for what in ("divergence", "agreement")}
    if other is None:
        return found
    gap = found["baseline"]["divergence"] - found["other_seed"]["divergence"]
    if gap > 0:
        b, u, r = bootstrap_means([series(one, "divergence") for one in (baseline, labels, other)], seed=seed)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = np.quantile((b - u) / (b - r), [0.025, 0.975])
        value = (found["baseline"]["divergence"] - found["labels"]["divergence"]) / gap
        found["closed"] = {"value": value, "low": float(low), "high": float(high)}
    found["relative_agreement"] = found["labels"]["agreement"] / found["other_seed"]["agreement"]
    return found


def save_positions(path: Path, one: Positions, digest: str, blocks: Sequence[int]) -> None:
    """Write measured positions, with what they were measured on."""
    np.savez_compressed(
        path,
        divergence=one.divergence.astype(np.float16),
        agreement=one.agreement.astype(bool),
        blocks=np.array(blocks, np.int32),
        digest=np.array(digest),
    )


def load_positions(path: Path, prepared: Sequence[PreparedBlock], digest: str, blocks: Sequence[int]) -> Positions:
    """Read what `save_positions` wrote.

    Raises:
        ForgetkitError: the file is missing, or was measured on other text or blocks.
    """
    remedy = "make it with recipes/oz/make.py"
    if not path.is_file():
        raise ForgetkitError("the other seed's measured positions are missing", where=str(path), remedy=remedy)
    with np.load(path) as stored:
        if str(stored["digest"]) != digest or stored["blocks"].tolist() != list(blocks):
            raise ForgetkitError("measured on another text or other blocks", where=str(path), remedy=remedy)
        block, position = _grid(prepared)
        return Positions(
            block, position, stored["divergence"].astype(np.float64), stored["agreement"].astype(np.float64)
        )
