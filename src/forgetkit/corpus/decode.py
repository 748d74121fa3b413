"""From bytes to text: byte-order marks, strict UTF-8, a declared encoding, and only then detection."""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import NamedTuple

from charset_normalizer import from_bytes

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.clean import control_share

MAX_CONTROLS = 0.01
"""A larger share of control characters means that a file is not text."""
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""(?:charset|encoding)\s{0,9}=\s{0,9}["']?([A-Za-z0-9_.:-]{2,40})""")
_ALLOWED = re.compile(
    r"utf-?8|utf-?16(le|be)?|us-ascii|iso-?8859-\d{1,2}|latin-?1|(windows-|cp)\d{3,4}|koi8-[rtu]|mac(intosh|roman)"
    r"|shift[_-]jis|euc[_-](jp|kr)|iso-2022-jp|gbk|gb2312|gb18030|big5"
)
_SAMPLE = 2**18
_WESTERN = frozenset("àáâãäåæçèéêëìíîïñòóôöøùúûüßœÀÁÂÄÅÆÇÈÉÊËÍÎÑÓÔÖØÚÜŒ‘’“”„–—…•£€§©®°´«»¿¡")


class Decoded(NamedTuple):
    """Text, the encoding that it was in, and what the user should know about it."""

    text: str
    encoding: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes, where: str, *, declared: bool = False) -> Decoded:
    """Decode a text file; `declared` lets HTML and XML name their own encoding.

    Raises `ForgetkitError` for binary content (a NUL, or more than 1 % control characters) and for content
    that breaks the encoding its own byte-order mark promises.
    """
    decoded = _decode(data, where, declared)
    if control_share(decoded.text) > MAX_CONTROLS:
        raise ForgetkitError("binary content, not text", where, "give a text file, saved as UTF-8")
    return decoded


def _decode(data: bytes, where: str, declared: bool) -> Decoded:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return Decoded(data.decode(encoding), encoding.removesuffix("-sig"))
            except UnicodeDecodeError as error:
                if mark == codecs.BOM_UTF32_LE:
                    continue  # UTF-16 whose first character is a NUL: refused as binary by the caller
                what = f"starts with a {encoding.removesuffix('-sig')} mark but breaks at byte {error.start}"
                raise ForgetkitError(what, where, "save it again as UTF-8") from error
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError as error:
        bad = error.start
    if declared and (match := _DECLARED.search(data[:2048])):
        name = match[1].decode("ascii").lower()
        if _ALLOWED.fullmatch(name):
            try:
                return Decoded(data.decode(name), name, (f"not UTF-8; read as {name}, as it declares",))
            except (UnicodeDecodeError, LookupError):
                pass
    return _detect(data, bad, where)


def _detect(data: bytes, bad: int, where: str) -> Decoded:
    sample = data[max(0, bad - _SAMPLE // 2) : bad + _SAMPLE // 2]
    if b"\0" in sample:
        raise ForgetkitError("binary content, not text", where, "give a text file, saved as UTF-8")
    best = from_bytes(sample).best()
    names = [] if best is None else [best.encoding]
    western = sample.decode("cp1252", "replace")
    # Detection often takes French or English for a neighbouring code page, such as the Baltic one.
    if _is_western(western) and (best is None or _is_latin(str(best))):
        names.insert(0, "cp1252")
    for name in names:
        try:
            text = data.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
        return Decoded(text, name, (f"not UTF-8 (byte {bad}); read as {name}, please check",))
    raise ForgetkitError(f"not UTF-8 at byte {bad}, and no other encoding fits", where, "save it as UTF-8")


def _is_western(text: str) -> bool:
    """Whether nearly all characters beyond ASCII are those of Western European prose."""
    beyond = [c for c in text if c >= "\x80"]
    return sum(c in _WESTERN for c in beyond) >= 0.95 * len(beyond)


def _is_latin(text: str) -> bool:
    """Whether the letters beyond ASCII are mostly of the Latin script."""
    letters = [c for c in text if c >= "\x80" and c.isalpha()]
    return 2 * sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) >= len(letters)
