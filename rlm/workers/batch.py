"""The prompts of one map: those on their way, and the results that were not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlm.errors import SubLLMError
from rlm.workers.base import Completion
from rlm.workers.retry import Retry
from rlm.workers.worker import Worker

Result = Completion | SubLLMError
Task = asyncio.Task[Result | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Whom a map tells of what happens, at the moment it happens."""

    on_retry: Callable[[Retry], None] | None
    on_result: Callable[[Result], None] | None


class Batch:
    """One map's prompts. `changed` is set whenever there may be something for the consumer to do."""

    def __init__(self, listeners: Listeners, *, ordered: bool) -> None:
        self.listeners = listeners
        self.line: deque[asyncio.Future[Worker]] = deque()  # prompts that wait for their turn
        self.tasks: set[Task] = set()
        self.in_flight: set[Task] = set()  # of these, the ones that a worker has
        self.ready: deque[Result] = deque()
        self.error: BaseException | None = None
        self.changed = asyncio.Event()
        self._ordered = ordered
        self._next_index = 0
        self._early: dict[int, Result] = {}  # results that wait for the ones before them

    def add(self, task: Task) -> None:
        """Take in the task that sees a prompt through. None as its result: it was given up, as the batch has ended."""
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def is_in_line(self) -> bool:
        """Whether one of its prompts waits for its turn."""
        while self.line and self.line[0].done():  # given up meanwhile
            self.line.popleft()
        return bool(self.line)

    @contextlib.contextmanager
    def call_in_flight(self) -> Iterator[None]:
        """What the current task does in this context is paid for: an error of the batch does not cut it short."""
        task = asyncio.current_task()
        assert task is not None
        self.in_flight.add(task)
        try:
            yield
        finally:
            self.in_flight.discard(task)

    def fail(self, error: BaseException) -> None:
        """End the batch: nothing more is sent. The first error is the one that counts."""
        self.error = self.error or error
        for task in self.tasks - self.in_flight:
            task.cancel()
        self.changed.set()

    async def wind_up(self, within_s: float) -> None:
        """After an error: let the calls in flight end, for they are paid. All that was answered is `ready` then."""
        if self.in_flight:
            await asyncio.wait(self.in_flight, timeout=within_s)
        await self.close()
        self.ready.extend(self._early[index] for index in sorted(self._early))
        self._early.clear()

    async def close(self) -> None:
        """Cancel what is on its way."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)

    def _done(self, task: Task) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self.fail(error)
        elif (result := task.result()) is not None:
            self._put(result)
            self.changed.set()

    def _put(self, result: Result) -> None:
        if not self._ordered:
            self.ready.append(result)
            return
        self._early[result.index] = result
        while self._next_index in self._early:
            self.ready.append(self._early.pop(self._next_index))
            self._next_index += 1
