"""Keeps as many workers running as are wanted, and lends them out a prompt at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Coroutine

from rlm.errors import RLMError, WorkerError
from rlm.workers.base import Answer, ProviderFailure, WorkerBusy, WorkerEntry
from rlm.workers.retry import RetryPolicy
from rlm.workers.supply import Supply
from rlm.workers.worker import ON_THE_WAY, RUNNING, State, Worker

PROMPTS_PER_WORKER = 16  # outstanding for each worker started: one carries 64, but a full pool ends a batch sooner
STRIKES = 3  # failures of a worker that says it is well, with no completion between, after which it is not believed
SHARE_KEPT_S = 1.0  # how long a worker that may be running already is waited for, before others take its prompts
WORDS_CHARS = 300

Outcome = Answer | ProviderFailure | WorkerBusy | WorkerError


class Fleet:
    """The workers of one pool.

    `changed` is set whenever a worker may have become free, or none will any more: then `broken` says why. `trouble`
    is what could not be ended, a line each.
    """

    def __init__(self, supply: Supply, *, size: int, per_worker: int, policy: RetryPolicy) -> None:
        self._supply = supply
        self._size = size
        self._per_worker = per_worker
        self._policy = policy
        self.changed = asyncio.Event()
        self.broken: str | None = None
        self.trouble: list[str] = []
        self._workers: list[Worker] = []
        self._prompts = 0  # outstanding
        self._deaths = self._failed_starts = 0  # in a row
        self._watch: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Workers that are up."""
        return len(self._in(RUNNING))

    @property
    def starting(self) -> int:
        """Workers on their way."""
        return len(self._in(ON_THE_WAY))

    def want(self, prompts: int) -> None:
        """Let the old go, and see to it that workers for so many prompts are there or on their way."""
        self._prompts = prompts
        self._retire_old()
        if self.broken is not None:
            return
        wanted = min(math.ceil(prompts / PROMPTS_PER_WORKER), self._size)
        sought = [Worker() for _ in range(wanted - self.running - self.starting)]
        if sought:
            self._workers += sought
            self._do(self._seek(sought), sought)

    def mend(self) -> None:
        """Forget what broke the pool: starting workers may be tried again."""
        self.broken = None
        self._deaths = self._failed_starts = 0

    def lease(self) -> Worker | None:
        """The least busy worker that can take a prompt now. To be given back with `release`.

        While workers are sought that may be up already, each takes no more than its share of the prompts.
        """
        now = time.monotonic()
        for worker in self._in({State.RESTING}):
            if worker.until <= now:
                worker.state = State.READY
        ready = self._in({State.READY})
        sought = sum(worker.until > now for worker in self._in({State.SOUGHT}))
        most = self._per_worker
        if sought:
            most = min(most, math.ceil(self._prompts / (len(ready) + sought)))
        free = [worker for worker in ready if worker.in_flight < most]
        if not free:
            return None
        leased = min(free, key=lambda worker: worker.in_flight)
        leased.in_flight += 1
        return leased

    def wait_s(self) -> float | None:
        """Seconds until `lease` may give a worker that it does not give now, if only time decides; else None."""
        now = time.monotonic()
        waited_for = self._in({State.RESTING, State.SOUGHT})
        return min((worker.until - now for worker in waited_for if worker.until > now), default=None)

    def release(self, worker: Worker, outcome: Outcome | None) -> None:
        """Take a worker back after a call, and learn from what came of it; None: the call was cancelled."""
        worker.in_flight -= 1
        match outcome:
            case Answer():  # it is well, and so is the way workers are started
                worker.completed += 1
                worker.strikes = self._deaths = 0
            case WorkerBusy(retry_after_s=wait_s) if worker.state in {State.READY, State.RESTING}:
                worker.state, worker.until = State.RESTING, time.monotonic() + wait_s
            case WorkerError() if worker.state in {State.READY, State.RESTING}:
                worker.strikes += 1
                self._examine(worker, outcome)  # one dropped connection is no death: the worker is asked first
        if worker.state is State.RETIRED and worker.in_flight == 0:
            self._do(self._end(worker), [worker])
        self.changed.set()

    async def starts_ended(self) -> None:
        """Wait, for a bounded time, for the workers being started, if later pools will find them."""
        await self._cancel({State.SOUGHT})
        tasks = self._tasks({State.STARTING})
        if tasks and self._supply.outlives_pool:
            await asyncio.wait(tasks, timeout=self._policy.closing_s)

    async def close(self) -> None:
        """Stop every worker this pool started, unless later pools are to find them. `trouble` is complete then."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._cancel({State.SOUGHT, State.STARTING, State.SUSPECT})
        for worker in self._in(RUNNING):
            self._do(self._end(worker), [worker])
        if ending := self._tasks(frozenset(State)):
            await asyncio.wait(ending)

    # From SOUGHT to READY

    async def _seek(self, sought: Collection[Worker]) -> None:
        """Give each a slot of ours: those that have a fit worker first, then those that come first."""
        if self._failed_starts:
            await asyncio.sleep(self._policy.delay_s(self._failed_starts))
        for worker in sought:
            worker.until = time.monotonic() + SHARE_KEPT_S
        known = await self._supply.known()
        fit = {slot for slot, entry in known.items() if self._is_fit(entry)}
        taken = {worker.slot for worker in self._in(ON_THE_WAY | RUNNING)}
        free = sorted(set(range(self._size)) - taken, key=lambda slot: (slot not in fit, slot))
        for worker, slot in zip(sought, free, strict=False):
            worker.slot = slot
            self._do(self._fill(worker, known.get(slot)), [worker])

    async def _fill(self, worker: Worker, found: WorkerEntry | None) -> None:
        await self._supply.obtain(worker, found, self._is_fit)
        worker.state = State.READY
        self._failed_starts = 0
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_all())

    def _is_fit(self, entry: WorkerEntry) -> bool:
        evicted = {worker.entry.id for worker in self._in({State.EVICTED})}
        return entry.id not in evicted and not self._is_old(entry)

    def _is_old(self, entry: WorkerEntry) -> bool:
        return entry.expires - time.time() < self._policy.end_of_life_s

    # From READY to the end

    async def _watch_all(self) -> None:
        """Examine workers that hold prompts and complete none: of a machine that is lost, nothing tells us."""
        while True:
            await asyncio.sleep(self._policy.watch_s)
            for worker in self._in({State.READY, State.RESTING}):
                if worker.in_flight and worker.completed == worker.completed_at_last_watch:
                    self._examine(worker)
                worker.completed_at_last_watch = worker.completed

    def _examine(self, worker: Worker, why: WorkerError | None = None) -> None:
        worker.state = State.SUSPECT
        self._do(self._check(worker, why), [worker])

    async def _check(self, worker: Worker, why: WorkerError | None) -> None:
        """Ask a worker whether it is well: a live one goes on, a dead one is evicted."""
        try:
            if why is not None and worker.strikes >= STRIKES:
                raise why
            await worker.client.check()
            worker.state = State.READY
        except WorkerError as exc:
            worker.state = State.EVICTED
            self._do(self._end(worker), [worker])
            if worker.completed == 0:
                self._count_death(str(why or exc))

    def _retire_old(self) -> None:
        for worker in self._in({State.READY, State.RESTING}):
            if not self._is_old(worker.entry):
                continue
            worker.state = State.RETIRED
            if worker.in_flight == 0:
                self._do(self._end(worker), [worker])
                if worker.completed == 0:
                    self._count_death(f"worker {worker.entry.id} was of no use: its life ends too soon")

    async def _end(self, worker: Worker) -> None:
        """End a worker, as far as that is for us to do. One that cannot be ended is kept in mind, not to be adopted."""
        try:
            await self._supply.end(worker)
        except Exception as exc:  # noqa: BLE001  # whatever it was, it is no reason to lose what was answered
            self.trouble.append(f"worker {worker.entry.id}: {in_words(exc)}")
        else:
            self._workers.remove(worker)

    def _count_death(self, why: str) -> None:
        self._deaths += 1
        if self._deaths >= self._policy.deaths:
            self.broken = (
                f"{self._deaths} workers in a row failed to start or died before they answered; the last: {why}"
            )

    # Tasks

    def _in(self, states: Collection[State]) -> list[Worker]:
        return [worker for worker in self._workers if worker.state in states]

    def _do(self, work: Coroutine[None, None, None], workers: Collection[Worker]) -> None:
        """Begin what is to be done about the workers."""
        task = asyncio.create_task(work)
        for worker in workers:
            worker.task = task
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        for worker in [worker for worker in self._workers if worker.task is task]:
            worker.task = None
            if worker.state in ON_THE_WAY:
                self._workers.remove(worker)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, WorkerError):
            self._failed_starts += 1
            self._count_death(str(error))
        elif error is not None:
            # An error that no adapter should raise must not leave prompts waiting for a worker that never comes.
            self.broken = f"the machinery failed: {in_words(error)}"
        self.changed.set()

    def _tasks(self, states: Collection[State]) -> set[asyncio.Task[None]]:
        return {worker.task for worker in self._in(states) if worker.task is not None}

    async def _cancel(self, states: Collection[State]) -> None:
        tasks = self._tasks(states)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def in_words(error: BaseException) -> str:
    """One bounded line. Of an error neither ours nor the system's only the kind: its words may hold a key."""
    kind = type(error).__name__
    words = " ".join(str(error).split())[:WORDS_CHARS]
    if isinstance(error, RLMError):
        return words or kind
    return f"{kind}: {words}" if isinstance(error, OSError) and words else kind
