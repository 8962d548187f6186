"""The REPL's end of the frames."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import threading
from typing import Any

NONCE_BYTES = 16
CHUNK_BYTES = 1 << 20
MAX_FRAME_BYTES = 256 << 20
PRIVATE_FD = 64  # and above: out of the way of code that closes or reopens the first few


def private_copy(fd: int) -> int:
    """Another number for what `fd` is."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PRIVATE_FD)


def replacement(error: UnicodeError) -> tuple[bytes, int]:
    """U+FFFD for each character that is not Unicode."""
    assert isinstance(error, UnicodeEncodeError)
    return "\N{REPLACEMENT CHARACTER}".encode() * (error.end - error.start), error.end


codecs.register_error("lone-surrogates", replacement)


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

    def send(self, op: str, **fields: object) -> None:
        """One frame to the host. What is not Unicode (lone surrogates) goes as U+FFFD."""
        if self._out < 0:
            raise RuntimeError("a forked process cannot reach sub-LLMs: use threads")
        body = json.dumps({"op": op, **fields}, ensure_ascii=False).encode(errors="lone-surrogates")
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError(f"one call may carry {MAX_FRAME_BYTES >> 20} MB; this one has {len(body) >> 20} MB")
        data = memoryview(self._nonce + len(body).to_bytes(4, "big") + body)
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
