"""The worker registry on Modal: which worker holds which slot, in a modal.Dict."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypedDict

import modal

from rlm.errors import WorkerError
from rlm.modal.sandboxes import MODAL_FAILED
from rlm.modal.workers import as_worker_error
from rlm.workers.base import WorkerEntry
from rlm.workers.shield import uninterrupted

CLAIM_LIFE_S = 30.0  # of a claim that is not renewed
SLOTS_AT_ONCE = 16  # read in parallel; beyond the first of these that were never used, there are none


class _Record(TypedDict):
    """What a slot is at an epoch: claimed until `expires`, filled when there is an `entry`, else free."""

    owner: str
    expires: float
    entry: dict[str, Any] | None


class DictRegistry:
    """A `WorkerRegistry` in a modal.Dict, shared by all who give the same scope.

    A slot is what the record of its last epoch says: `{scope}/{slot}/{epoch}`. Only who owns an epoch fills it; to
    take over from somebody who died is to win the next epoch, with an atomic put. So nothing that somebody slow still
    writes can harm a successor. `{scope}/{slot}` holds an epoch to look from; it may lag behind. Old records are
    never read again, and Modal lets them expire. A claim is renewed for as long as its worker is being started, so
    one that has expired is of somebody who died. Slots are filled from the first; without a `size`, `entries` finds
    all that were ever used.

    The client repeats every call whose reply is lost, so a put may be refused because of itself: the owner tells.
    """

    outlives_pool = True
    claim_life_s = CLAIM_LIFE_S

    def __init__(
        self, store: modal.Dict, *, scope: str, size: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._scope = scope
        self._size = size
        self._clock = clock
        self._uncertain: set[str] = set()  # owners of claims of ours that may have been won: Modal did not say

    async def entries(self) -> dict[int, WorkerEntry]:
        """Every slot that has a worker. Raises: WorkerError."""
        found = {}
        with as_worker_error("the registry did not answer"):
            for first in range(0, sys.maxsize if self._size is None else self._size, SLOTS_AT_ONCE):
                last = first + SLOTS_AT_ONCE if self._size is None else min(first + SLOTS_AT_ONCE, self._size)
                records = await asyncio.gather(*(self._last(slot) for slot in range(first, last)))
                for slot, (_, record) in enumerate(records, first):
                    if record["entry"]:
                        found[slot] = WorkerEntry(**record["entry"])
                if not any(epoch for epoch, _ in records):  # never used, and so neither are those after them
                    break
        return found

    async def entry(self, slot: int) -> WorkerEntry | None:
        """The worker of one slot. Raises: WorkerError."""
        with as_worker_error("the registry did not answer"):
            _, record = await self._last(slot)
        return WorkerEntry(**record["entry"]) if record["entry"] else None

    async def claim(self, slot: int) -> str | None:
        """Take the right to start the worker of an empty slot. None if another has it already. Raises: WorkerError."""
        claiming = asyncio.ensure_future(self._try_claim(slot))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await uninterrupted(self._give_back(slot, claiming))
            raise

    async def renew(self, slot: int, claim: str) -> None:
        """Let a claim last anew from now on. Does nothing when it was lost meanwhile. Raises: WorkerError."""
        with as_worker_error("the registry did not answer"):
            epoch, record = await self._claimed(slot, claim)
            if record is not None and record["expires"] and not record["entry"]:
                await self._put(slot, epoch, {**record, "expires": self._clock() + self.claim_life_s})

    async def publish(self, slot: int, claim: str, entry: WorkerEntry) -> bool:
        """Fill a claimed slot. False when the claim was lost meanwhile. Raises: WorkerError."""
        with as_worker_error("the registry did not answer"):
            epoch, record = await self._claimed(slot, claim)
            if record is None or record["entry"] or not record["expires"] or await self._get(slot, epoch + 1):
                return False
            await self._put(slot, epoch, {**record, "entry": asdict(entry)})
            return await self._get(slot, epoch + 1) is None  # asked after the put; who takes a slot over looks back

    async def release(self, slot: int, claim: str) -> None:
        """Give a claim back, the worker having failed to start. Raises: WorkerError."""
        with as_worker_error("the registry did not answer"):
            epoch, record = await self._claimed(slot, claim)
            if record is not None:
                await self._put(slot, epoch, {**record, "expires": 0, "entry": None})

    async def remove(self, slot: int, entry: WorkerEntry) -> None:
        """Empty the slot if it still holds this very worker. Raises: WorkerError."""
        with as_worker_error("the registry did not answer"):
            epoch, record = await self._last(slot)
            if record["entry"] and record["entry"]["id"] == entry.id:
                await self._put(slot, epoch, {**record, "expires": 0, "entry": None})

    async def idle_s(self, slot: int, entry: WorkerEntry, done: int) -> float:
        """Seconds since the worker's count of prompts done was first told as `done`. Raises: WorkerError."""
        key = f"{self._key(slot)}/done"
        with as_worker_error("the registry did not answer"):
            told = await self._store.get.aio(key) or {}
            if (told.get("id"), told.get("done")) != (entry.id, done):
                told = {"id": entry.id, "done": done, "since": self._clock()}
                await self._store.put.aio(key, told)
        return self._clock() - float(told["since"])

    async def _try_claim(self, slot: int) -> str | None:
        owner = secrets.token_hex(8)
        with as_worker_error("the registry did not answer"):
            epoch, held = await self._last(slot)
            if held["entry"]:
                return None
            if held["expires"] > self._clock():
                if held["owner"] not in self._uncertain:
                    return None
                self._uncertain.discard(held["owner"])
                return f"{epoch}:{held['owner']}"
            mine = _Record(owner=owner, expires=self._clock() + self.claim_life_s, entry=None)
            try:
                won = await self._store.put.aio(self._key(slot, epoch + 1), mine, skip_if_exists=True)
                if not won and (await self._get(slot, epoch + 1) or mine)["owner"] != owner:
                    return None
                before = await self._get(slot, epoch) if epoch else None
                if before and before["entry"]:  # its owner was slow and not dead
                    await self._put(slot, epoch + 1, {**mine, "entry": before["entry"]})
                    return None
                await self._store.put.aio(self._key(slot), epoch + 1)
            except MODAL_FAILED:
                self._uncertain.add(owner)
                raise
        return f"{epoch + 1}:{owner}"

    async def _give_back(self, slot: int, claiming: asyncio.Future[str | None]) -> None:
        with contextlib.suppress(WorkerError):  # it expires
            if claim := await claiming:
                await self.release(slot, claim)

    async def _claimed(self, slot: int, claim: str) -> tuple[int, _Record | None]:
        """The epoch of a claim, and its record if it is still its owner's."""
        epoch, owner = claim.split(":")
        record = await self._get(slot, int(epoch))
        return int(epoch), record if record and record["owner"] == owner else None

    async def _last(self, slot: int) -> tuple[int, _Record]:
        """The last epoch of a slot, and its record; a free one if it has none."""
        epoch = int(await self._store.get.aio(self._key(slot)) or 0)
        if epoch == 0:  # there is no such epoch: a slot that was never used has no record
            record, following = None, await self._get(slot, 1)
        else:
            record, following = await asyncio.gather(self._get(slot, epoch), self._get(slot, epoch + 1))
        while following is not None:
            epoch, record = epoch + 1, following
            following = await self._get(slot, epoch + 1)
        return epoch, record or _Record(owner="", expires=0, entry=None)

    async def _get(self, slot: int, epoch: int) -> _Record | None:
        record: _Record | None = await self._store.get.aio(self._key(slot, epoch))
        return record

    async def _put(self, slot: int, epoch: int, record: _Record) -> None:
        await self._store.put.aio(self._key(slot, epoch), record)

    def _key(self, slot: int, epoch: int | None = None) -> str:
        return f"{self._scope}/{slot}" if epoch is None else f"{self._scope}/{slot}/{epoch}"
