"""The registry of one process. The one that processes share is in `rlm/modal/registry.py`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from rlm.workers.base import WorkerEntry

CLAIM_LIFE_S = 30.0  # of a claim that is not renewed


class MemoryRegistry:
    """A `WorkerRegistry` in memory. A claim is the number of its epoch; an expired one is taken over by the next."""

    outlives_pool = False
    claim_life_s = CLAIM_LIFE_S

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[int, WorkerEntry] = {}
        self._claims: dict[int, tuple[str, float]] = {}  # slot -> claim, when it was made or renewed
        self._epochs = itertools.count(1)

    async def entries(self) -> dict[int, WorkerEntry]:
        """Every slot that has a worker."""
        return dict(self._entries)

    async def entry(self, slot: int) -> WorkerEntry | None:
        """The worker of one slot."""
        return self._entries.get(slot)

    async def claim(self, slot: int) -> str | None:
        """Take the right to start the worker of an empty slot. None if another has it already."""
        _, made_at = self._claims.get(slot, ("", -float("inf")))
        if slot in self._entries or self._clock() - made_at < self.claim_life_s:
            return None
        claim = str(next(self._epochs))
        self._claims[slot] = (claim, self._clock())
        return claim

    async def renew(self, slot: int, claim: str) -> None:
        """Let a claim last anew from now on. Does nothing when it was lost meanwhile."""
        if self._holds(slot, claim):
            self._claims[slot] = (claim, self._clock())

    async def publish(self, slot: int, claim: str, entry: WorkerEntry) -> bool:
        """Fill a claimed slot. False when the claim was lost meanwhile: the caller ends the worker it started."""
        if not self._holds(slot, claim):
            return False
        del self._claims[slot]
        self._entries[slot] = entry
        return True

    async def release(self, slot: int, claim: str) -> None:
        """Give a claim back, the worker having failed to start."""
        if self._holds(slot, claim):
            del self._claims[slot]

    async def remove(self, slot: int, entry: WorkerEntry) -> None:
        """Empty the slot if it still holds this very worker."""
        held = self._entries.get(slot)
        if held is not None and held.id == entry.id:
            del self._entries[slot]

    def _holds(self, slot: int, claim: str) -> bool:
        return slot in self._claims and self._claims[slot][0] == claim
