"""Zip archives (EPUB, DOCX) from strangers: read in memory within caps, nothing is ever extracted to disk.

Sizes are counted while inflating, because headers lie; names that could leave the archive are refused;
XML may hold neither DTD nor entities.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from forgetkit.core.errors import ForgetkitError

MAX_FILES = 5_000
MAX_TOTAL = 512 * 2**20
MAX_RATIO = 100
RATIO_FLOOR = 2**20
"""Entries that inflate to no more than this may have any ratio: blank pages shrink well, and are harmless."""
_CHUNK = 2**16
_BAD_NAME = re.compile(r"^/|\\|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)|\0")


class Archive:
    """A zip archive in memory. Raises `ForgetkitError` if it is damaged, encrypted, hostile or over a cap."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        self._inflated = 0
        if data.count(b"PK\x01\x02") > MAX_FILES:
            raise self.refuse(f"archive holds more than {MAX_FILES} files")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise ForgetkitError("not a readable zip archive", where, "check that the file is complete") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if _BAD_NAME.search(info.filename):
                raise self.refuse("archive has an entry whose name leads out of it")
            if info.filename in self._entries:
                raise self.refuse("archive has two entries of the same name")
            if info.flag_bits & 0x1:
                raise ForgetkitError("archive is encrypted", where, "give a copy without protection")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refuse("archive uses an unusual compression")
            self._entries[info.filename] = info

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Entry names, in the archive's order."""
        return list(self._entries)

    def refuse(self, what: str) -> ForgetkitError:
        """An error that names this archive."""
        return ForgetkitError(what, self.where, "refused; unpack it yourself if you trust it")

    def read(self, name: str) -> bytes:
        """The bytes of one entry."""
        info = self._entries.get(name)
        if info is None:
            raise ForgetkitError(
                "archive lacks a part that it refers to", self.where, "check that the file is complete"
            )
        cap = max(RATIO_FLOOR, MAX_RATIO * info.compress_size)
        parts: list[bytes] = []
        size = 0
        try:
            with self._zip.open(info) as stream:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    self._inflated += len(chunk)
                    if size > cap:
                        raise self.refuse(f"an entry inflates more than {MAX_RATIO}:1")
                    if self._inflated > MAX_TOTAL:
                        raise self.refuse(f"archive inflates to more than {MAX_TOTAL // 2**20} MiB")
                    parts.append(chunk)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise ForgetkitError("archive is damaged", self.where, "check that the file is complete") from error
        return b"".join(parts)

    def xml(self, name: str) -> Element:
        """One entry parsed as XML, without DTD or entities."""
        try:
            root: Element = fromstring(self.read(name), forbid_dtd=True)
        except DefusedXmlException as error:
            raise self.refuse("archive has XML with a DTD or entities") from error
        except (ParseError, ValueError, LookupError) as error:
            raise ForgetkitError(
                "archive has XML that does not parse", self.where, "check that the file is complete"
            ) from error
        return root

    def check_all(self) -> None:
        """Inflate every entry within the caps and parse all XML, before another library opens the archive."""
        for name in self._entries:
            if name.lower().endswith((".xml", ".rels")):
                self.xml(name)
            else:
                self.read(name)
