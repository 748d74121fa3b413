"""Translate a window of text by the dictionary, and align the tokens of both sides by character offsets.

`ALGORITHM.md` 2b: m(i) is the translated position whose token ends where original token i ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forgetkit.anchors.matcher import Match, Matcher

__all__ = ["Alignment", "Match", "Matcher", "Translation", "align", "translate"]

IntArray = npt.NDArray[np.int32]
_Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Translation:
    """A window of a document and its translation, cut into segments that correspond one to one."""

    text: str
    """The translated text."""
    segments: IntArray
    """[S, 5] source_start, source_end, target_start, target_end, anchor (-1: copied text). In characters, on
    the source side from the window's start. Segments tile both texts; none is empty on the source side."""
    source: str
    """The window's own text."""
    cut_start: bool = False
    """The window begins inside the first segment's anchor."""
    cut_end: bool = False
    """The window ends inside the last segment's anchor."""


class Alignment(NamedTuple):
    """Correspondence of an original block (n tokens) and its translation (m tokens)."""

    mapped: IntArray
    """[n] translated position that ends where the original one ends, or -1; strictly increasing."""
    begins: IntArray
    """[n] anchor whose occurrence begins in this token, or -1; the token may also hold text before it."""
    inside: npt.NDArray[np.bool_]
    """[n] the token holds text of an anchor that began in an earlier token (or before the window)."""
    target_begins: IntArray
    """[m] anchor whose counterpart begins in this token, or -1."""


def translate(text: str, matches: Sequence[Match], start: int = 0, end: int | None = None) -> Translation:
    """Replace the matches within `text[start:end]`.

    Args:
        text: the whole document.
        matches: of the whole document, in order and disjoint, as `Matcher.find` returns them.
        start: first character of the window.
        end: one past the last character; None: the end of the document.

    An anchor cut by an edge of the window is clipped to it, and its counterpart is written in full.
    """
    stop = max(start, len(text) if end is None else end)
    low = bisect_right(matches, start, key=lambda match: match.end)
    high = bisect_left(matches, stop, key=lambda match: match.start)
    within = matches[low:high] if stop > start else matches[:0]
    pieces: list[str] = []
    rows: list[tuple[int, int, int, int, int]] = []
    at, written = start, 0

    def put(upto: int, piece: str, anchor: int) -> None:
        nonlocal at, written
        pieces.append(piece)
        rows.append((at - start, upto - start, written, written + len(piece), anchor))
        at, written = upto, written + len(piece)

    for match in within:
        if match.start > at:
            put(match.start, text[at : match.start], -1)
        put(min(match.end, stop), match.replacement, match.anchor)
    if at < stop:
        put(stop, text[at:stop], -1)
    return Translation(
        text="".join(pieces),
        segments=np.array(rows, dtype=np.int32).reshape(-1, 5),
        source=text[start:stop],
        cut_start=bool(within) and within[0].start < start,
        cut_end=bool(within) and within[-1].end > stop,
    )


class _Side(NamedTuple):
    """Tokens of one side that own characters (k of them), offsets from the window's start."""

    token: _Index
    """[k] positions among all tokens of the side."""
    starts: _Index
    ends: _Index
    ids: _Index
    clean: npt.NDArray[np.bool_]
    """[k] with the token, all text up to its end has been read: no later token holds a byte of it."""


def _side(offsets: npt.ArrayLike, ids: npt.ArrayLike, shift: int, last_clean: bool) -> _Side:
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2) - shift
    starts, ends = spans[:, 0], spans[:, 1]
    # an end that falls behind an earlier one (odd normalisers) has no place in the order of reading
    keep = (ends > starts) & (ends >= np.maximum.accumulate(ends)) if len(ends) else np.zeros(0, dtype=bool)
    index = np.flatnonzero(keep)
    starts, ends = starts[index], ends[index]
    clean = np.full(len(index), last_clean)
    clean[:-1] = starts[1:] >= ends[:-1]
    return _Side(index, starts, ends, np.asarray(ids, dtype=np.int64)[index], clean)


def align(
    offsets: npt.ArrayLike,
    ids: npt.ArrayLike,
    translation: Translation,
    window_start: int,
    target_offsets: npt.ArrayLike,
    target_ids: npt.ArrayLike,
) -> Alignment:
    """Align the tokens of a window with those of its translation.

    Args:
        offsets: [n, 2] character spans of the original tokens in the document.
        ids: [n] their ids.
        translation: of the window.
        window_start: where the window starts in the document.
        target_offsets: [m, 2] spans in `translation.text`, which was tokenised by itself.
        target_ids: [m] their ids.

    A pair is mapped where both tokens end at corresponding characters: anywhere in copied text, and at the
    exact end of an anchor. Several tokens that share an end are pieces of one character: they correspond one
    by one if both sides have the same pieces, otherwise only the last ones do. Empty spans are not mapped.

    An anchor cut by the window's start is in `begins` at its first token here, which is `inside` as well.
    """
    n, m = len(np.asarray(ids)), len(np.asarray(target_ids))
    # a block may end between the bytes of a character, which only its next block would show
    whole = translation.source[-1:].isascii()
    source, target = _side(offsets, ids, window_start, whole), _side(target_offsets, target_ids, 0, True)
    mapped = np.full(n, -1, dtype=np.int32)
    begins, target_begins = np.full(n, -1, dtype=np.int32), np.full(m, -1, dtype=np.int32)
    inside = np.zeros(n, dtype=np.bool_)
    segments = translation.segments.astype(np.int64)
    if len(segments) and len(source.token):
        if len(target.token):
            partner = _partners(source, target, segments, translation.cut_end)
            found = partner >= 0
            mapped[source.token[found]] = target.token[partner[found]]
        anchored = segments[segments[:, 4] >= 0]
        firsts = _mark(begins, source, anchored[:, 0], anchored[:, 4], translation.source)
        _mark(target_begins, target, anchored[:, 2], anchored[:, 4], translation.text)
        lasts = np.searchsorted(source.starts, anchored[:, 1], side="left") - 1
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            if last > first:
                inside[source.token[first] + 1 : source.token[last] + 1] = True
        if translation.cut_start and len(firsts):
            inside[: source.token[max(int(firsts[0]), int(lasts[0]), 0)] + 1] = True
    return Alignment(mapped, begins, inside, target_begins)


def _partners(source: _Side, target: _Side, segments: _Index, cut_end: bool) -> _Index:
    """[k] index of each source token's partner within `target`, or -1."""
    ends, k = source.ends, np.arange(len(source.ends))
    row = np.searchsorted(segments[:, 1], ends, side="left")
    defined = (row < len(segments)) & (ends > 0)
    here = segments[np.minimum(row, len(segments) - 1)]
    copied = here[:, 4] < 0
    at_end = ends == here[:, 1]
    if cut_end:
        at_end &= row < len(segments) - 1
    defined &= copied | at_end
    wanted = np.where(copied, here[:, 2] + ends - here[:, 0], here[:, 3])
    # groups of tokens with one end: [first, last] on both sides
    first, last = np.searchsorted(ends, ends, side="left"), np.searchsorted(ends, ends, side="right") - 1
    t_first = np.searchsorted(target.ends, wanted, side="left")
    t_last = np.searchsorted(target.ends, wanted, side="right") - 1
    defined &= t_last >= t_first
    rank = k - first
    twin = np.clip(t_first + rank, 0, len(target.ids) - 1)
    same = defined & copied & (last - first == t_last - t_first) & (source.ids == target.ids[twin])
    run = np.concatenate(([0], np.cumsum(same)))
    same_group = run[last + 1] - run[first] == last - first + 1
    t_end = np.clip(t_last, 0, len(target.ids) - 1)
    closing = defined & (k == last) & source.clean & target.clean[t_end]
    return np.where(same_group, twin, np.where(closing, t_end, -1))


def _mark(begins: IntArray, side: _Side, at: _Index, anchors: _Index, text: str) -> _Index:
    """Write into `begins` the anchors that start at characters `at`; return the token of each in `side`."""
    token: _Index = np.searchsorted(side.ends, at, side="right")
    # "▁" put before a text claims its first character too; no more tokens than bytes can really hold it
    size = np.fromiter((len(text[p].encode("utf-8")) for p in at.tolist()), dtype=np.int64, count=len(at))
    token = np.maximum(token, np.searchsorted(side.starts, at, side="right") - size)
    for k in range(len(at) - 1, -1, -1):  # the first of two anchors in one token is the one noted
        if token[k] < len(side.token):
            begins[side.token[token[k]]] = anchors[k]
    last: _Index = np.minimum(token, len(side.token) - 1)
    return last
