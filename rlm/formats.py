"""What the first bytes of a file say that it is, where it is not text."""

from __future__ import annotations

from typing import NamedTuple

SNIFF_BYTES = 8_192
NUL_SHARE = 0.05  # of a sample that is long enough to tell
LONG_ENOUGH_BYTES = 512
UTF_16_BYTES, UTF_16_SHARE = 8, 0.7


class Format(NamedTuple):
    """What a file is, and how text is made of it."""

    name: str
    remedy: str


_IMAGE = Format("an image", "describe it in a text file")
_OFFICE = Format("an office document", "save it as text")
_UTF_16 = Format("text in UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8")
_UTF_32 = Format("text in UTF-32", "make it UTF-8: iconv -f UTF-32 -t UTF-8")
_BINARY = Format("not text", "name a text file")
_BY_FIRST_BYTES = (
    (b"%PDF-", Format("a PDF", "make text of it: pdftotext -layout")),
    (b"\x1f\x8b", Format("gzip", "unpack it: zcat FILE | rlm ask ... --context -")),
    (b"\xfd7zXZ\0", Format("xz", "unpack it: xzcat FILE | rlm ask ... --context -")),
    (b"\x28\xb5\x2f\xfd", Format("zstd", "unpack it: zstdcat FILE | rlm ask ... --context -")),
    (b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", "unpack it, and name the folder")),
    (b"Rar!\x1a\x07", Format("a RAR archive", "unpack it, and name the folder")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OFFICE),
    (b"SQLite format 3\0", Format("an SQLite database", "make text of it: sqlite3 FILE .dump")),
    (b"\x7fELF", Format("a program", "name its source")),
    (b"\x89PNG", _IMAGE),
    (b"\xff\xd8\xff", _IMAGE),
    (b"GIF87a", _IMAGE),
    (b"GIF89a", _IMAGE),
    (b"\xff\xfe\0\0", _UTF_32),
    (b"\0\0\xfe\xff", _UTF_32),
    (b"\xff\xfe", _UTF_16),
    (b"\xfe\xff", _UTF_16),
)


def format_of(sample: bytes) -> Format | None:
    """What the file with these first bytes is; None for text, which may hold a NUL here and there."""
    for begin, known in _BY_FIRST_BYTES:
        if sample.startswith(begin):
            return known
    if sample.startswith(b"PK\x03\x04"):
        office = b"[Content_Types].xml" in sample or b"mimetypeapplication/vnd.oasis" in sample
        return _OFFICE if office else Format("a zip archive", "unpack it, and name the folder")
    if sample.startswith(b"BZh") and sample[4:10] == b"1AY&SY":
        return Format("bzip2", "unpack it: bzcat FILE | rlm ask ... --context -")
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if len(sample) >= UTF_16_BYTES and max(even, odd) >= UTF_16_SHARE * half and min(even, odd) <= NUL_SHARE * half:
        return _UTF_16
    if len(sample) >= LONG_ENOUGH_BYTES and even + odd > NUL_SHARE * len(sample):
        return _BINARY
    return None
