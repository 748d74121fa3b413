"""From files and folders to documents: find, read safely, hand to the reader for the suffix, clean, name.

`formats.READERS` says what each suffix means. Nothing here follows a link out of a given folder, opens
anything but regular files, or puts a passage of the text into a message.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.clean import clean, printable
from forgetkit.corpus.formats import READERS, Raw
from forgetkit.settings import CorpusSettings

MAX_FILE_BYTES = 2**30
"""Larger single files are refused."""

logger = logging.getLogger("forgetkit")


@dataclass(frozen=True)
class Document:
    """One cleaned text; `sha256` is of it. `id` is stable: relative name and index (or the file's own id)."""

    id: str
    name: str
    text: str
    sha256: str
    encoding: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What `read` found: documents in order, and warnings that belong to no document (skipped files)."""

    documents: list[Document]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    path: Path
    name: str


def read_paths(paths: Iterable[Path | str], settings: CorpusSettings) -> list[Document]:
    """Every document of the given files and folders, cleaned. Raises `ForgetkitError`; see `read`."""
    return read(paths, settings).documents


def read(paths: Iterable[Path | str], settings: CorpusSettings) -> Reading:
    """Read files and folders (recursively, in sorted order, without hidden files).

    Raises `ForgetkitError` for a path that is missing, unreadable, of an unknown suffix, not a regular file,
    a link out of its folder, or not text; and when nothing readable is left at all.
    """
    given = [Path(path) for path in paths]
    if not given:
        raise ForgetkitError("no files were given", "corpus", "name at least one file or folder")
    warnings: list[str] = []
    documents: list[Document] = []
    seen: set[str] = set()
    for found in _find(given, warnings):
        empty = True
        for raw in READERS[found.path.suffix.lower()](_read_bytes(found.path), found.name):
            text = clean(
                raw.text,
                kind=raw.kind,
                join_lines=settings.join_lines,
                drop_boilerplate=settings.drop_boilerplate,
            )
            if text.strip():
                documents.append(_document(raw, found.name, text, seen))
                empty = False
        if empty:
            warnings.append(f"{found.name}: no text in it, skipped")
    if not documents:
        places = ", ".join(printable(str(path)) for path in given)
        raise ForgetkitError("no text found", places, f"give files of these kinds: {supported()}")
    for warning in (*warnings, *(w for document in documents for w in document.warnings)):
        logger.warning(warning)
    return Reading(documents, tuple(warnings))


def input_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files that `read` would read, in order. Raises `ForgetkitError` as `read` does for bad paths."""
    return [found.path for found in _find([Path(path) for path in paths], [])]


def supported() -> str:
    """The suffixes that can be read, for messages."""
    return " ".join(sorted(READERS))


def _document(raw: Raw, name: str, text: str, seen: set[str]) -> Document:
    identifier = _unique(f"{name}#{' '.join(printable(raw.key).split())}", seen)
    title = " ".join(printable(raw.title).split())
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return Document(
        id=identifier,
        name=f"{name}: {title}" if title else name,
        text=text,
        sha256=digest,
        encoding=raw.encoding,
        warnings=tuple(f"{name}: {warning}" for warning in raw.warnings),
    )


def _unique(name: str, seen: set[str]) -> str:
    candidate, count = name, 1
    while candidate in seen:
        count += 1
        candidate = f"{name}~{count}"
    seen.add(candidate)
    return candidate


def _find(given: Sequence[Path], warnings: list[str]) -> Iterator[_Found]:
    """Files to read, each once however often it is reached, with names that do not depend on the machine."""
    names: set[str] = set()
    reached: set[str] = set()
    for path in given:
        where = printable(str(path))
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise ForgetkitError("no such file or folder", where, "check the path") from error
        except (OSError, ValueError) as error:
            raise ForgetkitError("cannot be opened", where, "check the path and its permissions") from error
        if stat.S_ISDIR(mode):
            files = list(_walk(path, warnings))
        elif path.suffix.lower() in READERS:
            files = [_Found(path, printable(path.name))]
        elif not stat.S_ISREG(mode):
            raise _irregular(where)
        else:
            what = f"unknown kind of file '{printable(path.suffix)}'"
            raise ForgetkitError(what, where, f"supported: {supported()}")
        for found in files:
            real = os.path.realpath(found.path)
            if real in reached:
                warnings.append(f"{found.name}: given more than once, read once")
                continue
            reached.add(real)
            yield replace(found, name=_unique(found.name, names))


def _walk(folder: Path, warnings: list[str]) -> Iterator[_Found]:
    """Readable files under `folder`. Links may point inside it only; linked folders are not entered."""
    root = Path(os.path.realpath(folder))
    prefix = printable(root.name)

    def fail(error: OSError) -> None:
        raise ForgetkitError(
            "folder cannot be listed", printable(str(error.filename)), "check its permissions"
        ) from error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _check_link(Path(place) / name, root)
        for name in sorted(files):
            path = Path(place) / name
            if name.startswith("."):
                continue
            shown = printable(f"{prefix}/{path.relative_to(folder).as_posix()}")
            _check_link(path, root)
            if not stat.S_ISREG(path.stat().st_mode):
                raise _irregular(printable(str(path)))
            if path.suffix.lower() not in READERS:
                warnings.append(f"{shown}: unknown kind of file, skipped (supported: {supported()})")
                continue
            yield _Found(path, shown)


def _check_link(path: Path, root: Path) -> None:
    if not path.is_symlink():
        return
    where = printable(str(path))
    try:
        real = Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise ForgetkitError("symbolic link leads nowhere", where, "remove the link") from error
    if not real.is_relative_to(root):
        raise ForgetkitError("symbolic link leads out of the given folder", where, "name the file itself instead")


def _irregular(where: str) -> ForgetkitError:
    return ForgetkitError("not a regular file (a device, pipe or socket)", where, "give a file or a folder of files")


def _read_bytes(path: Path) -> bytes:
    """The bytes of a regular file. What is opened is checked, not what the name pointed to a moment ago."""
    where = printable(str(path))
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise ForgetkitError("cannot be opened", where, "check the path and its permissions") from error
    with open(handle, "rb") as stream:  # noqa: PTH123 (a descriptor, not a path)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _irregular(where)
        if status.st_size > MAX_FILE_BYTES:
            raise ForgetkitError(f"larger than {MAX_FILE_BYTES // 2**20} MiB", where, "split it into several files")
        try:
            return stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ForgetkitError("cannot be read", where, "check the file") from error
