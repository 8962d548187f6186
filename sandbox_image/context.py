"""The context: read from files into the variable that cells see. A text is at no time twice in memory."""

from __future__ import annotations

import codecs
import ctypes
import json
import os
from collections.abc import Iterator
from typing import Any

LOAD_CHUNK_BYTES = 4 << 20


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


def load_context(kind: str, files: list[list[str]]) -> tuple[Any, int | None]:
    """The context variable (a text, a JSON value, or a dict of name to text), and the length of JSON read for it.

    Raises: ValueError when a file is not the JSON it should be; OSError when it cannot be read.
    """
    if kind == "files":
        return {name: read_text(path) for name, path in files}, None
    ((name, path),) = files
    text = read_text(path)
    if kind == "text":
        return text, None
    text = text.removeprefix("\N{BYTE ORDER MARK}")
    if kind == "json":
        return parse_json(text, f"{name} is not valid JSON"), len(text)
    lines = enumerate(text.split("\n"), start=1)
    complaint = f"{name} is not valid JSONL in line"
    return [parse_json(line, f"{complaint} {number}") for number, line in lines if line.strip()], len(text)


def parse_json(text: str, complaint: str) -> Any:  # noqa: ANN401  # any JSON value
    """A JSON value.

    Raises: ValueError, with the complaint, when it is none.
    """
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(f"{complaint}: {exc}") from exc
