"""Words for the user: made harmless, and said in a way that a broken stream cannot turn into a lost answer."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO


def visible(text: str) -> str:
    """The text with its control characters made harmless: what a model or a file's name says drives no terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def in_one_line(text: str) -> str:
    """The same in one line, whatever a name or an error holds."""
    return visible(" ".join(text.split()))


class Outlet(io.TextIOBase):
    """Text to a stream that may be closed, full, or left by its reader. Never raises: the first trouble ends it.

    A stream of None was closed before the program began. What the encoding cannot write is written as escapes.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.trouble: str | None = None if stream is not None else "it is closed"
        self.reader_left = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """How the text is written."""
        return (self._stream.encoding if self._stream is not None else None) or "utf-8"

    def write(self, text: str) -> int:
        """Write the text."""
        if self._stream is not None and self.trouble is None:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as exc:
                self._fail(exc)
        return len(text)

    def flush(self) -> None:
        """Send what is buffered."""
        if self._stream is not None and self.trouble is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as exc:
                self._fail(exc)

    def isatty(self) -> bool:
        """Whether somebody looks at a terminal."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def _fail(self, exc: OSError | ValueError) -> None:
        self.trouble = getattr(exc, "strerror", None) or str(exc)
        self.reader_left = isinstance(exc, BrokenPipeError)
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # else the interpreter tries again at its end, and complains
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


def say(text: str) -> None:
    """A line, or several, on standard error, if that still works."""
    outlet = Outlet(sys.stderr)
    outlet.write(f"{visible(text)}\n")
    outlet.flush()


def deliver(text: str, stream: TextIO | None = None) -> bool:
    """Print what was asked for on standard output, or on `stream`; whether it has arrived.

    A pipe gets it as it is, and a terminal made harmless. Where it cannot be written, standard error gets it,
    unless its reader has gone away.
    """
    outlet = Outlet(sys.stdout if stream is None else stream)
    outlet.write(f"{visible(text) if outlet.isatty() else text}\n")
    outlet.flush()
    if outlet.trouble is not None and not outlet.reader_left:
        say(f"rlm: cannot write to standard output: {outlet.trouble}; what was to go there:\n{text}")
    return outlet.trouble is None


def hold_standard_descriptors() -> None:
    """Put /dev/null in the place of each standard stream that is closed.

    The next file or socket would get its number, and what is written to the stream would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
