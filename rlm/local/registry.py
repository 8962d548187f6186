"""The registry of one process. The one that processes share is in `rlm/modal/workers.py`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from rlm.workers.base import WorkerEntry

CLAIM_LIFE_S = 180  # longer than any worker takes to start: an older claim belongs to somebody who died


class MemoryRegistry:
    """A `WorkerRegistry` in memory. A claim is the number of its epoch; a dead one is stolen by the next epoch."""

    outlives_pool = False

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[int, WorkerEntry] = {}
        self._claims: dict[int, tuple[str, float]] = {}  # slot -> claim, when it was made
        self._epochs = itertools.count(1)

    async def entries(self) -> dict[int, WorkerEntry]:
        """Every slot that has a worker."""
        return dict(self._entries)

    async def claim(self, slot: int) -> str | None:
        """Take the right to start the worker of an empty slot. None if another has it already."""
        _, made_at = self._claims.get(slot, ("", -float("inf")))
        if slot in self._entries or self._clock() - made_at < CLAIM_LIFE_S:
            return None
        claim = str(next(self._epochs))
        self._claims[slot] = (claim, self._clock())
        return claim

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
