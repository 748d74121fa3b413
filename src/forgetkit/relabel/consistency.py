"""Component 2d of arXiv 2310.02238 (its "technical caveats"): which positions get a label, and from where.

Without these rules the model learns to contradict its own context ("Harry went up to him and said: hi, my
name is Jon"). Every rule can be switched off in `RelabelSettings`. Position i predicts token i + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from forgetkit.anchors.matcher import Matcher
from forgetkit.anchors.translate import Alignment
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.settings import RelabelSettings


class Status(IntEnum):
    """Why a position carries loss, or does not."""

    LABEL = 0
    """Label from the translated text."""
    INNER = 1
    """Label inside an anchor (rule 3 off): the baseline on the original text, the anchor's next token lowered."""
    NO_NEXT = 2
    """Last position of the block: nothing to predict."""
    SEEN_ANCHOR = 3
    """Rule 1: the next token belongs to an anchor that has already occurred in the block."""
    INSIDE_ANCHOR = 4
    """Rule 3: strictly inside an anchor."""
    UNMAPPED = 5
    """No translated token ends where this token ends."""


class Role(IntEnum):
    """What the position predicts, for weighting and for the breakdown of label quality."""

    OTHER = 0
    ANCHOR_BEGINS = 1
    ANCHOR_CONTINUES = 2


@dataclass(frozen=True)
class LabelPlan:
    """Where the label of every position of one block comes from. All arrays have the block's n positions."""

    status: NDArray[np.uint8]
    """One `Status` per position."""
    role: NDArray[np.uint8]
    """One `Role` per position."""
    source: NDArray[np.int32]
    """Row of the translated block whose prediction is used (status LABEL), else -1."""
    lowered_ids: NDArray[np.int32]
    """Vocabulary ids whose logits are lowered on a range of positions; int32 [P]."""
    lowered_from: NDArray[np.int32]
    """First position of each range; int32 [P]."""
    lowered_until: NDArray[np.int32]
    """One past the last position of each range; int32 [P]."""
    lowered_by: NDArray[np.float32]
    """Nats (or logits); float32 [P]."""


def telltale_tokens(corpus: BlockedCorpus, matcher: Matcher, min_share: float = 0.5) -> dict[int, frozenset[int]]:
    """Per anchor, the token ids that give it away: first tokens of its occurrences in the target.

    A token that begins some anchor in less than `min_share` of its own occurrences (the " T" of "Tip", which also
    begins "Twelve") gives nothing away and is left out.
    """
    first: dict[int, Counter[int]] = {}
    begins: Counter[int] = Counter()
    edges = np.searchsorted(corpus.bounds[:, 0], np.arange(len(corpus.documents) + 1))
    for number, document in enumerate(corpus.documents):
        if edges[number] == edges[number + 1]:
            continue
        low = int(corpus.bounds[edges[number], 1])
        high = int(corpus.bounds[edges[number + 1] - 1, 2])
        matches = matcher.find(document.text)
        at = np.searchsorted(corpus.offsets[low:high, 1], [m.start for m in matches], side="right")
        for match, token in zip(matches, at, strict=True):
            if low + token < high:
                identity = int(corpus.ids[low + token])
                begins[identity] += 1
                first.setdefault(match.anchor, Counter())[identity] += 1
    total = Counter(corpus.ids.tolist())
    return {
        anchor: frozenset(t for t in counts if begins[t] >= min_share * total[t]) for anchor, counts in first.items()
    }


def plan_block(
    alignment: Alignment,
    target_ids: NDArray[np.int32],
    settings: RelabelSettings,
    telltale: Mapping[int, frozenset[int]] | None = None,
) -> LabelPlan:
    """Apply rules 1-4 of ALGORITHM 2d to one aligned block.

    Args:
        alignment: original-to-translated map of the block (`anchors.translate.align`).
        target_ids: token ids of the translated block; int32 [m].
        settings: which rules are on.
        telltale: anchor -> ids of `telltale_tokens`, needed when `suppress_unseen_anchors` is on.
    """
    n = len(alignment.mapped)
    begins, inside, mapped = alignment.begins, alignment.inside, alignment.mapped
    status = np.full(n, Status.LABEL, np.uint8)
    role = np.full(n, Role.OTHER, np.uint8)
    next_begins = np.append(begins[1:], -1)
    next_inside = np.append(inside[1:], False)
    role[next_begins >= 0] = Role.ANCHOR_BEGINS
    role[next_inside] = Role.ANCHOR_CONTINUES

    status[mapped < 0] = Status.UNMAPPED
    status[next_inside] = Status.INSIDE_ANCHOR if settings.mask_inside_anchors else Status.INNER
    if settings.mask_seen_anchors:
        status[_already_seen(begins, inside)] = Status.SEEN_ANCHOR
    status[-1] = Status.NO_NEXT

    source = np.where(status == Status.LABEL, mapped, -1).astype(np.int32)
    first_at = _first_occurrences(begins)
    lowered = []
    if settings.penalise_seen_counterparts > 0:
        ranges = _seen_counterparts(first_at, alignment.target_begins, target_ids)
        lowered += [(t, start, n, settings.penalise_seen_counterparts) for t, start in ranges.items()]
    if settings.suppress_unseen_anchors > 0 and telltale:
        ends = _unseen_anchors(first_at, telltale, n)
        lowered += [(t, 0, end, settings.suppress_unseen_anchors) for t, end in ends.items() if end > 0]
    ids, start, until, by = zip(*sorted(lowered), strict=True) if lowered else ((), (), (), ())
    return LabelPlan(
        status,
        role,
        source,
        np.array(ids, np.int32),
        np.array(start, np.int32),
        np.array(until, np.int32),
        np.array(by, np.float32),
    )


def _already_seen(begins: NDArray[np.int32], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Positions whose next token begins or continues an anchor that occurred earlier in the block; bool [n]."""
    seen_next = np.zeros(len(begins), bool)
    seen: set[int] = set()
    repeated = False
    for i in np.flatnonzero((begins >= 0) | inside):
        if begins[i] >= 0:
            repeated = int(begins[i]) in seen
            seen.add(int(begins[i]))
        if repeated and i > 0:
            seen_next[i - 1] = True
    return seen_next


def _first_occurrences(begins: NDArray[np.int32]) -> dict[int, int]:
    """Anchor -> position of the first token of its first occurrence in the block."""
    first_at: dict[int, int] = {}
    for i in np.flatnonzero(begins >= 0):
        first_at.setdefault(int(begins[i]), int(i))
    return first_at


def _seen_counterparts(
    first_at: Mapping[int, int], target_begins: NDArray[np.int32], target_ids: NDArray[np.int32]
) -> dict[int, int]:
    """Rule 2: first token id of each counterpart in this block -> position from which it is lowered."""
    start: dict[int, int] = {}
    for j in np.flatnonzero(target_begins >= 0):
        position = first_at.get(int(target_begins[j]))
        if position is not None:
            token = int(target_ids[j])
            start[token] = min(position, start.get(token, position))
    return start


def _unseen_anchors(first_at: Mapping[int, int], telltale: Mapping[int, frozenset[int]], n: int) -> dict[int, int]:
    """Telltale token id -> position at which an anchor it begins has occurred (n: never in this block)."""
    until: dict[int, int] = {}
    for anchor, tokens in telltale.items():
        seen = first_at.get(anchor, n)
        for token in tokens:
            until[token] = min(seen, until.get(token, n))
    return until
