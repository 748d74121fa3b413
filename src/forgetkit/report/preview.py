"""What a person sees of the labels: original tokens with the alternative label under each, in terminal and
HTML.

The rows come from a run's ``4-labels/preview.json``. Token text is model- and target-made, so it is cleaned
of
terminal escapes, control and bidirectional characters before it gets here or while it is read here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from rich.cells import cell_len
from rich.text import Text

_ANSI = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?"
)
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|(?i:bearer)\s+[A-Za-z0-9._~+/-]{12,}=*|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
)


def clean(text: str) -> str:
    """Text that can do no harm in a terminal or a page: no escapes, controls, bidi marks, surrogates or
    secrets.

    New lines and tabs stay; other line separators become new lines.
    """
    text = _ANSI.sub("", text)
    text = re.sub("\r\n?|[\x0b\x0c\x85\u2028\u2029]", "\n", text)
    text = _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))
    return _SECRET.sub("[secret left out]", text)


@dataclass(frozen=True)
class Row:
    """One token: its text, the label's text (None: no label), why it is masked (None: it carries loss)."""

    token: str
    label: str | None = None
    mask: str | None = None
    anchor: bool = False
    probability: float | None = None

    @property
    def changed(self) -> bool:
        """The label asks for something else than the text has."""
        return self.mask is None and self.label is not None and self.label != self.token


@dataclass(frozen=True)
class PreviewBlock:
    """The rows of one block, in order."""

    document: str
    block: int
    rows: tuple[Row, ...]


def read_blocks(data: object) -> tuple[PreviewBlock, ...]:
    """Blocks from the parsed ``preview.json``: ``[{document, block, rows: [{token, label, probability,
    mask, anchor}]}]``.

    Entries of another shape are left out: the preview is an illustration, never a reason to fail.
    """
    if not isinstance(data, list):
        return ()
    blocks = []
    for item in data:
        if not isinstance(item, Mapping) or not isinstance(item.get("rows"), list):
            continue
        rows = tuple(_row(r) for r in item["rows"] if isinstance(r, Mapping) and isinstance(r.get("token"), str))
        index = item.get("block")
        blocks.append(PreviewBlock(clean(str(item.get("document", ""))), index if isinstance(index, int) else 0, rows))
    return tuple(blocks)


def _row(row: Mapping[str, Any]) -> Row:
    label, mask, probability = row.get("label"), row.get("mask"), row.get("probability")
    return Row(
        token=clean(row["token"]),
        label=clean(label) if isinstance(label, str) else None,
        mask=clean(str(mask)) if mask not in (None, False, "") else None,
        anchor=bool(row.get("anchor")),
        probability=float(probability) if isinstance(probability, int | float) else None,
    )


def cell(text: str) -> str:
    """A token as one visible cell: outer spaces dropped, an inner new line as a sign, an empty token as a
    middle dot."""
    shown = text.strip(" ").replace("\n", "↵").replace("\t", "⇥")
    return shown or "·"


def terminal(blocks: Sequence[PreviewBlock], width: int = 100) -> Text:
    """The blocks as coloured text of at most ``width`` columns: a line of tokens, the line of their labels
    below it.

    Changed labels are bold and coloured, anchors underlined, positions without loss dim with a dash for a
    label.
    Colour is never the only sign, so it reads the same without.
    """
    out = Text()
    for block in blocks:
        out.append(f"{block.document or 'document'}, block {block.block}\n", style="bold")
        top, below, used = Text(), Text(), 0
        for row in block.rows:
            token, label = cell(row.token), _label(row)
            size = max(cell_len(token), cell_len(label)) + 1
            if used and used + size > width:
                out.append_text(top).append("\n").append_text(below).append("\n\n")
                top, below, used = Text(), Text(), 0
            style = ("underline " if row.anchor else "") + ("dim" if row.mask else "")
            top.append(token, style=style.strip()).append(" " * (size - cell_len(token)))
            below.append(label, style="bold cyan" if row.changed else "dim").append(" " * (size - cell_len(label)))
            used += size
        out.append_text(top).append("\n").append_text(below).append("\n\n")
    return out


def _label(row: Row) -> str:
    """The label's cell: a dash where there is no loss, nothing where the label is the token itself."""
    if row.mask is not None or row.label is None:
        return "–"
    return cell(row.label) if row.changed else ""


def fragment(blocks: Sequence[PreviewBlock]) -> Markup:
    """The blocks as an HTML fragment; every text is escaped. Styles: classes ``gloss``, ``u``, ``t``,
    ``l``."""
    out = []
    for block in blocks:
        cells = "".join(_unit(row) for row in block.rows)
        head = f"{escape(block.document or 'document')}, block {block.block}"
        out.append(f'<figure class="gloss"><figcaption>{head}</figcaption><div class="units">{cells}</div></figure>')
    return Markup("\n").join(Markup(part) for part in out)


def _unit(row: Row) -> str:
    classes = ["u"]
    classes += ["anchor"] if row.anchor else []
    classes += ["masked"] if row.mask else []
    classes += ["changed"] if row.changed else []
    notes = []
    if row.mask:
        notes.append(f"no loss here: {row.mask}")
    elif row.label is not None:
        notes.append(f"label: {row.label.strip() or 'space'}")
        if row.probability is not None:
            notes.append(f"probability {row.probability:.2f}")
    title = f' title="{escape("; ".join(notes))}"' if notes else ""
    return (
        f'<span class="{" ".join(classes)}"{title}><span class="t">{escape(cell(row.token))}</span>'
        f'<span class="l">{escape(_label(row)) or "&nbsp;"}</span></span> '
    )
