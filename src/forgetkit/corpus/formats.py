"""One reader per file format, in a registry by suffix: bytes in, raw texts out."""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from selectolax.lexbor import LexborHTMLParser

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.archives import Archive
from forgetkit.corpus.clean import Kind
from forgetkit.corpus.decode import decode

_HIDDEN = frozenset({"head", "script", "style", "template", "noscript", "svg", "nav", "iframe", "object", "-comment"})
_PARAGRAPHS = frozenset(
    [
        "p",
        "div",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "blockquote",
        "section",
        "article",
        "main",
        "header",
        "footer",
        "aside",
        "figure",
        "figcaption",
        "pre",
        "ul",
        "ol",
        "dl",
        "table",
        "hr",
        "form",
        "fieldset",
        "address",
        "details",
    ]
)
_LINES = frozenset(["br", "li", "tr", "dt", "dd", "caption", "option", "summary"])
_CELLS = frozenset({"td", "th"})


class Raw(NamedTuple):
    """One text as its file holds it. `key` tells the file's texts apart and is stable."""

    text: str
    key: str
    encoding: str
    kind: Kind
    title: str = ""
    warnings: tuple[str, ...] = ()


Reader = Callable[[bytes, str], Iterator[Raw]]
"""(bytes of the file, name for messages) -> texts. Raises `ForgetkitError`."""


def read_plain(data: bytes, where: str) -> Iterator[Raw]:
    """Plain text and Markdown (whose marks stay: they are part of the text)."""
    text, encoding, warnings = decode(data, where)
    yield Raw(text, "0", encoding, "plain", warnings=warnings)


def read_html(data: bytes, where: str) -> Iterator[Raw]:
    """What a reader of the page sees, one line per paragraph."""
    text, encoding, warnings = decode(data, where, declared=True)
    yield Raw(html_text(text), "0", encoding, "markup", warnings=warnings)


def html_text(source: str) -> str:
    """Visible text of an HTML page. Walks without recursion, so deep nesting does no harm."""
    node = LexborHTMLParser(source).root
    parts: list[str] = []
    pre = 0
    while node is not None:
        tag = node.tag or ""
        if tag == "-text":
            content = node.text_content or ""
            parts.append(content if pre else re.sub(r"[ \t\n\r\f]+", " ", content))
        elif tag not in _HIDDEN:
            parts.append(_break(tag))
            if node.child is not None:
                pre += tag == "pre"
                node = node.child
                continue
        while node is not None and node.next is None:
            node = node.parent
            if node is not None:
                parts.append(_break(node.tag or ""))
                pre -= node.tag == "pre"
        node = node.next if node is not None else None
    text = re.sub(r" *\n *" if "<pre" not in source else r" *\n", "\n", "".join(parts))
    return re.sub(r"\n{3,}", "\n\n", text)


def _break(tag: str) -> str:
    if tag in _PARAGRAPHS:
        return "\n\n"
    if tag in _LINES:
        return "\n"
    return "\t" if tag in _CELLS else ""


def read_epub(data: bytes, where: str) -> Iterator[Raw]:
    """An electronic book: the parts that its spine names, in that order, as one text."""
    archive = Archive(data, where)
    container = archive.xml("META-INF/container.xml")
    package = next((e.get("full-path", "") for e in container.iter() if _local(e) == "rootfile"), "")
    root = archive.xml(package)
    items = {e.get("id", ""): e for e in root.iter() if _local(e) == "item"}
    folder = posixpath.dirname(package)
    chapters: list[str] = []
    encodings: list[str] = []
    warnings: list[str] = []
    for reference in (e.get("idref", "") for e in root.iter() if _local(e) == "itemref"):
        item = items.get(reference)
        if item is None or "html" not in item.get("media-type", "html"):
            continue
        name = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", "")).split("#")[0]))
        decoded = decode(archive.read(name), where, declared=True)
        chapters.append(html_text(decoded.text))
        encodings.append(decoded.encoding)
        warnings += decoded.warnings
    if not chapters:
        raise ForgetkitError("book without readable chapters", where, "check that the file is complete")
    title = next((e.text or "" for e in root.iter() if _local(e) == "title"), "")
    encoding = ", ".join(sorted(set(encodings)))
    yield Raw("\n\n".join(chapters), "0", encoding, "markup", title, tuple(dict.fromkeys(warnings)))


def _local(element: Element) -> str:
    """Tag without its namespace."""
    return str(element.tag).rpartition("}")[2]


def read_docx(data: bytes, where: str) -> Iterator[Raw]:
    """A Word document's body: paragraphs and tables in order; headers, footers and notes are left out."""
    Archive(data, where).check_all()
    import docx  # slow to import, and rarely needed
    from docx.opc.exceptions import OpcError
    from docx.table import Table

    parts: list[str] = []
    try:
        for item in docx.Document(io.BytesIO(data)).iter_inner_content():
            if isinstance(item, Table):
                parts.append("\n".join("\t".join(cell.text for cell in row.cells) for row in item.rows))
            else:
                parts.append(item.text)
    except (OpcError, KeyError, ValueError, AttributeError, IndexError, TypeError, SyntaxError) as error:
        raise ForgetkitError("not a readable Word document", where, "save it again, or as plain text") from error
    yield Raw("\n\n".join(part for part in parts if part.strip()), "0", "utf-8", "markup")


def read_pdf(data: bytes, where: str) -> Iterator[Raw]:
    """The text layer of a PDF file; lines that hold only a page number are left out."""
    import pypdf  # slow to import, and rarely needed
    from pypdf.errors import PyPdfError

    pages: list[str] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ForgetkitError("PDF is protected by a password", where, "give a copy without one")
        for page in reader.pages:
            lines = page.extract_text().strip().split("\n")
            while lines and re.fullmatch(r"\W*\d{0,4}\W*", lines[0]):
                del lines[0]
            while lines and re.fullmatch(r"\W*\d{0,4}\W*", lines[-1]):
                del lines[-1]
            pages.append("\n".join(line.rstrip() for line in lines))
    # A damaged file makes the parser fail in any of these ways.
    except (PyPdfError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
            NotImplementedError, OSError, AssertionError) as error:  # fmt: skip
        raise ForgetkitError("not a readable PDF file", where, "save it again, or as plain text") from error
    text = "\n".join(page for page in pages if page)
    if not text.strip():
        raise ForgetkitError("PDF has no text in it (scanned pages?)", where, "run text recognition over it first")
    yield Raw(text, "0", "pdf", "pdf", warnings=("read from a PDF: check paragraphs and running heads",))


def read_jsonl(data: bytes, where: str) -> Iterator[Raw]:
    """One JSON object per line, with the key 'text' and optionally 'id' and 'title'."""
    decoded = decode(data, where)
    warnings = decoded.warnings
    for number, line in enumerate(decoded.text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ForgetkitError("not valid JSON", place, "put one JSON object on each line") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ForgetkitError("no string under the key 'text'", place, 'write lines like {"text": "..."}')
        key, title = record.get("id"), record.get("title")
        yield Raw(
            record["text"],
            str(key) if isinstance(key, str | int) else str(number - 1),
            decoded.encoding,
            "plain",
            title if isinstance(title, str) else "",
            warnings,
        )
        warnings = ()


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        ".txt": read_plain,
        ".md": read_plain,
        ".html": read_html,
        ".htm": read_html,
        ".epub": read_epub,
        ".docx": read_docx,
        ".pdf": read_pdf,
        ".jsonl": read_jsonl,
    }
)
