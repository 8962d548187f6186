"""The REPL as a Modal Sandbox: no network, no Secret, driven over an exec'd process's stdin and stdout."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import modal
from modal.container_process import ContainerProcess

from rlm.config import ReplLimits
from rlm.context import Context
from rlm.errors import ReplBrokenError, ReplDiedError
from rlm.modal.sandboxes import MODAL_FAILED, ROLE_TAG, create, list_running, terminate, terminate_after, words_of
from rlm.repl.session import OUT_OF_MEMORY, ReplProcess, how_it_ended
from rlm.workers.shield import uninterrupted

HOURS = 60 * 60
ROLE = "repl"
RUN_TAG = "run"
LIFE_S = 6 * HOURS  # longer than any run
IDLE_S = 600  # a driver whose host is gone leaves; its Sandbox follows
CPU = (0.5, 4.0)  # asked for, and the most it may take
MEMORY_MIB = (1_024, 16_384)
COMMAND = ("python", "-I", "-X", "utf8", "/root/sandbox_image/driver.py")
FOLDER = "/tmp"  # noqa: S108  # where cells run: the Sandbox is theirs alone
CONTEXT_FOLDER = "/context"
START_TIMEOUT_S = 180.0
PATIENCE_S = 30.0
WRITE_BYTES = 4 << 20  # the client buffers no more than 16 MiB
STREAM_LIMIT_BYTES = 1 << 20
STDERR_KEPT_CHARS = 4_000
EXIT_TIMEOUT_S = 5.0
TIMED_OUT_STATUS = 124


class ModalReplLauncher:
    """Starts each driver in a Sandbox of its own, which is never used again.

    `image` holds the folder `sandbox_image` at /root. A run has one launcher, for itself and its children: before the
    first start it ends what an attempt at the same run has left that was killed, for a driver that runs keeps its
    Sandbox alive for hours. For `start_timeout_s` seconds a Sandbox is waited for, for `patience_s` the account's
    limits.
    """

    def __init__(
        self,
        app: modal.App,
        image: modal.Image,
        *,
        run_id: str,
        start_timeout_s: float = START_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._app = app
        self._image = image
        self._tags = {RUN_TAG: run_id}
        self._is_first = True
        self._start_timeout_s = start_timeout_s
        self._patience_s = patience_s

    async def notice(self) -> str | None:
        """Nothing: a Sandbox of its own, without a network, is apart."""
        return None

    async def start(self, context: Context, limits: ReplLimits) -> ReplProcess:
        """A new driver; its Sandbox has its own limits, and files are copied there. Raises: ReplBrokenError."""
        del context, limits
        if self._is_first:
            self._is_first = False
            await self._end_those_of_the_run()
        try:
            sandbox = await create(
                role=ROLE,
                tags=self._tags,
                patience_s=self._patience_s,
                app=self._app,
                image=self._image,
                block_network=True,
                timeout=LIFE_S,
                idle_timeout=IDLE_S,
                cpu=CPU,
                memory=MEMORY_MIB,
            )
        except MODAL_FAILED as exc:
            raise ReplBrokenError(f"Modal creates no Sandbox for the REPL: {words_of(exc)}") from exc
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return ModalReplProcess(sandbox, await sandbox.exec.aio(*COMMAND, workdir=FOLDER, text=False))
        except BaseException as exc:
            await terminate_after(exc, sandbox)
            if isinstance(exc, MODAL_FAILED):
                raise ReplBrokenError(f"the REPL's Sandbox does not start: {words_of(exc)}") from exc
            raise

    async def _end_those_of_the_run(self) -> None:
        with contextlib.suppress(*MODAL_FAILED):  # then they end by themselves
            left = await list_running(self._app.app_id or "", {ROLE_TAG: ROLE, **self._tags})
            for sandbox in left.values():
                await terminate(sandbox)


class ModalReplProcess:
    """A driver that is a process of a Sandbox."""

    def __init__(self, sandbox: modal.Sandbox, process: ContainerProcess[bytes]) -> None:
        self.reader = asyncio.StreamReader(STREAM_LIMIT_BYTES)
        self._sandbox = sandbox
        self._process = process
        self._unsent = bytearray()
        self._sending: asyncio.Task[None] | None = None  # one at a time: the client counts bytes
        self._files = 0
        self._stderr = ""
        self._stdout_pump = asyncio.create_task(self._pump_stdout())
        self._stderr_pump = asyncio.create_task(self._pump_stderr())
        self._closing: asyncio.Task[str] | None = None

    async def write(self, data: bytes) -> None:
        """Send `data`. What is written at the same time goes in one call to Modal. Raises: ReplDiedError."""
        self._unsent += data
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        await asyncio.shield(self._sending)

    async def place(self, path: Path) -> str:
        """Copy a file into the Sandbox. Raises: ReplBrokenError."""
        self._files += 1
        remote = f"{CONTEXT_FOLDER}/{self._files}"
        try:
            await self._sandbox.filesystem.copy_from_local.aio(path, remote)
        except MODAL_FAILED as exc:
            raise ReplBrokenError(f"cannot bring {path.name} to the REPL: {words_of(exc)}") from exc
        return remote

    async def close(self) -> str:
        """Terminate the Sandbox, also when cancelled meanwhile. Tells how the process ended."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(ended_by_itself=self._stdout_pump.done()))
        return await uninterrupted(_result_of(self._closing))

    async def _close(self, *, ended_by_itself: bool) -> str:
        how = await self._how() if ended_by_itself else "it was killed"
        try:
            await terminate(self._sandbox)
        except MODAL_FAILED as exc:
            how += f"; its Sandbox could not be ended, and ends by itself: {words_of(exc)}"
        pumps = [pump for pump in (self._stdout_pump, self._stderr_pump, self._sending) if pump is not None]
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        return how

    async def _how(self) -> str:
        """How the process ended that has closed its stdout."""
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                status = await self._process.wait.aio()
                await self._stderr_pump
        except MODAL_FAILED:
            return await self._how_the_sandbox_ended()
        return how_it_ended(status, self._stderr)

    async def _how_the_sandbox_ended(self) -> str:
        status = None
        with contextlib.suppress(*MODAL_FAILED):
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                status = await self._sandbox.poll.aio()
        if status is None:
            return "its Sandbox cannot be reached"
        if status == TIMED_OUT_STATUS:
            return f"its Sandbox was at the end of its {LIFE_S // HOURS} hours"
        return f"its Sandbox was {OUT_OF_MEMORY}"

    async def _send(self) -> None:
        try:
            while self._unsent:
                piece = bytes(self._unsent[:WRITE_BYTES])
                del self._unsent[:WRITE_BYTES]
                self._process.stdin.write(piece)
                await self._process.stdin.drain.aio()
        except MODAL_FAILED as exc:
            await asyncio.wait([self._stdout_pump], timeout=EXIT_TIMEOUT_S)  # it ends with the process
            raise ReplDiedError from exc

    async def _pump_stdout(self) -> None:
        valve = _Valve()
        self.reader.set_transport(valve)
        with contextlib.suppress(*MODAL_FAILED):  # `_how` asks what became of it
            async for chunk in self._process.stdout:
                self.reader.feed_data(chunk)
                await valve.opened.wait()
        self.reader.feed_eof()

    async def _pump_stderr(self) -> None:
        with contextlib.suppress(*MODAL_FAILED):
            async for chunk in self._process.stderr:
                self._stderr = (self._stderr + chunk.decode(errors="replace"))[:STDERR_KEPT_CHARS]


class _Valve(asyncio.Transport):
    """What a StreamReader closes when it holds more than it should: a flood then stays where it comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.opened.set()

    def pause_reading(self) -> None:
        self.opened.clear()

    def resume_reading(self) -> None:
        self.opened.set()


async def _result_of(task: asyncio.Task[str]) -> str:
    return await asyncio.shield(task)
