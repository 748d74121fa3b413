"""Stage folders that are either complete and unchanged, or not there at all.

A stage fills a temporary folder; `commit` hashes and syncs every file, writes ``MANIFEST.json`` last and
renames the folder into place. `find_complete` accepts only a folder that is byte for byte what was committed.

Names inside a run folder: ``<stage>/`` complete; ``.tmp-*`` being filled; ``.stale-*`` being replaced;
``.corrupt-*`` set aside, never deleted; ``.work-*`` progress of a stage that resumes; ``.lock`` the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forgetkit.core.errors import ForgetkitError

log = logging.getLogger("forgetkit")

MANIFEST = "MANIFEST.json"
SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FINGERPRINT = re.compile(r"[A-Za-z0-9._]+")
_STALE = re.compile(r"\.stale-(?P<stage>.+)-[0-9a-f]{32}")
_SYSTEM_LEFTOVERS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


class FileEntry(BaseModel):
    """One file of a stage folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mutable: bool = False
    """A person may edit this file: it must exist, but size and hash are not enforced."""


class Manifest(BaseModel):
    """What ``MANIFEST.json`` says about its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stage: str
    fingerprint: str
    schema_version: int = SCHEMA
    parents: dict[str, str] = {}
    settings: dict[str, Any] = {}
    seed: int | None = None
    threads: int | None = None
    device: str | None = None
    versions: dict[str, str] = {}
    created: str = ""
    seconds: float = 0.0
    """Wall time from opening the temporary folder to its manifest, unless the stage gave its own."""
    extra: dict[str, Any] = {}
    """Whatever else the stage passed to `commit`."""
    files: dict[str, FileEntry] = {}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal, read in a stream."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """SHA-256 of the canonical JSON of ``value`` (sorted keys; settings and paths allowed; NaN refused)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no JSON form")


# --- reading -------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None when there is none or it cannot be read as one.

    Raises ForgetkitError for a manifest of a newer schema: such a folder is not ours to call damaged.
    """
    try:
        raw = json.loads((folder / MANIFEST).read_bytes(), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ForgetkitError(
            f"was written by a newer forgetkit (manifest schema {version})",
            str(folder),
            "use that version, or another run folder",
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError:
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every entry below ``folder`` that is not a directory, as (POSIX name, path), in sorted order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(root) / name
            yield path.relative_to(folder).as_posix(), path


def _is_leftover(name: str, mutable: Collection[str]) -> bool:
    """Whether an unlisted file is an editor's copy of an editable file, or a file manager's mark."""
    path = Path(name)
    if path.name in _SYSTEM_LEFTOVERS:
        return True
    for listed in (Path(item) for item in mutable):
        n = listed.name
        copies = {f"{n}~", f"{n}.bak", f"{n}.orig", f"#{n}#", f".#{n}", f".{n}.swp", f".{n}.swo", f".{n}.un~"}
        if path.parent == listed.parent and path.name in copies:
            return True
    return False


def verify(folder: Path, mutable: Collection[str] = ()) -> Manifest:
    """Check a stage folder against its manifest: all files there, right size and SHA-256, and none besides.

    ``mutable``: names whose content is not enforced, besides those the manifest itself marks.
    Raises ForgetkitError naming the first file that is wrong.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ForgetkitError("missing or not readable as a manifest", str(folder / MANIFEST))
    editable = {name for name, entry in manifest.files.items() if entry.mutable} | set(mutable)
    present = dict(_walk(folder))
    present.pop(MANIFEST)
    for name, entry in manifest.files.items():
        path = present.pop(name, None)
        if path is None:
            raise ForgetkitError("file is missing", str(folder / name))
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ForgetkitError("is not a plain file", str(path))
        if name in editable:
            continue
        if status.st_size != entry.bytes:
            raise ForgetkitError(f"has {status.st_size} bytes, {entry.bytes} were written", str(path))
        if hash_file(path) != entry.sha256:
            raise ForgetkitError("content differs from what was written (SHA-256)", str(path))
    for name in present:
        if not _is_leftover(name, editable):
            raise ForgetkitError("file does not belong here", str(folder / name))
    return manifest


def find_complete(run: Path, stage: str, fingerprint: str) -> Path | None:
    """``RUN/<stage>/`` when it is whole and has this fingerprint, else None.

    A folder of another fingerprint is left alone (the next `commit` replaces it); a damaged one is moved to
    ``RUN/.corrupt-<stage>-<time>/`` with a warning. Call with the run lock held.
    """
    folder = run / stage
    if not os.path.lexists(folder):
        return None
    manifest = read_manifest(folder)
    if manifest is not None and (manifest.fingerprint != fingerprint or manifest.stage != stage):
        return None
    try:
        verify(folder)
    except ForgetkitError as error:
        _set_aside(run, stage, folder, error)
        return None
    return folder


def _set_aside(run: Path, stage: str, folder: Path, error: ForgetkitError) -> None:
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = run / f".corrupt-{stage}-{moment}"
    folder.rename(aside)
    log.warning("%s; stage %s is moved to %s (with any edits made in it) and made again", error, stage, aside)


# --- writing -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def commit(
    run: Path,
    stage: str,
    fingerprint: str,
    parents: Mapping[str, str],
    extra: Mapping[str, Any],
    *,
    mutable: Collection[str] = (),
) -> Iterator[Path]:
    """Give a folder to fill; when the block ends well, it becomes ``RUN/<stage>/`` in one step.

    ``extra`` fills the manifest's settings, seed, threads, device, versions and seconds; other keys are kept
    under ``extra``. ``mutable`` names files a person may edit later. An exception (KeyboardInterrupt too)
    removes what was written and leaves an earlier ``RUN/<stage>/`` as it was. Success removes the stage's
    work folders.
    Raises ForgetkitError when the disk is full, read-only or failing.
    """
    assert _NAME.fullmatch(stage), f"bad stage name {stage!r}"
    assert _FINGERPRINT.fullmatch(fingerprint), f"bad fingerprint {fingerprint!r}"
    temporary = run / f".tmp-{stage}-{uuid.uuid4().hex}"
    begun = time.monotonic()
    with _disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            fields = dict(extra)
            fields.setdefault("seconds", round(time.monotonic() - begun, 3))
            _seal(temporary, stage, fingerprint, parents, fields, mutable)
            _put_in_place(run, stage, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    _remove_work(run, stage)


def _seal(
    folder: Path,
    stage: str,
    fingerprint: str,
    parents: Mapping[str, str],
    fields: dict[str, Any],
    mutable: Collection[str],
) -> None:
    """Hash and sync every file of ``folder``, then write and sync its manifest."""
    files: dict[str, FileEntry] = {}
    for name, path in _walk(folder):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode), f"{name} is not a plain file"
        assert name != MANIFEST, "a stage must not write its own manifest"
        files[name] = FileEntry(bytes=status.st_size, sha256=hash_file(path), mutable=name in mutable)
        sync(path)
    assert set(mutable) <= set(files), f"mutable files were not written: {sorted(set(mutable) - set(files))}"
    known = {k: fields.pop(k) for k in ("settings", "seed", "threads", "device", "versions") if k in fields}
    if isinstance(known.get("settings"), BaseModel):
        known["settings"] = known["settings"].model_dump(mode="json")
    if known.get("device") is not None:
        known["device"] = str(known["device"])
    manifest = Manifest(
        stage=stage,
        fingerprint=fingerprint,
        parents=dict(parents),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=float(fields.pop("seconds")),
        extra=fields,
        files=files,
        **known,
    )
    text = json.dumps(manifest.model_dump(), indent=1, sort_keys=True, allow_nan=False, default=_plain)
    path = folder / MANIFEST
    path.write_text(text + "\n", encoding="utf-8")
    sync(path)
    for root, _, _ in os.walk(folder, topdown=False):
        sync(Path(root))


def _put_in_place(run: Path, stage: str, temporary: Path) -> None:
    """Rename ``temporary`` to ``RUN/<stage>``; what was there before survives any failure on the way."""
    target = run / stage
    stale = run / f".stale-{stage}-{uuid.uuid4().hex}"
    replaces = os.path.lexists(target)
    if replaces:
        target.rename(stale)
    try:
        temporary.rename(target)
    except BaseException:
        if replaces:
            stale.rename(target)
        raise
    sync(run)
    if replaces:
        # only now is the new folder durable, so only now may the old one go
        _remove(stale)


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Delete a folder, link or file; a failure is only logged, since the next start tries again."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        log.warning("%s could not be removed: %s", path, error.strerror)


_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EROFS: ("the disk is read-only", "choose another run folder"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, or choose another run folder"),
}


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a failing disk into one line, whether Python or safetensors ('... (os error 28)') wrote."""
    try:
        yield
    except ForgetkitError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found.group(1)) if number is None and found else number
        if number not in _DISK:
            raise
        what, remedy = _DISK[number]
        raise ForgetkitError(f"{what}; what was complete before is intact", str(folder), remedy) from error


# --- restarting ----------------------------------------------------------------------------------------


def clean_orphans(run: Path) -> None:
    """Remove what a killed process left behind; bring back a folder that was about to be replaced.

    Only with the run lock held: otherwise the leftovers may be another process's work.
    """
    for path in sorted(run.glob(".tmp-*")):
        _remove(path)
    for path in sorted(run.glob(".stale-*")):
        found = _STALE.fullmatch(path.name)
        if found is None or os.path.lexists(run / found["stage"]):
            _remove(path)
            continue
        try:
            verify(path)
        except ForgetkitError as error:
            _set_aside(run, found["stage"], path, error)
            continue
        path.rename(run / found["stage"])
        sync(run)


def work_folder(run: Path, stage: str, fingerprint: str) -> Path:
    """A folder kept over restarts for a stage that resumes inside; `commit` of that stage removes it."""
    assert _NAME.fullmatch(stage), f"bad stage name {stage!r}"
    assert _FINGERPRINT.fullmatch(fingerprint), f"bad fingerprint {fingerprint!r}"
    folder = run / f".work-{stage}-{fingerprint[:16]}"
    with _disk_errors(run):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remove_work(run: Path, stage: str) -> None:
    for path in run.glob(".work-*"):
        name, _, fingerprint = path.name.removeprefix(".work-").rpartition("-")
        if name == stage and _FINGERPRINT.fullmatch(fingerprint):
            _remove(path)


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold ``RUN/.lock`` (flock; the kernel frees it when the process dies; the file itself stays).

    Raises ForgetkitError at once, naming the holder, when another process has it.
    """
    path = run / ".lock"
    with _disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO):
                raise
            remedy = "look at what this file is, or choose another run folder"
            raise ForgetkitError(f"cannot be opened as a lock file ({error.strerror})", str(path), remedy) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ForgetkitError("is not a plain file", str(path), "choose another run folder")
        _acquire(handle, run)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": datetime.now(UTC).isoformat()}
        with _disk_errors(run):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _acquire(handle: int, run: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        remedy = "wait for it to end, or use another run folder"
        raise ForgetkitError(f"is in use by {_holder(handle)}", str(run), remedy) from error
    except OSError as error:
        raise ForgetkitError(
            f"cannot be locked ({error.strerror})", str(run), "put the run folder on a local disk"
        ) from error


def _holder(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 4096, 0))
        pid, host, start = int(told["pid"]), str(told["host"]), str(told["start"])
    except (ValueError, KeyError, TypeError):
        return "another process"
    text = f"process {pid} on {host} since {start}"
    return "".join(letter for letter in text if letter.isprintable())
