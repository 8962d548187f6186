"""Pipes and devices that a user names: read to their end, if it comes before a limit."""

from __future__ import annotations

import select
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from rlm.errors import InputError

GIB = 1 << 30
CHUNK_BYTES = 1 << 20
WAIT_S = 0.5


def save(stream: BinaryIO, path: Path, name: str, *, begin: bytes, most_bytes: int = 4 * GIB) -> None:
    """Write `begin`, and what else comes out of an unbuffered stream, to a file. `name` is how the stream is told of.

    Raises: InputError when it is longer than `most_bytes`, or cannot be read; OSError when it cannot be written.
    """
    left = most_bytes
    with path.open("wb") as file:
        for chunk in chain([begin], _chunks(stream, name)):
            left -= len(chunk)
            if left < 0:
                raise InputError(
                    f"{name} gives more than {most_bytes:,} bytes: save the part you need to a file, and name that"
                )
            file.write(chunk)


def read_some(stream: BinaryIO, most: int) -> bytes:
    """Up to `most` bytes of an unbuffered stream, or none at its end.

    It waits in steps: a signal that comes just before a read would wait for the read to end.
    """
    while not select.select([stream], [], [], WAIT_S)[0]:
        pass
    return stream.read(most)


def _chunks(stream: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        while chunk := read_some(stream, CHUNK_BYTES):
            yield chunk
    except OSError as exc:
        raise InputError(f"cannot read {name}: {exc.strerror or exc}") from exc
