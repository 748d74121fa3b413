"""Documents as blocks of tokens. Each is tokenised once, as a whole; blocks are slices of that stream.

Nothing is decoded and tokenised again, no block is empty, none spans two documents (fault T9).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.readers import Document
from forgetkit.corpus.tokenise import beginning, encode

ARRAYS = "blocks.safetensors"
DOCUMENTS = "documents.jsonl"


@dataclass(frozen=True)
class Block:
    """A slice of one document's tokens.

    `ids` int32[n]; `offsets` int32[n, 2], positions in the document's text, as the tokenizer gave them.
    `char_start:char_end` is the block's window of that text: the windows of a document follow each other
    without gaps, also where token offsets leave white space out. Two windows overlap by one character where
    the bytes of one character are in two blocks.
    """

    index: int
    document: int
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    char_start: int
    char_end: int


@dataclass(frozen=True)
class BlockedCorpus:
    """All blocks of some documents.

    `ids` int32[N] and `offsets` int32[N, 2] are the documents' token streams one after the other;
    `bounds` int64[B, 3] = (document, first token, last token exclusive), in global token indices.
    `bos_id` is what the tokenizer puts before a text, if anything; it is not among `ids`.
    """

    documents: tuple[Document, ...]
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    bounds: NDArray[np.int64]
    bos_id: int | None
    block_tokens: int

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Block:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        document, start, end = (int(value) for value in self.bounds[index])
        offsets = self.offsets[start:end]
        char_start = 0
        if index and self.bounds[index - 1, 0] == document:
            before = self.offsets[int(self.bounds[index - 1, 1]) : start]
            char_start = int(min(before[:, 1].max(), offsets[:, 0].min()))
        return Block(index, document, self.ids[start:end], offsets, char_start, int(offsets[:, 1].max()))

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    @property
    def n_tokens(self) -> int:
        """Tokens in all blocks, without any beginning-of-text tokens."""
        return len(self.ids)

    def save(self, folder: Path) -> None:
        """Write `blocks.safetensors` and `documents.jsonl` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        # One key only: safetensors writes several in an order that changes from run to run.
        metadata = {"corpus": json.dumps({"block_tokens": self.block_tokens, "bos_id": self.bos_id})}
        arrays = {"ids": self.ids, "offsets": self.offsets, "bounds": self.bounds}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ARRAYS, metadata)
        with (folder / DOCUMENTS).open("w", encoding="utf-8", newline="\n") as stream:
            for document in self.documents:
                stream.write(json.dumps(asdict(document), ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> BlockedCorpus:
        """Read what `save` wrote. Raises `ForgetkitError` naming the file that is missing or damaged."""
        where = folder / ARRAYS
        try:
            with safe_open(where, framework="numpy") as stored:
                metadata: dict[str, str] = stored.metadata() or {}
                arrays: dict[str, Any] = {name: stored.get_tensor(name) for name in ("ids", "offsets", "bounds")}
            fields = json.loads(metadata["corpus"])
            bos_id, block_tokens = fields["bos_id"], int(fields["block_tokens"])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _damaged(where, "cannot be read") from error
        corpus = cls(_load_documents(folder / DOCUMENTS), bos_id=bos_id, block_tokens=block_tokens, **arrays)
        if fault := corpus._fault():
            raise _damaged(where, fault)
        return corpus

    def _fault(self) -> str:
        """What is inconsistent in the arrays, or ''."""
        count = len(self.ids)
        if self.ids.dtype != np.int32 or self.offsets.dtype != np.int32 or self.bounds.dtype != np.int64:
            return "arrays of the wrong type"
        if self.ids.ndim != 1 or self.offsets.shape != (count, 2) or self.bounds.ndim != 2 or self.bounds.shape[1] != 3:
            return "arrays of the wrong shape"
        document, start, end = self.bounds.T
        if not np.array_equal(np.r_[0, end], np.r_[start, count]) or np.any(start >= end):
            return "blocks that do not follow each other"
        if np.any(document < 0) or np.any(document >= len(self.documents)) or np.any(np.diff(document) < 0):
            return "blocks of documents that are not there"
        lengths = np.array([len(d.text) for d in self.documents], dtype=np.int64)
        if np.any(self.offsets < 0) or np.any(self.offsets > np.repeat(lengths[document], end - start)[:, None]):
            return "offsets outside the text"
        return ""


def _damaged(where: Path, what: str) -> ForgetkitError:
    return ForgetkitError(f"damaged corpus: {what}", str(where), "remove the stage's folder and run again")


def _load_documents(path: Path) -> tuple[Document, ...]:
    documents = []
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for line in stream:
                fields = json.loads(line)
                documents.append(Document(**{**fields, "warnings": tuple(fields["warnings"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "cannot be read") from error
    for document in documents:
        if hashlib.sha256(document.text.encode("utf-8")).hexdigest() != document.sha256:
            raise _damaged(path, "a text does not match its sha256")
    return tuple(documents)


def block_documents(documents: Sequence[Document], tokenizer: Any, block_tokens: int) -> BlockedCorpus:
    """Tokenise each document once and cut its tokens into blocks of `block_tokens`; the last may be shorter.

    A last block of a single token would have nothing to predict: the block before it gives it one of its own.
    (A document of one token is a block of one.) Raises `ForgetkitError` for a tokenizer without offsets.
    """
    assert block_tokens >= 3, "a block must be able to give a token away and still predict something"
    ids: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    offsets: list[NDArray[np.int32]] = [np.zeros((0, 2), np.int32)]
    bounds: list[tuple[int, int, int]] = []
    total = 0
    for index, document in enumerate(documents):
        document_ids, document_offsets = encode(document.text, tokenizer, document.name)
        ids.append(document_ids)
        offsets.append(document_offsets)
        edges = _edges(len(document_ids), block_tokens)
        bounds += [(index, total + start, total + end) for start, end in itertools.pairwise(edges)]
        total += len(document_ids)
    return BlockedCorpus(
        documents=tuple(documents),
        ids=np.concatenate(ids),
        offsets=np.concatenate(offsets),
        bounds=np.array(bounds, dtype=np.int64).reshape(-1, 3),
        bos_id=beginning(tokenizer),
        block_tokens=block_tokens,
    )


def _edges(count: int, size: int) -> list[int]:
    """Where blocks of `size` begin and end in `count` tokens."""
    edges = [*range(0, count, size), count] if count else []
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        edges[-2] -= 1
    return edges
