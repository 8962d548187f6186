"""The REPL as a subprocess of this machine, isolated as far as the machine allows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rlm.config import ReplLimits
from rlm.context import Context
from rlm.errors import InputError, ReplBrokenError, ReplDiedError
from rlm.local.isolation import TOOLS, Confined, Tool, choose, confine, environment
from rlm.local.watch import Watch, Watched, children
from rlm.repl.session import MIB, SIGNAL_STATUS, ReplProcess, how_it_ended, resources
from rlm.scratch import Scratch

STDERR_KEPT_CHARS = 4_000
STREAM_LIMIT_BYTES = 1 << 20
EXIT_TIMEOUT_S = 1


class LocalReplLauncher:
    """Starts drivers as subprocesses, kept apart by the first of the `tools` that works here.

    Each has a folder of its own. No variable of ours reaches them.
    """

    def __init__(self, tools: Sequence[Tool] = TOOLS) -> None:
        self._tools = tuple(tools)

    async def notice(self) -> str | None:
        """What the user is to be told, once, of how well this machine keeps model-written code apart."""
        return (await asyncio.to_thread(choose, self._tools)).notice()

    async def start(self, context: Context, limits: ReplLimits) -> ReplProcess:
        """A new driver."""
        starting: asyncio.Future[LocalReplProcess] = asyncio.ensure_future(self._start(context, limits))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # asyncio 3.11 waits for ever when a start is cancelled, so let it finish
            with contextlib.suppress(ReplBrokenError, InputError):
                await (await starting).close()
            raise

    async def _start(self, context: Context, limits: ReplLimits) -> LocalReplProcess:
        tool = (await asyncio.to_thread(choose, self._tools)).tool
        files = [path for _, path in context.files]
        memory_bytes = resources(limits, context.size_bytes)["RLIMIT_AS"]
        scratch = await asyncio.to_thread(Scratch, "repl")
        try:
            confined = await asyncio.to_thread(confine, tool, scratch.path, files, limits.disk_mib * MIB)
            with confined:
                process = await asyncio.create_subprocess_exec(
                    *confined.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=scratch.path if confined.in_memory else confined.home,
                    env=environment() | {"HOME": confined.home, "TMPDIR": confined.home},
                    pass_fds=confined.inherited,
                    start_new_session=True,  # Ctrl-C in the terminal is for us alone
                    limit=STREAM_LIMIT_BYTES,
                )
        except OSError as exc:
            scratch.remove()
            raise ReplBrokenError(f"cannot start the REPL: {exc}") from exc
        watched = Watched(
            pid=process.pid,
            in_memory=confined.in_memory,
            home=Path(confined.home),
            limits=limits,
            memory_bytes=memory_bytes,
        )
        return LocalReplProcess(process, scratch, confined, Watch(watched))


class LocalReplProcess:
    """A driver that is a subprocess, with a folder of its own, confined as it is told, and watched."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Scratch, confined: Confined, watch: Watch) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.reader = process.stdout
        self._stdin = process.stdin
        self._process = process
        self._scratch = scratch
        self._confined = confined
        self._watch = watch
        self._excess = ""
        self._stderr_start = ""
        self._stderr = asyncio.create_task(self._drain_stderr(process.stderr))
        self._watching = asyncio.create_task(self._kill_on_excess())
        self._closing: asyncio.Task[str] | None = None

    async def write(self, data: bytes) -> None:
        """Send `data`."""
        try:
            self._stdin.write(data)
            await self._stdin.drain()
        except (ConnectionError, RuntimeError) as exc:  # RuntimeError: uvloop, when it is closed
            raise ReplDiedError from exc

    async def place(self, path: Path) -> str:
        """The path of a file of its context."""
        return self._confined.placed[path]

    async def close(self) -> str:
        """Kill the process and, where it is confined, all that it has started. Goes on when it is cancelled."""
        if self._closing is None:
            ended_by_itself = self.reader.at_eof()
            if not ended_by_itself:
                self._kill()
            self._closing = asyncio.create_task(self._close(ended_by_itself=ended_by_itself))
        return await asyncio.shield(self._closing)

    async def _kill_on_excess(self) -> None:
        self._excess = await self._watch.excess()
        if self._excess:
            self._kill()

    def _kill(self) -> None:
        """End it so that, where it is confined, its own end tells that of all the others."""
        inner = children(self._process.pid) if self._confined.waits and self._process.returncode is None else []
        with contextlib.suppress(ProcessLookupError):
            for pid in inner:
                os.kill(pid, signal.SIGKILL)
        if not inner:
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _close(self, *, ended_by_itself: bool) -> str:
        if ended_by_itself:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), EXIT_TIMEOUT_S)
            ended_by_itself = self._process.returncode is not None
            self._kill()
        self._stdin.close()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._process.wait()
                await self._stderr
        except TimeoutError:  # asyncio waits for the pipes, too, and a process that escaped us may hold them
            self._kill_group()
            self._process._transport.close()  # type: ignore[attr-defined]
            self._stderr.cancel()
        status = await self._process.wait()
        self._watch.stop()
        await self._watching
        trouble = await asyncio.to_thread(self._scratch.remove)
        how = "it was killed"
        if self._excess:
            how = f"it {self._excess} and was killed"
        elif ended_by_itself:
            how = how_it_ended(SIGNAL_STATUS - status if status < 0 else status, self._stderr_start)
        return f"{how}; {trouble}" if trouble else how

    async def _drain_stderr(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(STREAM_LIMIT_BYTES):
            self._stderr_start = (self._stderr_start + data.decode(errors="replace"))[:STDERR_KEPT_CHARS]
