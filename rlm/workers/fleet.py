"""Keeps as many workers running as are wanted, and buries the dead."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from rlm.errors import WorkerError
from rlm.workers.base import WorkerClient, WorkerEntry, WorkerLauncher, WorkerRegistry
from rlm.workers.retry import RetryPolicy
from rlm.workers.shield import uninterrupted

MAX_POLL_S = 1.0
STRIKES = 3  # failures of a worker that says it is well, with no completion between, after which it is not believed


@dataclass(slots=True, eq=False)
class Worker:
    """A worker as this pool sees it."""

    slot: int
    entry: WorkerEntry
    client: WorkerClient
    in_flight: int = 0
    completed: int = 0
    completed_at_last_watch: int = 0
    strikes: int = 0
    suspect: bool = False  # under examination: takes no prompts
    retired: bool = False  # near the end of its life: finishes what it has
    resting_until: float = field(default=-float("inf"))  # it said that it is full; monotonic


class Fleet:
    """The workers of one pool. `on_change` is called whenever a worker may have become free, or none will any more."""

    def __init__(
        self,
        launcher: WorkerLauncher,
        registry: WorkerRegistry,
        connect: Callable[[WorkerEntry], WorkerClient],
        *,
        size: int,
        policy: RetryPolicy,
        on_change: Callable[[], None],
    ) -> None:
        self._launcher = launcher
        self._registry = registry
        self._connect = connect
        self._size = size
        self._policy = policy
        self._on_change = on_change
        self.broken: str | None = None  # why no more workers will come
        self.starting = 0
        self._workers: dict[int, Worker] = {}
        self._slots: set[int] = set()  # with a worker, or about to have one
        self._started: dict[str, WorkerEntry] = {}  # by this pool, by id, and still to be stopped
        self._evicted: set[str] = set()  # ids that must not come back from the registry
        self._deaths = self._failed_starts = 0
        self._tasks: set[asyncio.Task[None]] = set()  # may be cancelled
        self._burials: set[asyncio.Task[None]] = set()  # must be awaited
        self._watch: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._workers)

    def want(self, count: int) -> None:
        """Let the old go, and see to it that `count` workers (or the pool's size) are there or on their way."""
        self._retire_old()
        if self.broken is not None:
            return
        for _ in range(min(count, self._size) - len(self._workers) - self.starting):
            self.starting += 1
            self._spawn(self._fill(), self._tasks)

    def pick(self, per_worker: int) -> Worker | None:
        """The least busy worker that can take a prompt now."""
        now = time.monotonic()
        ready = [
            worker
            for worker in self._workers.values()
            if worker.in_flight < per_worker and not worker.suspect and worker.resting_until <= now
        ]
        return min(ready, key=lambda worker: worker.in_flight, default=None)

    def rest_s(self) -> float | None:
        """Seconds until the first of the workers that said they were full can be asked again. None if none did."""
        now = time.monotonic()
        return min((w.resting_until - now for w in self._workers.values() if w.resting_until > now), default=None)

    def give_back(self, worker: Worker) -> None:
        """Count a call that has ended, however it ended."""
        worker.in_flight -= 1
        if worker.retired and worker.in_flight == 0:
            self._spawn(self._bury(worker), self._burials)

    def completed(self, worker: Worker) -> None:
        """Note that the worker answered: it is well, and so is the way workers are started."""
        worker.completed += 1
        worker.strikes = self._deaths = 0

    def failed(self, worker: Worker, why: WorkerError) -> None:
        """Note that a call ended with a WorkerError. One dropped connection is no death: the worker is asked first."""
        if not worker.suspect:
            worker.strikes += 1
            self._examine(worker, why)

    async def close(self) -> None:
        """Stop every worker this pool started, unless later pools are to find them.

        Raises: what the launcher or the registry raised for a worker that may have been left behind.
        """
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        left = [*self._workers.values()]
        self._workers.clear()
        results = await asyncio.gather(*self._burials, *(self._bury(worker) for worker in left), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # Filling a slot

    async def _fill(self) -> None:
        slot = -1
        try:
            if self._failed_starts:
                await asyncio.sleep(self._policy.delay_s(self._failed_starts))
            slot = await self._choose_slot()
            self._workers[slot] = await self._obtain(slot)
            self._failed_starts = 0
            self._watch = self._watch or self._spawn(self._watch_all(), self._tasks)
        except WorkerError as exc:
            self._failed_starts += 1
            self._count_death(str(exc))
        finally:
            if slot not in self._workers:
                self._slots.discard(slot)
            self.starting -= 1
        self._on_change()

    async def _choose_slot(self) -> int:
        """Reserve a slot of ours: one that has a worker if there is one, else the first that is empty."""
        known = await self._registry.entries()
        free = [slot for slot in range(self._size) if slot not in self._slots]
        slot = next((slot for slot in free if slot in known), free[0])
        self._slots.add(slot)
        return slot

    async def _obtain(self, slot: int) -> Worker:
        """The worker of the slot, from the registry if it is well, else started by us. Raises: WorkerError."""
        for polls in itertools.count(1):
            entry = (await self._registry.entries()).get(slot)
            if entry is not None:
                worker = await self._adopt(slot, entry)
                if worker is not None:
                    return worker
                await self._registry.remove(slot, entry)
            claim = await self._registry.claim(slot)
            if claim is None:  # another run is starting it: the registry has no events, so look again later
                await asyncio.sleep(min(self._policy.delay_s(polls), MAX_POLL_S))
                continue
            entry = await self._start(slot, claim)
            if entry is not None:
                return Worker(slot, entry, self._connect(entry))
        raise AssertionError

    async def _adopt(self, slot: int, entry: WorkerEntry) -> Worker | None:
        """The worker of a registry's entry, if it is fit for work."""
        if entry.id in self._evicted or self._is_old(entry):
            return None
        client = self._connect(entry)
        try:
            await client.check()
        except BaseException as exc:
            await uninterrupted(client.aclose())
            if isinstance(exc, WorkerError):
                return None
            raise
        return Worker(slot, entry, client)

    async def _start(self, slot: int, claim: str) -> WorkerEntry | None:
        """Start a worker and publish it; None when the claim was lost meanwhile. Raises: WorkerError."""
        entry, published = None, False
        try:
            entry = await self._launcher.start()
            self._started[entry.id] = entry
            published = await self._registry.publish(slot, claim, entry)
        finally:
            if not published:
                await uninterrupted(self._undo(slot, claim, entry))
        return entry if published else None

    async def _undo(self, slot: int, claim: str, entry: WorkerEntry | None) -> None:
        try:
            await self._registry.release(slot, claim)
        finally:
            if entry is not None:
                del self._started[entry.id]
                await self._launcher.stop(entry)

    # Ends

    def _examine(self, worker: Worker, why: WorkerError | None = None) -> None:
        worker.suspect = True
        self._spawn(self._check(worker, why), self._tasks)

    async def _check(self, worker: Worker, why: WorkerError | None) -> None:
        """Ask a worker whether it is well: a live one goes on, a dead one is evicted."""
        try:
            if why is not None and worker.strikes >= STRIKES:
                raise why
            await worker.client.check()
            worker.suspect = False
        except WorkerError as exc:
            if self._workers.get(worker.slot) is worker:
                self._evict(worker, str(why or exc))
        self._on_change()

    def _evict(self, worker: Worker, why: str) -> None:
        del self._workers[worker.slot]
        self._slots.discard(worker.slot)
        self._evicted.add(worker.entry.id)
        self._spawn(self._bury(worker), self._burials)
        if worker.completed == 0:
            self._count_death(why)

    def _retire_old(self) -> None:
        for worker in [worker for worker in self._workers.values() if self._is_old(worker.entry)]:
            del self._workers[worker.slot]
            self._slots.discard(worker.slot)
            worker.retired = True
            if worker.completed == worker.in_flight == 0:
                self._count_death(f"worker {worker.entry.id} was of no use: its life ends too soon")
            if worker.in_flight == 0:
                self._spawn(self._bury(worker), self._burials)

    def _is_old(self, entry: WorkerEntry) -> bool:
        return entry.expires - time.time() < self._policy.end_of_life_s

    async def _bury(self, worker: Worker) -> None:
        """Hang up, take the worker out of the registry and stop it, as far as that is for us to do.

        A dead worker is nobody's. One that is well and in a registry that outlives us may be in use by other runs;
        when it is old, its own end is near, and others will not give it prompts either.
        """
        await worker.client.aclose()
        ours = self._started.pop(worker.entry.id, None) is not None
        to_stop = worker.entry.id in self._evicted or (ours and not self._registry.outlives_pool)
        try:
            if to_stop or worker.retired:
                await self._registry.remove(worker.slot, worker.entry)
        finally:
            if to_stop:
                await self._launcher.stop(worker.entry)

    def _count_death(self, why: str) -> None:
        self._deaths += 1
        if self._deaths >= self._policy.deaths:
            self.broken = (
                f"{self._deaths} workers in a row failed to start or died before they answered; the last: {why}"
            )

    # Background

    async def _watch_all(self) -> None:
        """Examine workers that hold prompts and complete none: a lost machine sends no farewell."""
        while True:
            await asyncio.sleep(self._policy.watch_s)
            for worker in self._workers.values():
                if worker.in_flight and worker.completed == worker.completed_at_last_watch and not worker.suspect:
                    self._examine(worker)
                worker.completed_at_last_watch = worker.completed

    def _spawn(self, work: Coroutine[None, None, None], group: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            self._burials.discard(task)
        elif task not in self._burials:  # a failed burial stays there for `close` to tell
            # An error that no adapter should raise must not leave prompts waiting for a worker that never comes.
            self.broken = f"the machinery failed: {task.exception()!r}"
            self._on_change()
