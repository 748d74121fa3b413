from __future__ import annotations

import hashlib
import json
import os
import textwrap

import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.readers import read, read_paths
from forgetkit.settings import CorpusSettings
from tests.toys import TEXT
from tests.unit.corpus import files

SETTINGS = CorpusSettings()


def one(path):
    (document,) = read_paths([path], SETTINGS)
    return document


def refused(path, *parts):
    with pytest.raises(ForgetkitError) as caught:
        read_paths([path] if not isinstance(path, list) else path, SETTINGS)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line


def test_epub_is_read_in_spine_order_without_markup(tmp_path):
    chapters = {
        "two words.xhtml": "<h1>Chapter 1</h1><p>It was\n a dark&#173; <i>night</i>.</p><script>no()</script>",
        "b.xhtml": "<div><p>Second<br/>line &amp; more</p></div><pre>  a\n   b</pre>",
    }
    (tmp_path / "x.epub").write_bytes(files.epub(chapters, title="The Book"))
    document = one(tmp_path / "x.epub")
    assert document.text == "Chapter 1\n\nIt was a dark night.\n\nSecond\nline & more\n\n  a\n   b"
    assert document.name == "x.epub: The Book"


def test_docx_keeps_the_order_of_paragraphs_and_tables(tmp_path):
    (tmp_path / "x.docx").write_bytes(files.word(["First — one.", "Last."], [["a", "b"], ["c", "d"]]))
    assert one(tmp_path / "x.docx").text == "First — one.\n\na\tb\nc\td\n\nLast."


def test_pdf_lines_are_joined_and_page_numbers_dropped(tmp_path):
    lines = textwrap.wrap(TEXT.strip(), 70, break_on_hyphens=False)
    half = len(lines) // 2
    broken = lines[1].rpartition(" ")
    lines[1] = f"{broken[0]} {broken[2][:2]}-"
    lines[2] = broken[2][2:] + " " + lines[2]
    (tmp_path / "x.pdf").write_bytes(files.pdf([["1", *lines[:half]], [*lines[half:], "- 2 -"]]))
    assert one(tmp_path / "x.pdf").text == TEXT.strip()


def test_pdf_without_text_and_broken_pdf_are_refused(tmp_path):
    (tmp_path / "empty.pdf").write_bytes(files.pdf([[]]))
    refused(tmp_path / "empty.pdf", "empty.pdf", "scanned")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    refused(tmp_path / "broken.pdf", "not a readable PDF")


def test_html_declares_its_encoding_and_loses_its_markup(tmp_path):
    page = "<head><meta charset='windows-1251'><style>p{}</style></head><body><p>Привет, мир</p></body>"
    (tmp_path / "x.html").write_bytes(page.encode("cp1251"))
    document = one(tmp_path / "x.html")
    assert (document.text, document.encoding) == ("Привет, мир", "windows-1251")
    assert "windows-1251" in document.warnings[0]


def test_deeply_nested_html_is_read(tmp_path):
    (tmp_path / "x.htm").write_text("<div>" * 5000 + "deep" + "</div>" * 5000)
    assert one(tmp_path / "x.htm").text == "deep"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_encodings(tmp_path, encoding):
    text = "Zoë’s “naïve” café ☃"
    data = text.encode(encoding)
    if encoding.endswith("-le"):
        data = b"\xff\xfe" + data
    elif encoding.endswith("-be"):
        data = b"\xfe\xff" + data
    (tmp_path / "x.txt").write_bytes(data)
    assert one(tmp_path / "x.txt").text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Le garçon naïf a mangé à Noël; l'été était déjà là, et Dorothée chantait.", "latin-1"),
        ("A café on the corner, where Zoë sat.", "latin-1"),
        ("“Curly” quotes — and dashes, as Windows writes them: Dorothy’s", "cp1252"),
        ("Zażółć gęślą jaźń, a potem poszedł do domu i zjadł obiad.", "cp1250"),
        ("Жили-были старик со старухой у самого синего моря, и было у них три сына.", "cp1251"),
    ],
)
def test_other_encodings_are_detected_with_a_warning_that_names_file_and_encoding(tmp_path, text, encoding):
    (tmp_path / "old.txt").write_bytes(text.encode(encoding))
    document = one(tmp_path / "old.txt")
    assert document.text == text
    assert "old.txt" in document.warnings[0]
    assert document.encoding in document.warnings[0]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("nul.txt", b"text with a \0 in it"),
        ("png.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))),
        ("controls.txt", b"abc\x01\x02\x03" * 50),
        ("bad16.txt", b"\xff\xfea"),
    ],
)
def test_binary_content_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, name, "UTF-8")


def test_jsonl(tmp_path):
    rows = [
        {"text": "One."},
        {"text": "Two.", "id": "b\x1b[2J", "title": "T\nitle"},
        {"text": "a\u2028b", "id": 7},
    ]
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in rows[:2]) + "\n\n" + json.dumps(rows[2])
    )
    documents = read_paths([tmp_path / "x.jsonl"], SETTINGS)
    assert [d.id for d in documents] == ["x.jsonl#0", "x.jsonl#b", "x.jsonl#7"]
    assert [d.text for d in documents] == ["One.", "Two.", "a\nb"]
    assert documents[1].name == "x.jsonl: T itle"


@pytest.mark.parametrize("line", ["{", "[1]", '{"txt": "x"}', '{"text": 3}', "[" * 100_000])
def test_jsonl_errors_name_file_and_line(tmp_path, line):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    refused(tmp_path / "x.jsonl", "x.jsonl:2")


def test_folders_are_read_recursively_in_order_and_ids_are_stable(tmp_path):
    root = tmp_path / "books"
    for name, text in {
        "b.txt": "B",
        "a/z.md": "Z",
        "a/c.txt": "C",
        ".hidden.txt": "no",
        ".git/x.txt": "no",
        "p.png": "?",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    other = tmp_path / "other" / "books"
    other.mkdir(parents=True)
    (other / "b.txt").write_text("B2")
    found = read([root, root / "b.txt", other], SETTINGS)
    assert [(d.id, d.text) for d in found.documents] == [
        ("books/b.txt#0", "B"),
        ("books/a/c.txt#0", "C"),
        ("books/a/z.md#0", "Z"),
        ("books/b.txt~2#0", "B2"),
    ]
    assert any("p.png" in w and ".epub" in w for w in found.warnings)
    assert any("more than once" in w for w in found.warnings)
    assert found.documents[0].sha256 == hashlib.sha256(b"B").hexdigest()


def test_settings_reach_the_cleaning(tmp_path):
    text = "front\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n" + textwrap.fill(TEXT.strip(), 60)
    (tmp_path / "x.txt").write_text(text)
    assert one(tmp_path / "x.txt").text.count("\n") == 0
    (raw,) = read_paths([tmp_path / "x.txt"], CorpusSettings(join_lines=False, drop_boilerplate=False))
    assert raw.text == text


def test_user_mistakes_are_one_line_with_a_remedy(tmp_path):
    (tmp_path / "x.xyz").write_text("x")
    (tmp_path / "empty.txt").write_text("\n \n")
    refused(tmp_path / "missing.txt", "missing.txt", "no such file")
    refused(tmp_path / "x.xyz", "x.xyz", ".epub", ".jsonl")
    refused(tmp_path / "empty.txt", "empty.txt", "no text")
    refused([], "no files")
    refused("bad\0name.txt", "cannot be opened")
    (tmp_path / "x.epub").write_bytes(b"not a zip")
    refused(tmp_path / "x.epub", "x.epub", "zip")
    (tmp_path / "x.docx").write_bytes(files.epub({"a.xhtml": "x"}))
    refused(tmp_path / "x.docx", "x.docx", "Word")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
def test_unreadable_file(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.txt").chmod(0)
    refused(tmp_path / "x.txt", "x.txt", "permissions")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
@pytest.mark.timeout(20)
def test_links_out_of_the_folder_pipes_and_devices_are_refused(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for number, target in enumerate([secret, tmp_path, tmp_path / "nowhere.txt", "loop.txt", "/dev/zero"]):
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        (folder / "fine.txt").write_text("fine")
        (folder / "loop.txt").symlink_to(target)
        refused(folder, "loop.txt", "link")
    pipes = tmp_path / "pipes"
    pipes.mkdir()
    os.mkfifo(pipes / "pipe.txt")
    refused(pipes, "pipe.txt", "regular")
    refused(pipes / "pipe.txt", "pipe.txt", "regular")
    refused("/dev/zero", "/dev/zero", "regular")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")
def test_links_inside_the_folder_and_linked_files_given_by_name_are_read_once(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.txt").write_text("A")
    (folder / "b.txt").symlink_to("a.txt")
    (folder / "self").symlink_to(".")
    assert [d.text for d in read_paths([folder], SETTINGS)] == ["A"]
    (tmp_path / "link.txt").symlink_to(folder / "a.txt")
    assert one(tmp_path / "link.txt").text == "A"


def test_names_from_the_file_system_cannot_steer_a_terminal(tmp_path):
    (tmp_path / "a\x1b[2Jb.txt").write_text("x")
    document = one(tmp_path / "a\x1b[2Jb.txt")
    assert document.id == "ab.txt#0"


@pytest.mark.timeout(60)
def test_one_line_of_thirty_megabytes(tmp_path):
    (tmp_path / "long.txt").write_text(TEXT * (30_000_000 // len(TEXT)))
    assert len(one(tmp_path / "long.txt").text) > 29_000_000
