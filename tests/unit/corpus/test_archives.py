from __future__ import annotations

import io
import struct
import zipfile

import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus import archives
from forgetkit.corpus.archives import Archive
from forgetkit.corpus.readers import read_paths
from forgetkit.settings import CorpusSettings
from tests.unit.corpus import files


def zipped(entries, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def refused(action, part):
    with pytest.raises(ForgetkitError) as caught:
        action()
    assert part in str(caught.value), str(caught.value)
    assert str(caught.value).startswith("x.epub: ")


@pytest.mark.parametrize("suffix", ["epub", "docx"])
def test_a_zip_bomb_stops_at_the_ratio(tmp_path, suffix):
    bomb = {"OEBPS/bomb.xhtml": b"<p>" + b"a" * 40_000_000}
    data = files.epub({"bomb.xhtml": "x"}) if suffix == "docx" else files.epub({"a.xhtml": "x"})
    source = zipfile.ZipFile(io.BytesIO(data))
    entries = [(name, source.read(name)) for name in source.namelist() if name not in bomb]
    if suffix == "epub":
        entries = [(n, d.replace(b"a.xhtml", b"bomb.xhtml")) for n, d in entries]
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(zipped([*entries, *bomb.items()]))
    assert path.stat().st_size < 100_000
    with pytest.raises(ForgetkitError, match="100:1"):
        read_paths([path], CorpusSettings())


def test_a_header_that_lies_about_the_size_does_not_help(tmp_path):
    data = bytearray(zipped([("a", b"a" * 5_000_000)]))
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", data, data.index(signature) + offset, 10)
    refused(lambda: Archive(bytes(data), "x.epub").read("a"), "damaged")


def test_the_total_is_counted_over_all_entries(monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL", 1_000_000)
    noise = [(str(i), bytes(range(256)) * 1500) for i in range(3)]
    archive = Archive(zipped(noise, zipfile.ZIP_STORED), "x.epub")
    refused(archive.check_all, "inflates to more than")


def test_too_many_files():
    refused(lambda: Archive(zipped((str(i), b"") for i in range(5001)), "x.epub"), "5000")
    assert len(Archive(zipped((str(i), b"") for i in range(5000)), "x.epub").names) == 5000


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/passwd", "a/../../b", "C:evil", "a\\b"])
def test_names_that_lead_out_are_refused(name):
    refused(lambda: Archive(zipped([(name, b"x")]), "x.epub"), "leads out")


def test_double_names_unusual_compression_and_encryption_are_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        double = zipped([("a", b"1"), ("a", b"2")])
    refused(lambda: Archive(double, "x.epub"), "same name")
    refused(lambda: Archive(zipped([("a", b"1" * 99)], zipfile.ZIP_LZMA), "x.epub"), "compression")
    data = bytearray(zipped([("a", b"1")]))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(lambda: Archive(bytes(data), "x.epub"), "encrypted")


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_a_dtd_is_refused(declaration, encoding):
    data = f'<?xml version="1.0" encoding="{encoding}"?>{declaration}<x>1</x>'.encode(encoding)
    archive = Archive(zipped([("a.xml", data)]), "x.epub")
    refused(lambda: archive.xml("a.xml"), "DTD")
    refused(Archive(zipped([("a.xml", data)]), "x.epub").check_all, "DTD")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_truncated_books_are_one_line_errors(tmp_path, cut):
    data = files.epub({"a.xhtml": "<p>text</p>" * 500})
    (tmp_path / "x.epub").write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(ForgetkitError, match="complete"):
        read_paths([tmp_path / "x.epub"], CorpusSettings())


def test_every_flipped_byte_gives_text_or_a_one_line_error(tmp_path):
    data = files.epub({"a.xhtml": "<p>It was a dark night.</p>"})
    for place in range(0, len(data), 7):
        (tmp_path / "x.epub").write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            read_paths([tmp_path / "x.epub"], CorpusSettings())
        except ForgetkitError as error:
            assert "x.epub" in str(error)
