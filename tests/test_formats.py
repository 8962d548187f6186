"""What a file is by its first bytes."""

import bz2
import gzip
import io
import lzma
import random
import sqlite3
import zipfile

import pytest

from rlm.formats import format_of


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def database(tmp_path):
    with sqlite3.connect(tmp_path / "db") as connection:
        connection.execute("create table t (x)")
    connection.close()
    return (tmp_path / "db").read_bytes()


@pytest.mark.parametrize(
    ("sample", "name", "remedy"),
    [
        (b"%PDF-1.7\n", "a PDF", "pdftotext"),
        (zipped("[Content_Types].xml", "word/document.xml"), "an office document", "save it as text"),
        (zipped("a.txt"), "a zip archive", "unpack it"),
        (gzip.compress(b"x", mtime=0), "gzip", "zcat"),
        (bz2.compress(b"x"), "bzip2", "bzcat"),
        (lzma.compress(b"x"), "xz", "xzcat"),
        ("text".encode("utf-16"), "text in UTF-16", "iconv -f UTF-16"),
        ("text, with no mark".encode("utf-16-le"), "text in UTF-16", "iconv"),
        ("text, with no mark".encode("utf-16-be"), "text in UTF-16", "iconv"),
        ("text".encode("utf-32"), "text in UTF-32", "iconv -f UTF-32"),
        (b"\x89PNG\r\n", "an image", "text file"),
        (bytes(8_192), "not text", "name a text file"),
        (random.Random(1).randbytes(6_000).replace(b"\x01", b"\0") + bytes(400), "not text", "name a text file"),
    ],
)
def test_what_is_not_text_is_known_with_what_to_do(sample, name, remedy):
    known = format_of(sample)
    assert known is not None
    assert known.name == name
    assert remedy in known.remedy


def test_a_database_is_known(tmp_path):
    assert format_of(database(tmp_path)).name == "an SQLite database"


@pytest.mark.parametrize(
    "sample",
    [
        b"",
        b"a",
        b"a line\0 with a NUL in it, as logs have them\n" * 20,
        b"a\r\n\0\xff",
        "é漢字😀".encode() * 100,
        "\ufeffwith a mark".encode(),
        b"PK is how it begins",
        b"BZh, said the text",
        "l'été".encode("latin-1"),
    ],
)
def test_text_is_text(sample):
    assert format_of(sample) is None
