"""Where a pool's workers come from: the registry, or the launcher."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rlm.errors import WorkerError
from rlm.workers.base import WorkerClient, WorkerEntry, WorkerLauncher, WorkerRegistry
from rlm.workers.retry import RetryPolicy
from rlm.workers.shield import uninterrupted
from rlm.workers.worker import State, Worker

MAX_POLL_S = 1.0
RENEWALS_A_LIFE = 3  # of a claim


class Supply:
    """Obtains the worker of a slot, and ends it."""

    def __init__(
        self,
        launcher: WorkerLauncher,
        registry: WorkerRegistry,
        connect: Callable[[WorkerEntry], WorkerClient],
        policy: RetryPolicy,
    ) -> None:
        self._launcher = launcher
        self._registry = registry
        self._connect = connect
        self._policy = policy

    @property
    def outlives_pool(self) -> bool:
        """Whether later pools find the workers: then they are left running."""
        return self._registry.outlives_pool

    async def known(self) -> dict[int, WorkerEntry]:
        """The registry's workers by slot. Raises: WorkerError."""
        return await self._registry.entries()

    async def obtain(self, worker: Worker, found: WorkerEntry | None, is_fit: Callable[[WorkerEntry], bool]) -> None:
        """Give `worker` its entry and client: those that were found in its slot if fit and well, else new ones.

        Raises: WorkerError.
        """
        for polls in itertools.count(1):
            if found is not None:
                client = await self._adopt(found) if is_fit(found) else None
                if client is not None:
                    worker.entry, worker.client = found, client
                    return
                await self._registry.remove(worker.slot, found)
            worker.until = 0
            claim = await self._registry.claim(worker.slot)
            if claim is None:  # another run is starting it: the registry has no events, so look again later
                await asyncio.sleep(min(self._policy.delay_s(polls), MAX_POLL_S))
            elif (entry := await self._start(worker, claim)) is not None:
                worker.entry, worker.client, worker.ours = entry, self._connect(entry), True
                return
            found = await self._registry.entry(worker.slot)

    async def end(self, worker: Worker) -> None:
        """Hang up, take the worker out of the registry and stop it, as far as that is for us to do.

        One that is dead is ended by whoever finds it so. One that is well and in a registry that outlives us may be
        in use by other runs; when it is old, its own end is near, and others give it no prompts either.
        Raises: WorkerError.
        """
        await worker.client.aclose()
        to_stop = worker.state is State.EVICTED or (worker.ours and not self.outlives_pool)
        try:
            if to_stop or worker.state is State.RETIRED:
                await self._registry.remove(worker.slot, worker.entry)
        finally:
            if to_stop:
                await self._launcher.stop(worker.entry)

    async def _adopt(self, entry: WorkerEntry) -> WorkerClient | None:
        """The client of a registry's worker, if that is well."""
        client = self._connect(entry)
        try:
            await client.check()
        except BaseException as exc:
            await uninterrupted(client.aclose())
            if isinstance(exc, WorkerError):
                return None
            raise
        return client

    async def _start(self, worker: Worker, claim: str) -> WorkerEntry | None:
        """Start a worker and publish it; None when the claim was lost meanwhile. Raises: WorkerError."""
        entry, published = None, False
        worker.state = State.STARTING
        try:
            async with self._kept(worker.slot, claim):
                entry = await self._launcher.start()
            published = await self._registry.publish(worker.slot, claim, entry)
        finally:
            if not published:
                await uninterrupted(self._undo(worker.slot, claim, entry))
        if not published:
            worker.state = State.SOUGHT
        return entry if published else None

    @asynccontextmanager
    async def _kept(self, slot: int, claim: str) -> AsyncIterator[None]:
        """Renew the claim for as long as the start takes."""
        done = asyncio.Event()
        renewing = asyncio.create_task(self._renew_until(done, slot, claim))
        try:
            yield
        finally:
            done.set()
            # A renewal under way is waited for: it must not be written after what the claim is used for.
            await uninterrupted(_end_of(renewing))

    async def _renew_until(self, done: asyncio.Event, slot: int, claim: str) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self._registry.claim_life_s / RENEWALS_A_LIFE)
                return
            with contextlib.suppress(WorkerError):  # it may answer the next time, before the claim has expired
                await self._registry.renew(slot, claim)

    async def _undo(self, slot: int, claim: str, entry: WorkerEntry | None) -> None:
        try:
            await self._registry.release(slot, claim)
        finally:
            if entry is not None:
                await self._launcher.stop(entry)


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
