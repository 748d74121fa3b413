"""Checkpoints that are believed only when every byte is as written, and signals that wait for a step."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from forgetkit.core.artifacts import hash_file, sync

MANIFEST = "MANIFEST.json"
KEPT_CHECKPOINTS = 2
_log = logging.getLogger("forgetkit")


class Signals:
    """While active, the first SIGINT or SIGTERM is only noted; the second ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        _log.warning("signal %d: stopping after this step (once more: stop at once)", number)

    def __enter__(self) -> Signals:
        # Python accepts handlers from the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, verified or not, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step_of)


def _files(checkpoint: Path) -> dict[str, Path]:
    paths = sorted(p for p in checkpoint.rglob("*") if not p.is_dir() and p != checkpoint / MANIFEST)
    return {p.relative_to(checkpoint).as_posix(): p for p in paths}


def commit_checkpoint(checkpoint: Path, identity: str) -> None:
    """Make a written checkpoint durable and then valid: fsync and hash every file, write the manifest last.

    Older checkpoints than the last `KEPT_CHECKPOINTS` committed ones are removed.
    """
    # A pickle of the arguments that nothing reads.
    (checkpoint / "training_args.bin").unlink(missing_ok=True)
    files = {}
    for name, path in _files(checkpoint).items():
        sync(path)
        files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    temporary = checkpoint.parent / f".{checkpoint.name}.manifest"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump({"identity": identity, "files": files}, stream, allow_nan=False, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    for folder in {path.parent for path in _files(checkpoint).values()}:
        sync(folder)
    temporary.rename(checkpoint / MANIFEST)
    sync(checkpoint)
    sync(checkpoint.parent)
    committed = [path for path in _checkpoints(checkpoint.parent) if (path / MANIFEST).is_file()]
    for old in committed[:-KEPT_CHECKPOINTS]:
        # Renamed first, so that a removal cut short is not mistaken for a damaged checkpoint.
        shutil.rmtree(old.rename(old.parent / f".old-{old.name}"))


def _problem(checkpoint: Path, identity: str) -> str:
    """Why a checkpoint cannot be continued from; empty when it can."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        belongs = manifest["identity"] == identity
    except FileNotFoundError:
        return "it was not completed"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is damaged"
    if not belongs:
        return "it belongs to a run with other settings or inputs"
    files = _files(checkpoint)
    if files.keys() != expected.keys():
        return f"files missing or added: {', '.join(sorted(files.keys() ^ expected.keys()))}"
    for name, path in files.items():
        if path.is_symlink() or (path.stat().st_size, hash_file(path)) != expected[name]:
            return f"{name} is damaged"
    return ""


def newest_checkpoint(folder: Path, identity: str) -> Path | None:
    """The newest checkpoint under `folder` that verifies; newer ones are renamed `.corrupt-...`."""
    for leftover in [*folder.glob(".old-checkpoint-*"), *folder.glob(".checkpoint-*.manifest")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    for checkpoint in reversed(_checkpoints(folder)):
        problem = _problem(checkpoint, identity)
        if not problem:
            return checkpoint
        number = 0
        while (aside := folder / f".corrupt-{checkpoint.name}-{number}").exists():
            number += 1
        checkpoint.rename(aside)
        _log.warning("%s set aside: %s", checkpoint.name, problem)
    return None
