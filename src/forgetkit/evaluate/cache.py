"""Measurements already made, on disk, so that a killed evaluation goes on where it stopped.

One file per (model, measure, input, settings); written to a temporary name, flushed, renamed: a file that
exists is complete. Arrays are safetensors, small values JSON in the file's header.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from forgetkit.core.artifacts import hash_json

_LOG = logging.getLogger("forgetkit")


@dataclass(frozen=True)
class Part:
    """One measurement of one model: arrays, and small values that JSON can hold."""

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]


class Store:
    """Parts by key under `folder`; anything unreadable counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path:
        """File of a key (any JSON value that names everything the measurement depends on)."""
        return self.folder / f"{hash_json(key)[:40]}.safetensors"

    def get(self, key: dict[str, Any]) -> Part | None:
        """The part stored under `key`, or None."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                return Part(arrays, json.loads(file.metadata()["info"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            _LOG.warning("a cached measurement cannot be read and is made again")
            return None

    def put(self, key: dict[str, Any], part: Part) -> None:
        """Store `part`; afterwards it survives a kill."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        arrays = {name: np.ascontiguousarray(array) for name, array in part.arrays.items()}
        save_file(arrays, temporary, metadata={"info": json.dumps(part.info, allow_nan=False)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
