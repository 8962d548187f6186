"""A pool of workers for sub-LLM calls. `WorkerPool.map` is all of its use:

    async with WorkerPool(launcher, registry, size=4) as pool:
        async for completion in pool.map(prompts):
            ...

A prompt is one task from the moment it is taken to its answer. It waits for its turn, has a worker for one call,
and decides by the outcome whether to wait and stand in line again. Turns go round the maps, so that a short map does
not wait for the end of a long one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rlm.errors import InputError, PoolBrokenError, SubLLMError, WorkerError
from rlm.workers.base import (
    Answer,
    Completion,
    Prompt,
    ProviderFailure,
    WorkerBusy,
    WorkerClient,
    WorkerEntry,
    WorkerLauncher,
    WorkerRegistry,
)
from rlm.workers.batch import Batch, Listeners, Result
from rlm.workers.client import HttpWorkerClient
from rlm.workers.fleet import Fleet, Outcome
from rlm.workers.limiter import AdaptiveLimit
from rlm.workers.retry import Retry, RetryPolicy, Tries
from rlm.workers.shield import uninterrupted
from rlm.workers.supply import Supply
from rlm.workers.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What a pool is doing, and has done. `waiting` prompts have been taken from a map and are not in flight."""

    workers: int
    starting: int
    in_flight: int
    waiting: int
    done: int
    failed: int
    retries: int
    concurrency_limit: int


class WorkerPool:
    """Up to `size` workers with up to `per_worker` calls in flight on each. Use as `async with`.

    Raises: InputError when one of these is below 1.
    """

    def __init__(
        self,
        launcher: WorkerLauncher,
        registry: WorkerRegistry,
        *,
        size: int,
        per_worker: int = 64,
        policy: RetryPolicy | None = None,
        connect: Callable[[WorkerEntry], WorkerClient] = HttpWorkerClient,
    ) -> None:
        if min(size, per_worker) < 1:
            raise InputError(f"a pool of {size} workers with {per_worker} prompts each answers nothing; give 1 or more")
        self._policy = policy or RetryPolicy()
        supply = Supply(launcher, registry, connect, self._policy)
        self._fleet = Fleet(supply, size=size, per_worker=per_worker, policy=self._policy)
        self._limit = AdaptiveLimit(size * per_worker)
        # Twice the capacity, so that whenever a call ends, the next prompt stands in line, even if many back off.
        self._prompts_ahead = 2 * size * per_worker
        self._batches: deque[Batch] = deque()  # whose turn it is comes first
        self._in_flight = self._done = self._failed = self._retries = 0
        self._turns: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            await self.close()
        else:
            self._closed = True
            await uninterrupted(self._close())

    @property
    def trouble(self) -> list[str]:
        """What could not be ended, a line each; complete once the pool is closed."""
        return list(self._fleet.trouble)

    async def close(self) -> list[str]:
        """End every map and stop the workers, but those that later pools find: these are left, all started.

        For the ones still being started it waits up to `RetryPolicy.closing_s` seconds; a cancellation cuts that
        short, and ends them. Returns what could not be ended, a line each.
        """
        self._closed = True
        for batch in self._batches:
            batch.fail(PoolBrokenError("the pool was closed"))
        if self._turns is not None:
            self._turns.cancel()  # no more workers are wanted
        try:
            await self._fleet.starts_ended()
        finally:
            await uninterrupted(self._close())
        return self.trouble

    def stats(self) -> PoolStats:
        """The counts up to now."""
        return PoolStats(
            workers=self._fleet.running,
            starting=self._fleet.starting,
            in_flight=self._in_flight,
            waiting=self._outstanding() - self._in_flight,
            done=self._done,
            failed=self._failed,
            retries=self._retries,
            concurrency_limit=self._limit.limit,
        )

    async def map(
        self,
        prompts: Iterable[Prompt],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        on_retry: Callable[[Retry], None] | None = None,
        on_result: Callable[[Result], None] | None = None,
    ) -> AsyncGenerator[Result, None]:
        """Have each prompt answered; results in the order of the prompts, or as they come.

        `prompts` is read as capacity allows, so it may be endless; results wait in memory only for the consumer, or,
        ordered, for the ones before them. A prompt that fails for good yields its SubLLMError with
        `return_exceptions`, and ends the map without. `on_result` is called once with each result at the moment it is
        there, also when the consumer never takes it from the iteration. Leaving the iteration cancels what is in
        flight.

        When an error ends the map, no more is sent, the calls in flight have `RetryPolicy.wind_up_s` seconds to end,
        and all that was answered is yielded before the error is raised; ordered, there may then be gaps.

        Raises: SubLLMError (at the first failure, whatever the order); ProviderError, which no other prompt would
        escape; PoolBrokenError when there are no workers to be had, which the next map tries anew.
        """
        if self._closed:
            raise PoolBrokenError("the pool is closed")
        batch = Batch(Listeners(on_retry=on_retry, on_result=on_result), ordered=order_outputs)
        coming = enumerate(prompts)
        self._batches.append(batch)
        if self._turns is None:
            self._turns = asyncio.create_task(self._give_turns())
        if self._fleet.broken is not None:
            self._fleet.mend()
        try:
            while True:
                if batch.error is None:
                    self._take(coming, batch, keep_failure=return_exceptions)
                if batch.error is not None:
                    await batch.wind_up(self._policy.wind_up_s)
                if batch.ready:
                    yield batch.ready.popleft()
                elif batch.error is not None:
                    raise batch.error
                elif batch.tasks:
                    batch.changed.clear()
                    await batch.changed.wait()
                else:
                    return
        finally:
            self._batches.remove(batch)
            await batch.close()

    def _take(self, coming: Iterator[tuple[int, Prompt]], batch: Batch, *, keep_failure: bool) -> None:
        """Set out with as many more prompts as there is room for."""
        while len(batch.tasks) + len(batch.ready) < self._prompts_ahead:
            try:
                item = next(coming, None)
            except Exception as exc:  # noqa: BLE001  # the caller's own: raised to the caller, after what is ready
                batch.fail(exc)
                return
            if item is None:
                return
            batch.add(asyncio.create_task(self._answer(batch, *item, keep_failure=keep_failure)))

    # One prompt

    async def _answer(self, batch: Batch, index: int, prompt: Prompt, *, keep_failure: bool) -> Result | None:
        """Try a prompt until it is answered, has failed for good, or is in vain because its batch has ended."""
        tries = Tries(self._policy, index)
        tell_result, tell_retry = batch.listeners.on_result, batch.listeners.on_retry
        while True:
            worker, latency_s, outcome = await self._ask(batch, prompt)
            if isinstance(outcome, Answer):
                self._done += 1
                completion = Completion(
                    index=index,
                    text=outcome.text,
                    usage=tries.usage + outcome.usage,
                    attempts=tries.attempts + 1,
                    latency_s=latency_s,
                    worker=worker.entry.id,
                    cut=outcome.cut,
                )
                if tell_result is not None:
                    tell_result(completion)
                return completion
            try:
                retry = tries.next(outcome, time.monotonic())
            except SubLLMError as failure:
                self._failed += 1
                if tell_result is not None:
                    tell_result(failure)
                if keep_failure:
                    return failure
                raise
            if batch.error is not None:
                return None
            self._retries += 1
            if tell_retry is not None:
                tell_retry(retry)
            await asyncio.sleep(retry.delay_s)

    async def _ask(self, batch: Batch, prompt: Prompt) -> tuple[Worker, float, Outcome]:
        """Wait for a worker, then make one call: the worker, the seconds the call took, and what came of it."""
        worker = await self._turn(batch)
        outcome: Outcome | None = None
        sent_at = time.monotonic()
        with batch.call_in_flight():
            try:
                outcome = await worker.client.complete(prompt)
                self._learn(outcome, sent_at)
            except WorkerError as exc:
                outcome = exc
            finally:
                self._give_back(worker, outcome)
        return worker, time.monotonic() - sent_at, outcome

    def _learn(self, outcome: Answer | ProviderFailure | WorkerBusy, sent_at: float) -> None:
        """Let the limit know what an outcome says about the provider."""
        match outcome:
            case Answer():
                self._limit.succeeded()
            case ProviderFailure(kind="rate_limited", retry_after_s=wait_s):
                self._limit.refused(sent_at=sent_at, in_flight=self._in_flight)
                if wait_s is not None and wait_s <= self._policy.max_wait_s:
                    self._limit.pause(wait_s)

    # Turns

    async def _turn(self, batch: Batch) -> Worker:
        """Wait in the batch's line for a worker; it is to be given back."""
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        batch.line.append(turn)
        self._fleet.changed.set()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(turn.result(), None)
            raise

    def _give_back(self, worker: Worker, outcome: Outcome | None) -> None:
        self._in_flight -= 1
        self._fleet.release(worker, outcome)

    async def _give_turns(self) -> None:
        """Give turns for as long as the pool is open, whenever something has changed or enough time has passed."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._give_turns_now()):
                    await self._fleet.changed.wait()
            self._fleet.changed.clear()

    def _give_turns_now(self) -> float | None:
        """Give turns while there are workers and the limit allows. Seconds until more may follow, if time decides."""
        self._fleet.want(self._outstanding())
        if self._fleet.broken is not None:
            while (batch := self._first_in_line()) is not None:
                batch.line.popleft().set_exception(PoolBrokenError(self._fleet.broken))
            return None
        if (pause_s := self._limit.paused_s()) > 0:
            return pause_s
        while self._in_flight < self._limit.limit and (batch := self._first_in_line()) is not None:
            worker = self._fleet.lease()
            if worker is None:
                return self._fleet.wait_s()
            self._in_flight += 1
            batch.line.popleft().set_result(worker)
            self._batches.rotate(-1)
        return None

    def _first_in_line(self) -> Batch | None:
        """The first batch, from the one whose turn it is, that has a prompt in line."""
        for _ in range(len(self._batches)):
            if self._batches[0].is_in_line():
                return self._batches[0]
            self._batches.rotate(-1)
        return None

    def _outstanding(self) -> int:
        return sum(len(batch.tasks) for batch in self._batches)

    async def _close(self) -> None:
        for batch in list(self._batches):
            await batch.close()
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        await self._fleet.close()
