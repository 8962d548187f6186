"""What a cell prints: captured at the file descriptors, told apart by cell, kept in bounded memory."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import select
import sys
import termios
import threading
from collections.abc import Iterable
from typing import Any

from sandbox_image.channel import private_copy
from sandbox_image.report import cap

CHUNK_BYTES = 1 << 20
LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120
POOLS = tuple(os.path.join(LIBRARY, *path) for path in (("concurrent", "futures"), ("multiprocessing", "pool.py")))  # noqa: PTH118
OWN_THREADS = 3  # the main thread, the reader of frames, the reader of pipes
MAX_LATE = 100  # cells told of at once
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


class Capped:
    """Text of any length in bounded memory: head and tail are kept, what lies between is counted."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._max_bytes = 4 * max_chars  # no character takes more in UTF-8
        self._clear()

    def _clear(self) -> None:
        self._head, self._tail = bytearray(), bytearray()
        self._total_chars = 0

    def add(self, data: bytes) -> None:
        """Append `data`, UTF-8."""
        self._total_chars += len(data.translate(None, CONTINUATION_BYTES))
        room = self._max_bytes - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._max_bytes:
            del self._tail[: -self._max_bytes]

    def take(self) -> str:
        """What was added since the last take."""
        text = cap((self._head + self._tail).decode(errors="replace"), self._max_chars, self._total_chars)
        self._clear()
        return text


class CellOutput:
    """What one cell, and whatever it leaves running in the background, prints."""

    def __init__(self, number: int, max_chars: int, epoll: select.epoll) -> None:
        self.number = number
        self._lock = threading.RLock()  # re-entered when garbage collection runs a __del__ that prints
        self._streams = {1: Capped(max_chars), 2: Capped(max_chars)}
        self._epoll = epoll
        self._read_ends: dict[int, int] = {}
        for fd in self._streams:
            pipe = os.pipe()
            read_end, write_end = map(private_copy, pipe)
            for end in pipe:  # these may be 1 and 2 themselves, when a cell closed them
                os.close(end)
            os.set_blocking(read_end, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
            os.dup2(write_end, fd)
            os.close(write_end)
            self._read_ends[fd] = read_end

    def read_ends(self) -> Iterable[int]:
        """The descriptors to wait on, as long as some process may still write to them."""
        return self._read_ends.values()

    def write(self, fd: int, data: bytes) -> None:
        """Text printed by Python code, put behind what has already gone through the pipe."""
        with self._lock:
            self._drain(fd)
            self._streams[fd].add(data)

    def drain(self) -> None:
        """Take in what is in the pipes now."""
        with self._lock:
            for fd in list(self._read_ends):
                self._drain(fd)

    def take(self) -> dict[str, str]:
        """What was printed since the last take."""
        with self._lock:
            self.drain()
            return {name: self._streams[fd].take() for name, fd in (("stdout", 1), ("stderr", 2))}

    def _drain(self, fd: int) -> None:
        read_end = self._read_ends.get(fd)
        if read_end is None:
            return
        waiting = int.from_bytes(fcntl.ioctl(read_end, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)
        with contextlib.suppress(BlockingIOError):
            while waiting > 0 and (data := os.read(read_end, CHUNK_BYTES)):
                self._streams[fd].add(data)
                waiting -= len(data)

    def hang_up(self, read_end: int) -> None:
        """The last writer of a pipe is gone."""
        with self._lock:
            for fd, end in list(self._read_ends.items()):
                if end == read_end:
                    self._drain(fd)
                    self._epoll.unregister(read_end)
                    os.close(read_end)
                    del self._read_ends[fd]


class Output:
    """Every cell's output, told apart: by pipe for what is written to descriptors 1 and 2, by thread for print."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._epoll = select.epoll()
        self._by_read_end: dict[int, CellOutput] = {}
        self._older: list[CellOutput] = []
        self._unwritten: dict[int, bytes] | None = None  # in a forked child, the lines begun
        self._streams = Stream(self, 1), Stream(self, 2)
        self._flush_c = ctypes.CDLL(None).fflush
        self.current = self._open(0)
        self._mark_threads()
        os.register_at_fork(after_in_child=self._after_fork)

    def _open(self, number: int) -> CellOutput:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc,assignment]
        output = CellOutput(number, self._max_chars, self._epoll)
        for read_end in output.read_ends():
            self._by_read_end[read_end] = output
            self._epoll.register(read_end, select.EPOLLIN)
        return output

    def _mark_threads(self) -> None:
        """A thread prints for the cell that started it, or whose thread did; idents are used again, so no table."""
        start = threading.Thread.start

        def start_marked(thread: threading.Thread) -> None:
            thread.cell_output = self._of_thread()  # type: ignore[attr-defined]
            start(thread)

        threading.Thread.start = start_marked  # type: ignore[method-assign,assignment]

    def _of_thread(self) -> CellOutput:
        output: CellOutput = getattr(threading.current_thread(), "cell_output", self.current)
        return output

    def cell_of_thread(self) -> int:
        """The number of the cell that the running thread works for."""
        return self._of_thread().number

    def _after_fork(self) -> None:
        """A forked child collects nothing, for nobody would take it: what it prints goes through the pipe, by lines."""
        self._unwritten = {1: b"", 2: b""}

    def begin(self, number: int) -> None:
        """From here on it is cell `number` that prints, but for the threads and processes older cells left running."""
        self._older.append(self.current)
        self.current = self._open(number)
        if threading.active_count() > OWN_THREADS:
            self._adopt_idle_workers()

    def _adopt_idle_workers(self) -> None:
        """A pool's thread that waits for work belongs to the cell that now may give it some."""
        frames = sys._current_frames()
        for thread in threading.enumerate():
            frame = frames.get(thread.ident or 0)
            if frame and hasattr(thread, "cell_output") and frame.f_code.co_filename.startswith(POOLS):
                thread.cell_output = self.current

    def flush(self) -> None:
        """Push what the cell has in buffers into the pipes: its own sys.stdout, and C's."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a cell may have put anything there
                stream.flush()
        self._flush_c(None)

    def write(self, fd: int, data: bytes) -> None:
        """Text printed by Python code."""
        if self._unwritten is None:
            self._of_thread().write(fd, data)
            return
        lines, newline, self._unwritten[fd] = (self._unwritten[fd] + data).rpartition(b"\n")
        write_all(fd, lines + newline)

    def flush_fork(self, fd: int) -> None:
        """Write the line that a forked child has begun."""
        if self._unwritten is not None:
            data, self._unwritten[fd] = self._unwritten[fd], b""
            write_all(fd, data)

    def late(self) -> list[tuple[int, dict[str, str]]]:
        """What older cells' leftovers printed since the last call; if it is much, the rest comes with the next."""
        found: list[tuple[int, dict[str, str]]] = []
        found_chars = 0
        busy = {getattr(thread, "cell_output", None) for thread in threading.enumerate()}
        for output in list(self._older):
            if found_chars > self._max_chars or len(found) == MAX_LATE:
                break
            streams = output.take()
            if any(streams.values()):
                found.append((output.number, streams))
                found_chars += sum(map(len, streams.values()))
            if output not in busy and not output.read_ends():
                self._older.remove(output)
        return found

    def drain_for_ever(self) -> None:
        """Keep the pipes from filling up."""
        while True:
            for read_end, events in self._epoll.poll():
                output = self._by_read_end[read_end]
                output.drain()
                if events & select.EPOLLHUP:
                    del self._by_read_end[read_end]
                    output.hang_up(read_end)


def write_all(fd: int, data: bytes) -> None:
    """os.write, to the end."""
    while data:
        data = data[os.write(fd, data) :]


class Stream(io.TextIOBase):
    """sys.stdout and sys.stderr: text goes to the output of the cell that the printing thread belongs to."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, output: Output, fd: int) -> None:
        super().__init__()
        self._output = output
        self._fd = fd
        self.buffer = ByteStream(output, fd)

    def write(self, text: str) -> int:
        """Any str, lone surrogates too, in slices so that a huge one is not copied whole."""
        for start in range(0, len(text), CHUNK_BYTES):
            self._output.write(self._fd, text[start : start + CHUNK_BYTES].encode(errors=self.errors))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back, but in a forked child."""
        self._output.flush_fork(self._fd)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor a subprocess may be given."""
        return self._fd

    def reconfigure(self, **_settings: object) -> None:
        """Nothing: it is UTF-8 and unbuffered for good."""

    def close(self) -> None:
        """Nothing: the next cell prints, too."""


class ByteStream(io.RawIOBase):
    """sys.stdout.buffer."""

    def __init__(self, output: Output, fd: int) -> None:
        super().__init__()
        self._output = output
        self._fd = fd

    def write(self, data: Any) -> int:  # noqa: ANN401  # any bytes-like object
        """Bytes as they are."""
        self._output.write(self._fd, bytes(data))
        return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor a subprocess may be given."""
        return self._fd

    def close(self) -> None:
        """Nothing: the next cell prints, too."""
