"""Label shards on disk: one row per token of the corpus, typed and compact, readable block by block.

A shard is a safetensors file of consecutive blocks. Ids are 16 bit when the vocabulary allows it,
log-probabilities half precision (their rounding, 5e-4 relative, is far below the labels' own noise).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from forgetkit.core.errors import ForgetkitError

INDEX = "index.json"


@dataclass(frozen=True)
class BlockLabels:
    """Labels of one block: n positions, K kept entries."""

    status: NDArray[np.uint8]
    """`consistency.Status` of every position; uint8 [n]."""
    role: NDArray[np.uint8]
    """`consistency.Role` of every position; uint8 [n]."""
    ids: NDArray[np.uint16 | np.int32]
    """Kept vocabulary ids, most probable first; [n, K]; zero where the position carries no loss."""
    log_probs: NDArray[np.float16]
    """Their log-probabilities, nats; [n, K]."""
    log_rest: NDArray[np.float16]
    """Log-mass of all other entries; [n]; -inf for hard labels."""


FIELDS = ("status", "role", "ids", "log_probs", "log_rest")


def id_type(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Smallest id type that holds `vocab_size` entries."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max + 1 else np.int32


def shard_file(folder: Path, first_block: int) -> Path:
    """Where the shard that begins with `first_block` lies."""
    return folder / f"labels-{first_block:07d}.safetensors"


def write_shard(folder: Path, first_block: int, blocks: Sequence[BlockLabels], metadata: dict[str, Any]) -> Path:
    """Write consecutive blocks as one shard; `metadata` (provenance) goes into the file's header."""
    path = shard_file(folder, first_block)
    lengths = np.array([len(b.status) for b in blocks], np.int64)
    arrays = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in FIELDS}
    partial = path.with_suffix(".partial")
    # One key: safetensors does not keep the order of several, and the file is to be the same bytes each time.
    header = {"forgetkit": json.dumps(metadata, sort_keys=True, allow_nan=False)}
    save_file({**arrays, "lengths": lengths}, str(partial), metadata=header)
    partial.replace(path)
    return path


def write_index(folder: Path, shards: dict[int, int], metadata: dict[str, Any]) -> None:
    """Write the index: first block -> number of blocks of each shard, and the provenance."""
    rows = [{"first": first, "blocks": shards[first]} for first in sorted(shards)]
    (folder / INDEX).write_text(json.dumps({"shards": rows, "metadata": metadata}, indent=1, allow_nan=False))


class LabelShards:
    """Read access to the labels of a folder, block by block; shards are memory-mapped."""

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text())
        except FileNotFoundError as error:
            raise ForgetkitError(
                "no label index", where=str(folder), remedy="run the labels stage again: forgetkit run"
            ) from error
        self.metadata: dict[str, Any] = index["metadata"]
        self._starts = [int(row["first"]) for row in index["shards"]]
        self._files = [shard_file(folder, first) for first in self._starts]
        self._count = sum(int(row["blocks"]) for row in index["shards"])
        self._open: dict[int, tuple[Any, NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, block: int) -> BlockLabels:
        if not 0 <= block < self._count:
            raise IndexError(block)
        shard = int(np.searchsorted(self._starts, block, side="right")) - 1
        file, edges = self._shard(shard)
        low, high = edges[block - self._starts[shard]], edges[block - self._starts[shard] + 1]
        # Rows alone: a shard's arrays, once fetched whole, would stay; a corpus of 1e9 tokens has 260 GB of them.
        return BlockLabels(**{name: file.get_slice(name)[low:high] for name in FIELDS})

    def _shard(self, number: int) -> tuple[Any, NDArray[np.int64]]:
        if number not in self._open:
            file: Any = safe_open(str(self._files[number]), framework="numpy")
            self._open[number] = (file, np.concatenate([[0], np.cumsum(file.get_tensor("lengths"))]))
        return self._open[number]
