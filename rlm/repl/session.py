"""The host side of the frames: one REPL for one run, started again with its context when its process dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rlm.config import ReplLimits
from rlm.context import Context
from rlm.errors import InputError, ReplBrokenError, ReplDiedError
from rlm.events import CellOutput
from rlm.repl import frames

START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 600.0
WATCH_EVERY_S = 0.25
MIB = 1 << 20
SIGNAL_STATUS = 128
OUT_OF_MEMORY = "killed, perhaps because it ran out of memory"
MAX_HELD_BYTES = 256 * MIB  # of calls that wait for their answers, together
CALL_BYTES = 64 << 10  # what a call counts for
ITEM_BYTES = 1_000  # and each of its prompts, besides its text
MAX_ERROR_CHARS = 10_000
MAX_FAILURE_CHARS = 2_000

T = TypeVar("T")


class ReplProcess(Protocol):
    """A running driver: bytes in, bytes out."""

    reader: asyncio.StreamReader

    async def write(self, data: bytes) -> None:
        """Send `data`, waiting while the process is slow to read.

        Raises: ReplDiedError when it has ended.
        """

    async def place(self, path: Path) -> str:
        """Make a file of the host readable there; the path it has there.

        Raises: ReplBrokenError when it cannot be brought there.
        """

    async def close(self) -> str:
        """End the process and all it has started. Tells how it ended; may be called again."""


class ReplLauncher(Protocol):
    """Starts drivers."""

    async def notice(self) -> str | None:
        """What the user is to be told of how well model-written code is kept apart, if anything."""

    async def start(self, context: Context, limits: ReplLimits) -> ReplProcess:
        """A new driver process, to which the files of `context` can be placed, all of it within `limits`.

        Raises: ReplBrokenError when it cannot be started; nothing of it is left behind then.
        """


CallHandler = Callable[[frames.Call], Awaitable[Sequence[object]]]


def resources(limits: ReplLimits, context_bytes: int) -> dict[str, int]:
    """The limits as names and values of setrlimit."""
    return {
        "RLIMIT_AS": limits.memory_mib * MIB + 4 * context_bytes,
        "RLIMIT_NPROC": limits.processes,
        "RLIMIT_FSIZE": limits.file_mib * MIB,
        "RLIMIT_CORE": 0,
    }


def how_it_ended(status: int, stderr: str) -> str:
    """How a driver ended, from its exit status (128 + n for signal n, as shells have it) and its stderr."""
    lines = stderr.strip().split("\n")
    number = status - SIGNAL_STATUS
    if number <= 0:
        how, said = f"exit status {status}", lines[-1]
    elif number == signal.SIGKILL:
        how, said = OUT_OF_MEMORY, ""
    else:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        how, said = f"ended by {name}", lines[0]
    said = "".join(filter(str.isprintable, said))  # cells can write there, and it goes to a terminal
    return f"{how}; {said}" if said else how


class ReplSession:
    """Runs cells, one at a time, and answers what they ask.

    `answer` is called for every call of a cell, concurrently, and gives one JSON object for each item. What it
    raises ends the run: `run` raises it in turn, the next one if none is under way. A prompt of more than
    `max_prompt_chars` characters is refused in the cell (None: any length is sent). Use as `async with`.
    """

    def __init__(
        self,
        launcher: ReplLauncher,
        context: Context,
        limits: ReplLimits,
        answer: CallHandler,
        *,
        max_prompt_chars: int | None = None,
    ) -> None:
        self._launcher = launcher
        self._context = context
        self._limits = limits
        self._answer = answer
        self._max_prompt_chars = max_prompt_chars
        self._bounds = frames.Bounds(output_chars=most_output_chars(limits), prompt_chars=max_prompt_chars)
        self._process: ReplProcess | None = None
        self._nonce = b""
        self._reading: asyncio.Task[None] | None = None
        self._calls: dict[asyncio.Task[None], int] = {}  # with the bytes of each
        self._unanswered: Counter[int] = Counter()  # calls, by the cell that made them
        self._failure: Exception | None = None  # of the answering, while no cell ran
        self._reply: asyncio.Future[frames.Frame] | None = None
        self._cells = 0
        self.context_description = ""  # in lines, of which the first is a summary
        self.context_type = ""
        self.libraries: list[str] = []  # that cells can import, besides the standard one

    async def __aenter__(self) -> Self:
        """Start the REPL and load the context.

        Raises: InputError when the context cannot be read; ReplBrokenError when the REPL does not come up.
        """
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, code: str) -> CellOutput:
        """Run a cell to its end. When it raises, or is cancelled, the process is gone.

        Raises: ReplDiedError when its process ended; the next call finds a fresh one with the context loaded.
        """
        return await self._run("cell", code=code)

    async def final(self, text: str) -> CellOutput:
        """Take the final answer that stands in the parentheses of a FINAL(...) written in prose.

        An expression over variables of the cells (or an f-string) is evaluated as if a cell had called FINAL with it,
        and what it raises is in the output's `error`. A Python literal keeps its value. Anything else is the answer
        as it stands.

        Raises: what `run` does.
        """
        return await self._run("final", text=text)

    async def _run(self, op: str, **work: str) -> CellOutput:
        if self._process is None:
            await self._start()
        self._cells += 1
        watch = asyncio.create_task(self._kill_when_stuck(self._cells))
        try:
            if self._failure is not None:
                raise self._failure
            limits = {"timeout_s": self._limits.cell_timeout_s, "max_s": self._limits.cell_max_s}
            done = await self._ask(frames.Done, None, op, number=self._cells, **work, **limits)
            self._check(done)
        except ReplDiedError as exc:
            how = await self.close()
            raise ReplDiedError(str(exc) or f"the REPL process ended: {how}") from exc
        except BaseException:
            await self.close()
            raise
        finally:
            watch.cancel()
        return done.output

    async def close(self) -> str:
        """End the process and every call under way. Tells how the process ended."""
        process, self._process = self._process, None
        self._failure = None
        tasks = [task for task in (self._reading, *self._calls) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            return await process.close() if process is not None else ""
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self) -> None:
        try:
            self._nonce = os.urandom(frames.NONCE_BYTES)
            self._process = process = await self._launcher.start(self._context, self._limits)
            self._reading = asyncio.create_task(self._read_frames(process.reader))
            limits = resources(self._limits, self._context.size_bytes)
            await process.write(self._nonce)
            sizes = {"max_output_chars": self._limits.max_output_chars, "max_prompt_chars": self._max_prompt_chars}
            await self._ask(frames.Ready, START_TIMEOUT_S, "hello", limits=limits, **sizes)
            files = [[name, await process.place(path)] for name, path in self._context.files]
            loaded = await self._ask(frames.Loaded, LOAD_TIMEOUT_S, "load", kind=self._context.kind, files=files)
        except (ReplDiedError, TimeoutError) as exc:
            how = await self.close()
            raise ReplBrokenError(f"the REPL did not start: {str(exc) or how}") from exc
        except BaseException:
            await self.close()
            raise
        self.context_description, self.context_type = loaded.description, loaded.type
        self.libraries = loaded.libraries

    async def _ask(self, kind: type[T], wait_s: float | None, op: str, /, **fields: object) -> T:
        """Send a frame and wait for the one that answers it."""
        process = self._process
        self._reply = asyncio.get_running_loop().create_future()
        if process is None or self._reading is None or self._reading.done():
            raise ReplDiedError
        async with asyncio.timeout(wait_s):
            await process.write(frames.encode(self._nonce, op, **fields))
            reply = await self._reply
        if isinstance(reply, frames.LoadFailed):
            raise InputError(f"cannot read the context: {reply.message}")
        if not isinstance(reply, kind):
            raise broken_protocol(f"it answered {op!r} with {type(reply).__name__}")
        return reply

    def _check(self, done: frames.Done) -> None:
        """A cell can forge its result, but not one that costs more than a true one."""
        result = done.output
        late_chars = sum(len(late.stdout) + len(late.stderr) for late in result.late)
        texts = (result.stdout, result.stderr, result.value, result.error or "")
        total_chars = sum(map(len, texts)) + late_chars + sum(map(len, result.new_names))
        if done.number != self._cells or total_chars > most_output_chars(self._limits):
            raise broken_protocol("no such result is possible")
        if result.final is not None and len(result.final.text) > frames.MAX_ANSWER_CHARS:
            raise broken_protocol("no such answer is possible")

    async def _read_frames(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                outline = await frames.read_outline(reader, self._nonce)
                cost = CALL_BYTES + ITEM_BYTES * len(outline.text_bytes) + outline.size_bytes
                while self._calls and sum(self._calls.values()) + cost > MAX_HELD_BYTES:
                    await asyncio.wait(self._calls, return_when=asyncio.FIRST_COMPLETED)
                frame = await frames.read_frame(reader, outline, self._bounds)
                if isinstance(frame, frames.Call):
                    task = asyncio.create_task(self._answer_call(frame))
                    self._calls[task] = cost
                    task.add_done_callback(self._calls.pop)
                else:
                    self._settle(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._settle(ReplDiedError())
        except ValueError as exc:
            self._settle(broken_protocol(str(exc)))

    async def _answer_call(self, call: frames.Call) -> None:
        self._unanswered[call.cell] += 1
        try:
            outcomes = await self._answer(call)
            data = frames.encode(self._nonce, "answer", id=call.id, outcomes=outcomes)
        except Exception as exc:  # noqa: BLE001  # raised by `run`
            if not self._settle(exc):
                self._failure = self._failure or exc
            told = f"the run cannot go on: {str(exc) or type(exc).__name__}"[:MAX_FAILURE_CHARS]
            data = frames.encode(self._nonce, "answer", id=call.id, failed=told)
        finally:
            self._unanswered -= Counter((call.cell,))  # which drops those of zero
        if self._process is not None:
            with contextlib.suppress(ReplDiedError):  # the reader of frames tells
                await self._process.write(data)

    def _settle(self, reply: frames.Frame | Exception) -> bool:
        """Give what is waited for its reply; whether anything was."""
        if self._reply is None or self._reply.done():
            return False
        if isinstance(reply, Exception):
            self._reply.set_exception(reply)
        else:
            self._reply.set_result(reply)
        return True

    async def _kill_when_stuck(self, cell: int) -> None:
        """The driver interrupts a cell at its limits; this is for a cell that will not be interrupted."""
        left_s = self._limits.cell_timeout_s + self._limits.interrupt_grace_s
        left_with_waits_s = self._limits.cell_max_s + self._limits.interrupt_grace_s
        while left_s > 0 and left_with_waits_s > 0:
            await asyncio.sleep(WATCH_EVERY_S)
            left_with_waits_s -= WATCH_EVERY_S
            if not self._unanswered[cell]:
                left_s -= WATCH_EVERY_S
        limit = f"{self._limits.cell_timeout_s if left_s <= 0 else self._limits.cell_max_s:g} s"
        self._settle(ReplDiedError(f"the cell ignored the interrupt after {limit}; the REPL process was killed"))
        if self._process is not None:
            await self._process.close()


def most_output_chars(limits: ReplLimits) -> int:
    """More characters than a cell's output, what it left running and its traceback can have together."""
    return 8 * limits.max_output_chars + MAX_ERROR_CHARS


def broken_protocol(reason: str) -> ReplDiedError:
    """What is raised when the REPL sends what a driver does not: model-written code has got at the frames."""
    return ReplDiedError(f"the REPL process broke its protocol and was killed: {reason}")
