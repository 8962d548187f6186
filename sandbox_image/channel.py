"""The REPL's end of the frames."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import struct
import threading
from collections.abc import Sequence
from typing import Any

NONCE_BYTES = 16
CHUNK_BYTES = 1 << 20
MAX_FRAME_MIB = 256
PRIVATE_FD = 64  # and above: out of the way of code that closes or reopens the first few


def private_copy(fd: int) -> int:
    """Another number for what `fd` is."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)


def replacement(error: UnicodeError) -> tuple[bytes, int]:
    """U+FFFD for each character that is not Unicode."""
    assert isinstance(error, UnicodeEncodeError)
    return "\N{REPLACEMENT CHARACTER}".encode() * (error.end - error.start), error.end


codecs.register_error("lone-surrogates", replacement)


def pack(nonce: bytes, op: str, texts: Sequence[str], fields: dict[str, object]) -> bytes:
    """A frame for the host: nonce, sizes, a small JSON head, and the texts that may be large, each as it is.

    What is not Unicode (lone surrogates) goes as U+FFFD.
    """
    head = json.dumps({"op": op, **fields}, ensure_ascii=False).encode(errors="lone-surrogates")
    parts = [text.encode(errors="lone-surrogates") for text in texts]
    sizes = struct.pack(f">{2 + len(parts)}I", len(head), len(parts), *map(len, parts))
    return b"".join([nonce, sizes, head, *parts])


class Channel:
    """The private descriptors to the host. Any thread may send; one thread receives.

    `stderr` is for what is wrong with the driver: the host keeps its first lines.
    """

    def __init__(self) -> None:
        self._in, self._out, err = map(private_copy, (0, 1, 2))
        self.stderr = os.fdopen(err, "w", buffering=1)
        self._lock = threading.Lock()
        self._nonce = self._read(NONCE_BYTES)
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        """A forked child must not speak for us: it gets no channel."""
        os.close(self._in)
        os.close(self._out)
        os.close(self.stderr.fileno())
        self._out = -1

    def send(self, op: str, texts: Sequence[str] = (), /, **fields: object) -> None:
        """One frame to the host.

        Raises: ValueError when it is too large; RuntimeError in a forked child.
        """
        if self._out < 0:
            raise RuntimeError("a forked process cannot reach sub-LLMs: use threads")
        data = memoryview(pack(self._nonce, op, texts, fields))
        if len(data) > MAX_FRAME_MIB << 20:
            raise ValueError(f"one call may carry {MAX_FRAME_MIB} MB; this one has {len(data) >> 20} MB")
        with self._lock:
            while data:
                data = data[os.write(self._out, data) :]

    def receive(self) -> dict[str, Any]:
        """The next frame. Ends the process when the host is gone."""
        header = self._read(NONCE_BYTES + 4)
        if header[:NONCE_BYTES] != self._nonce:
            raise ValueError("not a frame of this session")
        frame: dict[str, Any] = json.loads(self._read(int.from_bytes(header[NONCE_BYTES:], "big")))
        return frame

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            data = os.read(self._in, min(size - len(parts), CHUNK_BYTES))
            if not data:
                os._exit(0)  # the host is gone
            parts += data
        return bytes(parts)
