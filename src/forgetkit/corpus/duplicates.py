"""Copies: equal texts by hash, similar texts by sketches of word 5-grams, paragraphs shared by two corpora.

The sketch is bottom-k MinHash (Broder 1997, "On the resemblance and containment of documents"): the k
smallest hashes of its 5-grams; the share of the k smallest of a union that are in both estimates the Jaccard
similarity, with a standard error of at most 0.5/sqrt(k) (0.022 here). Short texts are compared exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetkit.corpus.readers import Document

SKETCH = 512
GRAM = 5
MIN_PARAGRAPH_WORDS = 8
"""Shorter paragraphs ("Yes," he said.) are shared by chance and are not counted."""
_GROUP = 200
_U64 = NDArray[np.uint64]


def exact_copies(documents: Sequence[Document]) -> dict[int, int]:
    """index of a later copy -> index of the first document with the same text."""
    first: dict[str, int] = {}
    copies: dict[int, int] = {}
    for index, document in enumerate(documents):
        original = first.setdefault(document.sha256, index)
        if original != index:
            copies[index] = original
    return copies


def sketch(text: str, known: dict[str, int] | None = None) -> _U64:
    """The sorted `SKETCH` smallest distinct hashes, uint64[<=SKETCH], of its word 5-grams; case is ignored.

    `known` caches word hashes between texts. A text of fewer than five words is one gram.
    """
    cache: dict[str, int] = {} if known is None else known
    hashes: list[int] = []
    for word in re.findall(r"\w+", text.lower()):
        value = cache.get(word)
        if value is None:
            value = cache[word] = zlib.crc32(word.encode("utf-8", "replace"))
        hashes.append(value)
    words = np.array(hashes, dtype=np.uint64)
    if not len(words):
        return words
    length = min(GRAM, len(words))
    count = len(words) - length + 1
    grams = np.zeros(count, dtype=np.uint64)
    for offset in range(length):  # uint64 arithmetic wraps, which is what a hash wants
        grams = _mix(grams * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count])
    return np.unique(grams)[:SKETCH]


def _mix(value: _U64) -> _U64:
    """The finaliser of splitmix64: every input bit changes about half of the output bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def similarity(a: _U64, b: _U64) -> float:
    """Estimated Jaccard similarity of two texts from their sketches; 0 if either is empty."""
    if not len(a) or not len(b):
        return 0.0
    union = np.union1d(a, b)[:SKETCH]
    return float(np.isin(union, np.intersect1d(a, b, assume_unique=True), assume_unique=True).sum() / len(union))


def near_pairs(sketches: Sequence[_U64], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity) with i < j and similarity >= threshold, in order.

    Only pairs that share a sketch value are compared. Of a value shared by more than 200 texts
    (a common notice) the first text is paired with all, and neighbours with each other.
    """
    if len(sketches) < 2:
        return []
    # Two texts of similarity s share none of the 32 smallest with probability (1 - s)**32: 1e-5 at 0.3.
    heads = [s[:32] if threshold >= 0.3 else s for s in sketches]
    values = np.concatenate(heads)
    owners = np.repeat(np.arange(len(heads)), [len(s) for s in heads])
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
    ends = np.r_[starts[1:], len(values)]
    candidates: set[tuple[int, int]] = set()
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        group = owners[start:end].tolist()
        if len(group) > _GROUP:
            candidates.update((group[0], other) for other in group[1:])
            candidates.update(itertools.pairwise(group))
        else:
            candidates.update((a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    found = [(a, b, similarity(sketches[a], sketches[b])) for a, b in sorted(candidates)]
    return [pair for pair in found if pair[2] >= threshold]


def paragraph_share(target: Sequence[Document], retain: Sequence[Document]) -> float:
    """Share of the target's paragraphs (of eight words or more) that the retain texts hold word for word."""
    wanted = [key for document in target for key in _paragraphs(document.text)]
    held = {key for document in retain for key in _paragraphs(document.text)}
    return sum(key in held for key in wanted) / len(wanted) if wanted else 0.0


def _paragraphs(text: str) -> list[bytes]:
    keys = []
    for paragraph in re.split(r"\n+", text.lower()):
        words = re.findall(r"\w+", paragraph)
        if len(words) >= MIN_PARAGRAPH_WORDS:
            keys.append(hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=12).digest())
    return keys


def report(target: Sequence[Document], retain: Sequence[Document], threshold: float) -> dict[str, Any]:
    """All copies within and between two corpora, by document id, ready for JSON."""
    known: dict[str, int] = {}
    everything = [*target, *retain]
    copies = exact_copies(everything)
    originals = [index for index in range(len(everything)) if index not in copies]
    pairs = near_pairs([sketch(everything[index].text, known) for index in originals], threshold)
    border = len(target)
    out: dict[str, Any] = {
        "target": {"exact": [], "near": []},
        "retain": {"exact": [], "near": []},
        "target_in_retain": {
            "exact": [],
            "near": [],
            "paragraph_share": round(paragraph_share(target, retain), 4),
        },
    }

    def section(a: int, b: int) -> str:
        if (a < border) != (b < border):
            return "target_in_retain"
        return "target" if a < border else "retain"

    def name(index: int) -> str:
        return everything[index].id

    retain_first: dict[int, int] = {}
    for copy, original in copies.items():
        if copy >= border > original and original in retain_first:
            # the second retain copy of a target text is also a copy within the retain texts
            out["retain"]["exact"].append({"document": name(copy), "same_as": name(retain_first[original])})
        else:
            out[section(original, copy)]["exact"].append({"document": name(copy), "same_as": name(original)})
            if copy >= border > original:
                retain_first[original] = copy
    for i, j, value in pairs:
        a, b = originals[i], originals[j]
        out[section(a, b)]["near"].append({"document": name(b), "near": name(a), "similarity": round(value, 3)})
    return out
