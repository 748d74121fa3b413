"""ROUGE-L, the longest common subsequence of two texts, in the conventions of the peers.

LCS: the longest sequence that stands in both in order, gaps allowed. With R reference and C candidate words:
recall = LCS / R, precision = LCS / C, F1 = their harmonic mean. Lin, "ROUGE", 2004. Words are those of the package
`rouge-score`, which every peer uses: lower case, runs of a-z and 0-9. Text in other scripts has no words at all.

- `muse`: no stemmer; reports F1.
- `tofu`: Porter's stemmer on words of more than three letters; reports recall.
- `openunlearning`: the same stemmer; recall in TOFU's tasks, F1 in MUSE's.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from forgetkit.evaluate.porter import stem

Convention = Literal["muse", "openunlearning", "tofu"]
_WORD = re.compile(r"[a-z0-9]+")


class Rouge(NamedTuple):
    """Precision, recall and F1, each 0 to 1; NaN where the reference has no words: nothing could be recalled."""

    precision: float
    recall: float
    f1: float


def words(text: str, *, stemmed: bool = False) -> list[str]:
    """Words of `text` as `rouge-score` splits it; stemmed: words of more than three letters by their stem."""
    found: list[str] = _WORD.findall(text.lower())
    return [stem(word) if len(word) > 3 else word for word in found] if stemmed else found


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Bit-parallel (Hyyrö, 2004): bit i of the row is 0 where the LCS of a[:i+1] is longer than that of a[:i], and all
    bits of a row are updated at once, with O(len(b)) operations on integers of len(a) bits.
    """
    places: dict[Hashable, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        same = row & places.get(item, 0)
        row = ((row + same) | (row - same)) & full
    return len(a) - row.bit_count()


def longest_run(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest contiguous run of items that stands in both, at any place."""
    longest, target = 0, np.asarray(b)
    runs = np.zeros(len(b) + 1, dtype=np.int64)
    for item in a:
        runs[1:] = np.where(target == item, runs[:-1] + 1, 0)
        longest = max(longest, int(runs.max()))
    return longest


def rouge_l(reference: str, candidate: str, convention: Convention = "muse") -> Rouge:
    """ROUGE-L of `candidate` against `reference`; 0 where nothing is common, NaN where the reference has no words."""
    stemmed = convention != "muse"
    true, made = words(reference, stemmed=stemmed), words(candidate, stemmed=stemmed)
    if not true:
        return Rouge(float("nan"), float("nan"), float("nan"))
    common = lcs_length(true, made)
    return Rouge(common / max(1, len(made)), common / len(true), 2 * common / (len(true) + len(made)))
