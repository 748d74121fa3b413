from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.relabel.shards import BlockLabels, LabelShards, id_type, write_index, write_shard


def labels(n: int, seed: int, kind: type = np.uint16) -> BlockLabels:
    rng = np.random.default_rng(seed)
    return BlockLabels(
        status=rng.integers(0, 6, n).astype(np.uint8),
        role=rng.integers(0, 3, n).astype(np.uint8),
        ids=rng.integers(0, 60_000, (n, 3)).astype(kind),
        log_probs=rng.normal(size=(n, 3)).astype(np.float16),
        log_rest=rng.normal(size=n).astype(np.float16),
    )


def test_blocks_of_any_length_come_back_from_several_shards(tmp_path: Path) -> None:
    blocks = [labels(n, n) for n in (5, 1, 9, 4, 2)]
    write_shard(tmp_path, 0, blocks[:3], {"a": "b"})
    write_shard(tmp_path, 3, blocks[3:], {"a": "b"})
    write_index(tmp_path, {0: 3, 3: 2}, {"a": "b"})
    shards = LabelShards(tmp_path)
    assert len(shards) == 5
    assert shards.metadata == {"a": "b"}
    for i in (4, 0, 2, 3, 1):
        for name in ("status", "role", "ids", "log_probs", "log_rest"):
            np.testing.assert_array_equal(getattr(shards[i], name), getattr(blocks[i], name))
    with pytest.raises(IndexError):
        shards[5]


def test_id_type_holds_the_vocabulary() -> None:
    assert id_type(65_536) is np.uint16
    assert id_type(65_537) is np.int32


def test_missing_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="no label index"):
        LabelShards(tmp_path)
