"""Whole-text tokenisation of documents of any length, in pieces where that provably changes nothing.

The tokens of a text must be those of one call on the whole text (fault T9). A call on 100 MB holds gigabytes
of intermediate objects, so long texts are cut into pieces where three things agree: there is a space after
a letter and before a letter, the tokenizer's own pre-tokenizer starts a new word there, and encoding a window
across the cut gives the same ids and offsets as its two halves (some tokenizers give the first token of a
text other offsets: that token's are taken from the window). Tokenizers without a pre-tokenizer
(tokens across words) never qualify and are given the whole text.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forgetkit.core.errors import ForgetkitError

PIECE = 1_000_000
"""Characters per piece."""
_WINDOW = 256
_TRIES = 64
_CUT = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_Int32 = NDArray[np.int32]

logger = logging.getLogger("forgetkit")


def encode(text: str, tokenizer: Any, name: str = "", piece: int = PIECE) -> tuple[_Int32, _Int32]:
    """Token ids int32[n] and character offsets int32[n, 2] of `text`, without special tokens.

    Equal to one call of the tokenizer on the whole text. Offsets are the tokenizer's own: they may overlap
    (bytes of one character) or be empty. Raises `ForgetkitError` for a tokenizer that has no offsets.
    """
    require_offsets(tokenizer)
    if len(text) <= piece:
        return _call(text, tokenizer)
    cuts = list(_cuts(text, tokenizer, piece))
    if not cuts:
        logger.warning("%s: long text without a safe place to cut; tokenised whole, which takes much memory", name)
    ids: list[_Int32] = []
    offsets: list[_Int32] = []
    starts = [(0, None), *cuts]
    for (start, first), end in zip(starts, [*(cut for cut, _ in cuts), len(text)], strict=True):
        piece_ids, piece_offsets = _call(text[start:end], tokenizer)
        piece_offsets += np.int32(start)
        if first is not None:
            piece_offsets[0] = first
        ids.append(piece_ids)
        offsets.append(piece_offsets)
    return np.concatenate(ids), np.concatenate(offsets)


def require_offsets(tokenizer: Any) -> None:
    """Raise `ForgetkitError` unless the tokenizer can tell where in the text each token stands."""
    if not getattr(tokenizer, "is_fast", False):
        raise ForgetkitError(
            "this tokenizer gives no character offsets",
            type(tokenizer).__name__,
            "use a model with a tokenizer.json",
        )


def beginning(tokenizer: Any) -> int | None:
    """The id that the tokenizer itself puts before a text, or None. Not what its `bos_token` merely names.

    Raises `ForgetkitError` where it puts several.
    """
    plain: list[int] = tokenizer("a b", add_special_tokens=False)["input_ids"]
    full: list[int] = tokenizer("a b", add_special_tokens=True)["input_ids"]
    front = next((n for n in range(len(full) - len(plain) + 1) if full[n : n + len(plain)] == plain), None)
    if front is None or front > 1:
        raise ForgetkitError("the tokenizer puts more than one token before a text, which is not supported")
    return full[0] if front else None


def _call(text: str, tokenizer: Any) -> tuple[_Int32, _Int32]:
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        truncation=False,
        padding=False,
        verbose=False,
    )
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    return ids, np.array(encoded["offset_mapping"], dtype=np.int32).reshape(-1, 2)


def _cuts(text: str, tokenizer: Any, piece: int) -> Iterator[tuple[int, _Int32]]:
    """Where to cut, and the offsets int32[2] of the token that begins there."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        return
    last = 0
    while len(text) - last > piece:
        places = _CUT.finditer(text, last + piece // 2, last + piece)
        for match in itertools.islice(places, _TRIES):
            first = _first_offsets(text, match.start(), tokenizer, backend)
            if first is not None:
                last = match.start()
                yield last, first
                break
        else:
            return


def _first_offsets(text: str, cut: int, tokenizer: Any, backend: Any) -> _Int32 | None:
    """Offsets int32[2] of the token that begins at `cut`, or None if it is not safe to cut there."""
    start, end = max(0, cut - _WINDOW), min(len(text), cut + _WINDOW)
    window = text[start:end]
    # With a normalizer, word spans are of the normalised text, and comparing encodings must do.
    if backend.normalizer is None:
        words = backend.pre_tokenizer.pre_tokenize_str(window)
        if not any(span[0] == cut - start for _, span in words):
            return None
    ids, offsets = _call(window, tokenizer)
    left_ids, left_offsets = _call(text[start:cut], tokenizer)
    right_ids, right_offsets = _call(text[cut:end], tokenizer)
    if not np.array_equal(ids, np.concatenate([left_ids, right_ids])):
        return None
    halves = np.concatenate([left_offsets, right_offsets + np.int32(cut - start)])
    place = len(left_ids)
    same = np.all(halves == offsets, axis=1)
    same[place] = True
    return offsets[place] + np.int32(start) if same.all() else None
