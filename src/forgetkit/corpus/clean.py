"""Clean text: pure functions from what a file holds to what a model should read. `clean` is idempotent.

Order matters: characters first (so that every later rule sees plain spaces and line feeds), then marked
boilerplate, then wrapped lines, then blank lines.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Kind = Literal["plain", "markup", "pdf"]
"""Where text comes from: 'plain' may be wrapped, 'markup' never is, 'pdf' also has ligatures and hyphens."""

MAX_WRAP = 100
"""Lines longer than this are not taken for wrapped ones."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPACES = re.compile("[\u00a0\u2007\u202f]")
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# Joiners mean something only in joining scripts and emoji; elsewhere they are invisible noise.
_STRAY_JOINER = re.compile(
    "(?<![\u0590-\u1fff\u2190-\U0010ffff])[\u200c\u200d]|[\u200c\u200d](?![\u0590-\u1fff\u2190-\U0010ffff])"
)
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}

_HYPHENATED = re.compile(r"\b([^\W\d_]+)-\n[ \t]*([^\W\d_]+)(\S*)[ \t]*\n?")

_START = re.compile(
    r"^[ \t]*\*{3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)\b"
    r"[^*\n]*(?:\n[^*\n]+){0,3}?\n?\*{3}[ \t]*$"
    r"|^[ \t]*\*{3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)\b.*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*\*{3}[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG E-?(?:BOOK|TEXT)\b"
    r"|(?:(?<=\n\n)|\A)[ \t]*End\s+of\s+(?:the\s+|this\s+)?Project\s+Gutenberg"
    r"(?:'s|’s|\s+E-?(?:book|text))\b",
    re.MULTILINE | re.IGNORECASE,
)
_KEEP_LINE = re.compile(r"[ \t]|[-*+•]\s|\d{1,2}[.)]\s|#{1,6}\s|[|>]|```|~~~|\*{3}|[-=_*~ ]+$")
_ENDS_SENTENCE = re.compile(r"[.!?:;][\"'”’)\]]*$")


def clean(text: str, *, kind: Kind = "plain", join_lines: bool = True, drop_boilerplate: bool = True) -> str:
    """The text as the model will see it. Never raises; cleaning twice changes nothing more."""
    text = clean_characters(text)
    if kind == "pdf":
        text = rejoin_hyphens(_tidy_blank(text.translate(_LIGATURES)))
    text = _tidy_blank(text)
    if drop_boilerplate:
        text = _tidy_blank(drop_marked_boilerplate(text))
    if join_lines and kind == "pdf":
        text = _split_pdf_paragraphs(text)
    if join_lines and kind != "markup":
        text = join_wrapped(text)
    return text


def clean_characters(text: str) -> str:
    """NFC, LF line ends, plain spaces; no controls, ANSI sequences, bidi marks, zero-width or soft hyphens.

    Repeats until nothing changes, since removing a sign can bring two others together; every repetition
    after the first removes at least one character, so this ends.
    """
    if text.isascii() and not _CONTROLS.search(text):
        return text
    while (cleaned := _characters_once(text)) != text:
        text = cleaned
    return text


def _characters_once(text: str) -> str:
    text = _SURROGATES.sub("\ufffd", text)
    text = _LINE_ENDS.sub("\n", _ANSI.sub("", text)).replace("\u2029", "\n\n")
    text = _CONTROLS.sub("", text)
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", _STRAY_JOINER.sub("", text))


def printable(text: str) -> str:
    """`text` without anything that could steer a terminal: only line feeds and tabs stay as controls."""
    return clean_characters(text)


def control_share(text: str) -> float:
    """Share of control characters, without white space and colour sequences; 1.0 if a NUL is among them."""
    if "\0" in text:
        return 1.0
    plain = _ANSI.sub("", text)
    odd = sum(1 for _ in re.finditer("[\x01-\x08\x0e-\x1f\x7f]", plain))
    return odd / max(1, len(plain))


def drop_marked_boilerplate(text: str) -> str:
    """Drop what stands before a Project-Gutenberg start mark and from an end mark on; without marks, nothing.

    A text with several START/END pairs keeps each part between them. A second START inside a part loses
    only its own line.
    """
    marks = [(m.start(), m.end(), True) for m in _START.finditer(text)]
    marks += [(m.start(), m.end(), False) for m in _END.finditer(text)]
    if not marks:
        return text
    marks.sort()
    kept: list[str] = []
    keeping, position = not marks[0][2], 0
    for start, end, is_start in marks:
        if keeping:
            kept.append(text[position:start])
        keeping, position = is_start, max(end, position)
    if keeping:
        kept.append(text[position:])
    return "\n\n".join(part.strip("\n") for part in kept if part.strip())


def rejoin_hyphens(text: str) -> str:
    """Undo line-break hyphenation, as PDF files have it; the word goes to the first of the two lines.

    The hyphen stays where the hyphenated word, and not the joined one, is found elsewhere in the text.
    """
    while True:
        words = set(re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", text.lower())) if "-\n" in text else set()

        def join(match: re.Match[str], words: set[str] = words) -> str:
            left, right = match[1], match[2]
            keep = f"{left}-{right}".lower() in words and f"{left}{right}".lower() not in words
            return f"{left}{'-' if keep else ''}{right}{match[3]}\n"

        joined = _HYPHENATED.sub(join, text)
        if joined == text:
            return text
        text = joined


def looks_wrapped(text: str) -> int:
    """The width at which the lines of `text` seem to be wrapped, or 0.

    Evidence: most characters are in lines of at most `MAX_WRAP`, and at least 70 % of the lines that are
    followed by another one are full, that is, the next line's first word would not have fitted.
    """
    paragraphs = [block.split("\n") for block in text.split("\n\n") if "\n" in block]
    inner = [(a, b) for lines in paragraphs for a, b in itertools.pairwise(lines) if _flows(a, b)]
    if len(inner) < 4:
        return 0
    lengths = sorted(len(a) for a, _ in inner)
    width = lengths[min(len(lengths) - 1, int(0.98 * len(lengths)))]
    short = sum(len(line) for line in text.split("\n") if len(line) <= MAX_WRAP)
    if not 40 <= width <= MAX_WRAP or short < 0.8 * len(text.replace("\n", "")):
        return 0
    full = sum(_is_full(a, b, width) for a, b in inner)
    return width if full >= 0.7 * len(inner) else 0


def join_wrapped(text: str) -> str:
    """Join the wrapped lines of each paragraph by a space, if the text looks wrapped.

    Kept as they are: indented lines, lists, headings, rules, tables, fenced code, and paragraphs whose lines
    end well before the width (verse). A result that would itself look wrapped means that the evidence was
    not clear, and the text is returned unchanged.
    """
    width = looks_wrapped(text)
    if not width:
        return text
    joined = "\n\n".join(_join_paragraphs(text.split("\n\n"), width))
    return text if looks_wrapped(joined) else joined


def _join_paragraphs(paragraphs: Iterable[str], width: int) -> Iterable[str]:
    fenced = False
    for paragraph in paragraphs:
        fences = sum(line.startswith(("```", "~~~")) for line in paragraph.split("\n"))
        yield paragraph if fenced or fences else _join_paragraph(paragraph, width)
        fenced ^= fences % 2 == 1


def _join_paragraph(paragraph: str, width: int) -> str:
    lines = paragraph.split("\n")
    if len(lines) > 1 and lines[0][:1] in " \t" and not any(_KEEP_LINE.match(line) for line in lines[1:]):
        lines[0] = lines[0].lstrip()  # a first-line indent, not verse
    flowing = [(a, b) for a, b in itertools.pairwise(lines) if _flows(a, b)]
    if not flowing or 2 * sum(_is_full(a, b, width) for a, b in flowing) < len(flowing):
        return paragraph
    parts = [lines[0]]
    for before, line in itertools.pairwise(lines):
        if not _flows(before, line):
            parts.append("\n" + line)
        elif re.search(r"\S[-—]$", before):
            parts.append(line)  # a break after a dash or hyphen stood for no space
        else:
            parts.append(" " + line)
    return "".join(parts)


def _flows(before: str, line: str) -> bool:
    """Whether `line` may continue `before`: neither is set apart by its form; a list item can go on."""
    heading = re.match(r"[ \t]|#{1,6}\s|[|>]|```|~~~|\*{3}|[-=_*~ ]+$", before)
    return bool(before) and bool(line) and not heading and not _KEEP_LINE.match(line)


def _is_full(before: str, line: str, width: int) -> bool:
    return len(before) + 1 + len(line.split(None, 1)[0]) > width


def _split_pdf_paragraphs(text: str) -> str:
    """PDF text has no blank lines: a paragraph ends with a line that is short and ends a sentence."""
    if (width := looks_wrapped(text)) == 0:
        return text
    lines = text.split("\n")
    out = [
        line + "\n" if line and following and len(line) < 0.85 * width and _ENDS_SENTENCE.search(line) else line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
    ]
    return "\n".join(out)


def _tidy_blank(text: str) -> str:
    """No trailing white space, at most one blank line in a row, none at either end."""
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")
