"""A process in a jail with its three streams, the way the wire speaks of them: by byte offset."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence

from .jail import Jail
from .wire import conflict, not_found

_CHUNK = 1 << 20


class ByteLog:
    """What a stream has said, readable from any offset, by any number of readers, until it ends.

    With `keep` only the most recent bytes are held.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.start = 0
        self._data = bytearray()
        self._keep = keep
        self._closed = False
        self._news = asyncio.Event()

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data
        if self._keep is not None and len(self._data) > self._keep:
            cut = len(self._data) - self._keep
            del self._data[:cut]
            self.start += cut
        self._tell()

    def close(self) -> None:
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """Yields `(offset, bytes)` from `offset` on, or from the oldest byte held; ends when the stream does."""
        while True:
            offset = max(offset, self.start)
            chunk = bytes(self._data[offset - self.start : offset - self.start + _CHUNK])
            if chunk:
                yield offset, chunk
                offset += len(chunk)
            elif self._closed:
                return
            else:
                await self._news.wait()


class Process:
    """A running program. `Process.start` spawns it; the streams are pumped until they end."""

    def __init__(self, jail: Jail, keep: int | None) -> None:
        self.jail = jail
        self.pid = 0
        self.stdout = ByteLog(keep)
        self.stderr = ByteLog(keep)
        self.returncode: int | None = None
        self.lost = False
        self.stdin_offset = 0
        self.stdin_closed = False
        self._last_write: tuple[int, bytes] = (0, b"")
        self._stdin: asyncio.WriteTransport | None = None
        self._stdin_flow: _Flow | None = None
        self._stdin_lock = asyncio.Lock()
        self._pumps: list[asyncio.Task[None]] = []
        self._waiter: asyncio.Task[int] | None = None

    @classmethod
    async def start(
        cls, jail: Jail, argv: Sequence[str], env: Mapping[str, str], cwd: str, *, keep: int | None = None
    ) -> "Process":
        """Raises SpawnError, JailError."""
        process = cls(jail, keep)
        stdin_r, stdin_w = os.pipe()
        stdout_r, stdout_w = os.pipe()
        stderr_r, stderr_w = os.pipe()
        try:
            process.pid = await jail.spawn(argv, env, cwd, [stdin_r, stdout_w, stderr_w])
        except BaseException:
            for fd in (stdin_w, stdout_r, stderr_r):
                os.close(fd)
            raise
        finally:
            for fd in (stdin_r, stdout_w, stderr_w):
                os.close(fd)
        loop = asyncio.get_running_loop()
        process._pumps = [
            loop.create_task(_pump(stdout_r, process.stdout)),
            loop.create_task(_pump(stderr_r, process.stderr)),
        ]
        process._stdin, process._stdin_flow = await loop.connect_write_pipe(_Flow, os.fdopen(stdin_w, "wb", 0))
        process._waiter = loop.create_task(process._watch())
        return process

    async def _watch(self) -> int:
        status = await self.jail.wait(self.pid)
        self.lost = self.jail.gone.is_set()
        self.returncode = status
        self.close_stdin()
        return status

    async def wait(self) -> int:
        """The exit status; negative for a signal."""
        assert self._waiter is not None
        return await asyncio.shield(self._waiter)

    def signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            self.jail.signal(self.pid, number)

    async def write(self, offset: int, data: bytes, *, eof: bool) -> None:
        """Write to stdin at `offset`.

        The same write again is taken for a retry and ignored; any other write that does not begin where the last one
        ended comes from a second writer and is refused. Raises GRPCError.
        """
        async with self._stdin_lock:
            if self.lost:
                raise not_found("the container has already shut down")
            if offset != self.stdin_offset:
                if (offset, data) == self._last_write:
                    return
                raise conflict(
                    f"stdin stands at byte {self.stdin_offset}, the write at {offset}: one writer per process"
                )
            if self.stdin_closed and data:
                raise conflict("stdin is closed")
            if data:
                await self._feed(data)
                self._last_write = (offset, data)
            if eof:
                self.close_stdin()

    async def _feed(self, data: bytes) -> None:
        if self._stdin is None or self._stdin_flow is None or self._stdin.is_closing():
            raise conflict("the process does not read its stdin any more")
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            self._stdin.write(piece)
            await self._stdin_flow.drain()
            self.stdin_offset += len(piece)

    def close_stdin(self) -> None:
        self.stdin_closed = True
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.close()

    async def drained(self) -> None:
        """Wait until both outputs have ended."""
        await asyncio.gather(*self._pumps)

    async def settle(self, patience_s: float = 1.0) -> None:
        """After the exit: take what is left in the pipes, and end the streams even if somebody still holds them."""
        await asyncio.wait(self._pumps, timeout=patience_s)
        self.stdout.close()
        self.stderr.close()

    async def close(self) -> None:
        """Let go of the pipes. The process itself ends with its jail."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.abort()
        for task in self._pumps:
            task.cancel()
        if self._waiter is not None:
            self._waiter.cancel()
        await asyncio.gather(*self._pumps, *([self._waiter] if self._waiter else []), return_exceptions=True)
        self.stdout.close()
        self.stderr.close()


class _Flow(asyncio.BaseProtocol):
    """Back pressure of a pipe."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._lost = False

    def pause_writing(self) -> None:
        self._open.clear()

    def resume_writing(self) -> None:
        self._open.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._open.set()

    async def drain(self) -> None:
        await self._open.wait()
        if self._lost:
            raise conflict("the process does not read its stdin any more")


async def _pump(fd: int, into: ByteLog) -> None:
    """Move a pipe into its log."""
    reader = asyncio.StreamReader(limit=_CHUNK)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0))
    try:
        while data := await reader.read(_CHUNK):
            into.feed(data)
    finally:
        transport.close()
        into.close()
