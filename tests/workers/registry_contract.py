"""What every `WorkerRegistry` must do. A test class inherits `RegistryContract` and says how one is made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from rlm.workers.base import WorkerEntry, WorkerRegistry

ENTRY = WorkerEntry(id="w1", url="http://127.0.0.1:1", token="t", created=1000.0, expires=5000.0)
OTHER = replace(ENTRY, id="w2", url="http://127.0.0.1:2")


class Clock:
    """A clock the test sets; seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class RegistryContract:
    """Inherit, and implement `registry`."""

    claim_life_s: float
    """The age at which a claim may be stolen."""

    def registry(self, clock: Clock) -> WorkerRegistry:
        """A registry with nothing in it."""
        raise NotImplementedError

    def run(self, behaviour: Callable[[WorkerRegistry, Clock], Awaitable[None]]) -> None:
        async def main() -> None:
            clock = Clock()
            await behaviour(self.registry(clock), clock)

        asyncio.run(main())

    def test_is_empty_at_first(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            assert await registry.entries() == {}

        self.run(behaviour)

    def test_a_published_worker_is_found_as_it_was(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claim = await registry.claim(2)
            assert claim is not None
            assert await registry.publish(2, claim, ENTRY)
            assert await registry.entries() == {2: ENTRY}
            assert (await registry.entry(2), await registry.entry(1)) == (ENTRY, None)

        self.run(behaviour)

    def test_only_one_gets_a_claim(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claims = await asyncio.gather(*(registry.claim(0) for _ in range(10)))
            assert sum(claim is not None for claim in claims) == 1

        self.run(behaviour)

    def test_slots_are_claimed_independently(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claims = [await registry.claim(slot) for slot in range(3)]
            assert None not in claims
            assert len(set(claims)) == 3

        self.run(behaviour)

    def test_a_held_slot_cannot_be_claimed_even_much_later(self) -> None:
        async def behaviour(registry: WorkerRegistry, clock: Clock) -> None:
            claim = await registry.claim(0)
            assert claim is not None
            await registry.publish(0, claim, ENTRY)
            clock.now += 10 * self.claim_life_s
            assert await registry.claim(0) is None

        self.run(behaviour)

    def test_a_released_claim_can_be_taken_again(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            first = await registry.claim(0)
            assert first is not None
            await registry.release(0, first)
            second = await registry.claim(0)
            assert second is not None
            assert second != first

        self.run(behaviour)

    def test_the_claim_of_somebody_who_died_is_stolen_and_worth_nothing_afterwards(self) -> None:
        async def behaviour(registry: WorkerRegistry, clock: Clock) -> None:
            dead = await registry.claim(0)
            assert dead is not None
            clock.now += self.claim_life_s + 1
            stolen = await registry.claim(0)
            assert stolen is not None
            assert not await registry.publish(0, dead, ENTRY)
            await registry.release(0, dead)  # must not release the new one
            assert await registry.claim(0) is None
            assert await registry.publish(0, stolen, OTHER)
            assert await registry.entries() == {0: OTHER}

        self.run(behaviour)

    def test_a_claim_that_is_renewed_lasts_as_long_as_its_owner_lives(self) -> None:
        async def behaviour(registry: WorkerRegistry, clock: Clock) -> None:
            claim = await registry.claim(0)
            assert claim is not None
            for _ in range(4):
                clock.now += self.claim_life_s * 0.7
                await registry.renew(0, claim)
                assert await registry.claim(0) is None
            assert await registry.publish(0, claim, ENTRY)
            await registry.renew(0, claim)  # late: it must not empty the slot
            assert await registry.entries() == {0: ENTRY}

        self.run(behaviour)

    def test_a_claim_that_was_lost_cannot_be_renewed(self) -> None:
        async def behaviour(registry: WorkerRegistry, clock: Clock) -> None:
            lost = await registry.claim(0)
            assert lost is not None
            clock.now += self.claim_life_s + 1
            taken = await registry.claim(0)
            assert taken is not None
            await registry.renew(0, lost)
            assert not await registry.publish(0, lost, ENTRY)
            assert await registry.publish(0, taken, OTHER)
            assert await registry.entries() == {0: OTHER}

        self.run(behaviour)

    def test_only_one_steals_a_dead_claim(self) -> None:
        async def behaviour(registry: WorkerRegistry, clock: Clock) -> None:
            await registry.claim(0)
            clock.now += self.claim_life_s + 1
            claims = await asyncio.gather(*(registry.claim(0) for _ in range(10)))
            assert sum(claim is not None for claim in claims) == 1

        self.run(behaviour)

    def test_a_claim_publishes_once(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claim = await registry.claim(0)
            assert claim is not None
            assert await registry.publish(0, claim, ENTRY)
            assert not await registry.publish(0, claim, OTHER)
            assert await registry.entries() == {0: ENTRY}

        self.run(behaviour)

    def test_removing_empties_the_slot_for_the_next_claim(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claim = await registry.claim(0)
            assert claim is not None
            await registry.publish(0, claim, ENTRY)
            await registry.remove(0, ENTRY)
            assert await registry.entries() == {}
            assert await registry.claim(0) is not None

        self.run(behaviour)

    def test_removing_a_worker_leaves_its_successor(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            claim = await registry.claim(0)
            assert claim is not None
            await registry.publish(0, claim, OTHER)
            await registry.remove(0, ENTRY)
            assert await registry.entries() == {0: OTHER}

        self.run(behaviour)

    def test_removing_from_an_empty_or_claimed_slot_does_nothing(self) -> None:
        async def behaviour(registry: WorkerRegistry, _: Clock) -> None:
            await registry.remove(0, ENTRY)
            claim = await registry.claim(0)
            assert claim is not None
            await registry.remove(0, ENTRY)
            assert await registry.publish(0, claim, ENTRY)

        self.run(behaviour)
