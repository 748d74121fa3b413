"""Labels beside the text: what is shown, and that nothing in it can act."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from forgetkit.report.preview import PreviewBlock, Row, clean, fragment, read_blocks, terminal
from tests.unit.report.example import preview


@pytest.mark.parametrize(
    ("hostile", "left"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("a\x1b]8;;http://evil.example\x07link\x1b]8;;\x07", "alink"),
        ("a\x1b]0;title\x1b\\b", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\u202egnp.exe\u202c", "agnp.exe"),
        ("a\u2066b\u2069\u200f\u061c\u200bc\ufeff", "abc"),
        ("bell\x07 null\x00 back\x08", "bell null back"),
        ("a\ud800b", "a\ufffdb"),
        ("tag\U000e0041s", "tags"),
        ("one\r\ntwo\u2028three", "one\ntwo\nthree"),
        ("Ärger 日本 👩‍🌾 “q”\ttab\n", "Ärger 日本 👩‍🌾 “q”\ttab\n"),
        ("key hf_" + "A" * 30, "key [secret left out]"),
        ("https://me:pw@host/x", "https://[secret left out]@host/x"),
        ("unfinished \x1b", "unfinished "),
        ("unfinished \x1b[", "unfinished "),
    ],
)
def test_clean(hostile: str, left: str) -> None:
    assert clean(hostile) == left


def test_label_is_shown_only_where_it_differs_and_masks_are_marked() -> None:
    rows = (
        Row(" Dorothy", " Alice", anchor=True),
        Row(" lived", " lived"),
        Row(" Dorothy", " Anna", mask="seen", anchor=True),
    )
    tree = HTMLParser(str(fragment([PreviewBlock("book", 0, rows)])))
    units = tree.css("span.u")
    assert [u.css_first(".l").text().strip() for u in units] == ["Alice", "", "–"]  # type: ignore[union-attr]
    assert "changed" in (units[0].attributes["class"] or "") and "seen" in (units[2].attributes["title"] or "")
    assert "Anna" not in tree.html  # type: ignore[operator]


def test_terminal_pairs_every_token_with_its_label_in_the_same_columns() -> None:
    rows = tuple(Row(f" t{i}日", f" label{i}") for i in range(30))
    lines = terminal([PreviewBlock("book", 0, rows)], width=40).plain.splitlines()
    assert all(cell_len(line) <= 40 for line in lines)
    pairs = [(a, b) for a, b in zip(lines[1::3], lines[2::3], strict=True)]
    assert sum(len(a.split()) for a, _ in pairs) == 30
    for above, below in pairs:
        starts = [i for i, c in enumerate(below) if c == "l" and below[i : i + 5] == "label"]
        wide = "".join(c + ("\x00" if cell_len(c) == 2 else "") for c in above)
        assert all(wide[i] == "t" for i in starts) and len(starts) == len(above.split())


def test_terminal_output_holds_no_escape_of_the_model_and_no_markup_is_read() -> None:
    data = [
        {
            "document": "[red]x\x1b[2J",
            "block": 0,
            "rows": [{"token": "\x1b[2J[bold]t", "label": "\x1b]0;x\x07[/]l"}],
        }
    ]
    out = io.StringIO()
    Console(file=out, force_terminal=False, width=80).print(terminal(read_blocks(data)))
    assert "\x1b" not in out.getvalue() and "[bold]t" in out.getvalue() and "[red]x" in out.getvalue()


def test_fragment_escapes() -> None:
    data = [
        {
            "document": "<b>d",
            "block": 0,
            "rows": [{"token": "<script>x", "label": '" onclick="x', "mask": None}],
        }
    ]
    tree = HTMLParser(str(fragment(read_blocks(data))))
    assert not tree.css("script") and not tree.css("b")
    assert all(set(node.attributes) <= {"class", "title"} for node in tree.css("figure, figure *"))


@pytest.mark.parametrize("bad", [None, {}, "x", [1], [{"rows": "x"}], [{"rows": [{"token": 3}]}]])
def test_other_shapes_are_left_out(bad: object) -> None:
    assert all(not block.rows for block in read_blocks(bad))


def test_reads_the_file_as_relabel_writes_it() -> None:
    (block,) = read_blocks(preview())
    assert block.rows[0] == Row(" Dorothy", " Alice", None, True, 0.25)
    assert block.rows[0].changed and not block.rows[1].changed
    assert sum(row.mask is not None for row in block.rows) == 3
