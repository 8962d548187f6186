"""The context: read from files into the variable that cells see. A text is at no time twice in memory."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import reprlib
from collections.abc import Iterator
from typing import Any

from sandbox_image.report import cap

LOAD_CHUNK_BYTES = 4 << 20
NAMES_TOLD = 20
DESCRIPTION_CHARS = 4_000


def read_text(path: str) -> str:
    """The file's text, bytes that are not UTF-8 as surrogate escapes.

    CPython stores a str in 1, 2 or 4 bytes a character, as its widest character needs. Decoding in one go, or
    appending, copies all there is when a wider one comes; so look for the widest first, then fill a str of that
    kind.
    """
    if os.path.getsize(path) <= LOAD_CHUNK_BYTES:  # noqa: PTH202
        return "".join(decoded(path))
    length, widest = 0, 0
    for chunk in decoded(path):
        length += len(chunk)
        widest = max(widest, widest_character(chunk))
    api = ctypes.pythonapi
    api.PyUnicode_New.argtypes = (ctypes.c_ssize_t, ctypes.c_uint32)
    api.PyUnicode_New.restype = ctypes.c_void_p
    api.PyUnicode_CopyCharacters.argtypes = (
        ctypes.c_void_p,
        ctypes.c_ssize_t,
        ctypes.py_object,
        ctypes.c_ssize_t,
        ctypes.c_ssize_t,
    )
    api.PyUnicode_CopyCharacters.restype = ctypes.c_ssize_t
    api.Py_DecRef.argtypes = (ctypes.py_object,)
    api.Py_DecRef.restype = None
    whole, filled = api.PyUnicode_New(length, widest), 0
    for chunk in decoded(path):
        filled += api.PyUnicode_CopyCharacters(whole, filled, chunk, 0, len(chunk))
    text: str = ctypes.cast(whole, ctypes.py_object).value
    api.Py_DecRef(text)  # the reference that PyUnicode_New gave
    if filled != length:
        raise ValueError(f"{path} changed while it was read")
    return text


def decoded(path: str) -> Iterator[str]:
    """The file's text in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while chunk := file.read(LOAD_CHUNK_BYTES):
            yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def widest_character(text: str) -> int:
    """The upper end of the narrowest of CPython's kinds of str that `text` fits in."""
    if text.isascii():
        return 0x7F
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        units = len(text.encode("utf-16-le", "surrogatepass")) // 2
        return 0xFFFF if units == len(text) else 0x10FFFF
    return 0xFF


def load_context(kind: str, files: list[list[str]]) -> Any:  # noqa: ANN401  # any JSON value
    """The context variable: a text, a JSON value, or a dict of name to text.

    Raises: ValueError when a file is not the JSON it should be; OSError when it cannot be read.
    """
    if kind == "files":
        return {name: read_text(path) for name, path in files}
    ((name, path),) = files
    text = read_text(path)
    if kind == "text":
        return text
    text = text.removeprefix("\N{BYTE ORDER MARK}")
    if kind == "json":
        return parse_json(text, f"{name} is not valid JSON")
    lines = enumerate(text.split("\n"), start=1)
    return [parse_json(line, f"{name} is not valid JSONL in line {number}") for number, line in lines if line.strip()]


def parse_json(text: str, complaint: str) -> Any:  # noqa: ANN401  # any JSON value
    """A JSON value.

    Raises: ValueError, with the complaint, when it is none.
    """
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{complaint}: {exc}") from exc


def describe(value: object) -> str:
    """The kind and size of the context in a few words, for the root LM."""
    return cap(_describe(value), DESCRIPTION_CHARS)


def _describe(value: object) -> str:
    if isinstance(value, str):
        lines = value.count("\n") + (value[-1:] not in ("", "\n"))
        return f"a str of {len(value):,} characters in {lines:,} lines"
    if isinstance(value, dict) and value and all(isinstance(item, str) for item in value.values()):
        sizes = [f"{name!r}: {len(text):,}" for name, text in list(value.items())[:NAMES_TOLD]]
        more = f", and {len(value) - NAMES_TOLD:,} more" if len(value) > NAMES_TOLD else ""
        total = sum(map(len, value.values()))
        return (
            f"a dict of {len(value):,} names to str, {total:,} characters in all (characters of each: "
            f"{', '.join(sizes)}{more})"
        )
    if isinstance(value, dict):
        return f"a dict of {len(value):,} items, with the keys {reprlib.repr(list(value)[:NAMES_TOLD])}"
    if isinstance(value, list):
        kinds = sorted({type(item).__name__ for item in value})
        total = sum(len(item) for item in value if isinstance(item, str))
        size = f", {total:,} characters in all" if kinds == ["str"] else ""
        return f"a list of {len(value):,} items ({', '.join(kinds) or 'empty'}){size}"
    return f"{type(value).__name__}: {value!r}"
