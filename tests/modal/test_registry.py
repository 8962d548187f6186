"""The registry in a real modal.Dict, on the double: the contract, then what only a network can do to it."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import modal
import pytest

from rlm.errors import WorkerError
from rlm.modal.registry import CLAIM_LIFE_S, DictRegistry
from rlm.workers.base import WorkerRegistry
from tests.workers.registry_contract import ENTRY, OTHER, Clock, RegistryContract

pytestmark = pytest.mark.usefixtures("modal_double")


class TestDictRegistry(RegistryContract):
    claim_life_s = CLAIM_LIFE_S

    def registry(self, clock: Clock) -> WorkerRegistry:
        store = modal.Dict.from_name(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True)
        return DictRegistry(store, scope="ap-1.rev", size=3, clock=clock)


class TestWithRepliesLost(TestDictRegistry):
    """The client repeats a call whose reply is lost: a put is made twice, and the second finds the first there."""

    @pytest.fixture(autouse=True)
    def lost(self, modal_faults):
        modal_faults.lose_reply("DictUpdate")
        modal_faults.lose_reply("DictGet")


class TestWhenTheDictIsUnavailableForAMoment(TestDictRegistry):
    @pytest.fixture(autouse=True)
    def away(self, modal_faults):
        modal_faults.unavailable("DictUpdate")
        modal_faults.unavailable("DictGet")


def two_runs(store: modal.Dict, **options) -> tuple[DictRegistry, DictRegistry]:
    """The registries of two runs on one Dict."""
    return tuple(DictRegistry(store, scope="s", size=2, **options) for _ in range(2))


@pytest.mark.parametrize("lost_replies", [0, 6])
def test_of_many_runs_exactly_one_gets_a_claim(store, modal_faults, lost_replies):
    async def main():
        registries = [registry for _ in range(10) for registry in two_runs(store)]
        await registries[0].entries()
        modal_faults.lose_reply("DictUpdate", lost_replies)
        claims = await asyncio.gather(*(registry.claim(0) for registry in registries))
        assert sum(claim is not None for claim in claims) == 1

    asyncio.run(main())


@pytest.mark.parametrize("lost_replies", [0, 6])
def test_of_many_runs_exactly_one_steals_a_dead_claim(store, modal_faults, lost_replies):
    async def main():
        clock = Clock()
        registries = [registry for _ in range(10) for registry in two_runs(store, clock=clock)]
        assert await registries[0].claim(0)
        clock.now += CLAIM_LIFE_S + 1
        modal_faults.lose_reply("DictUpdate", lost_replies)
        claims = await asyncio.gather(*(registry.claim(0) for registry in registries))
        assert sum(claim is not None for claim in claims) == 1

    asyncio.run(main())


def test_what_one_run_publishes_the_others_find(store):
    async def main():
        one, two = two_runs(store)
        claim = await one.claim(1)
        assert await two.claim(1) is None
        assert await one.publish(1, claim, ENTRY)
        assert await two.entries() == {1: ENTRY}
        await two.remove(1, ENTRY)
        assert await one.entries() == {}
        claim = await two.claim(1)
        await one.remove(1, ENTRY)  # late: it must not harm the successor
        assert await two.publish(1, claim, OTHER)
        assert await one.entries() == {1: OTHER}

    asyncio.run(main())


def test_another_scope_sees_nothing(store):
    async def main():
        one, other = two_runs(store)[0], DictRegistry(store, scope="s2", size=2)
        claim = await one.claim(0)
        assert await one.publish(0, claim, ENTRY)
        assert await other.entries() == {}
        assert await other.claim(0) is not None

    asyncio.run(main())


def test_a_slow_owner_learns_that_its_claim_was_taken_over(store):
    async def main():
        clock = Clock()
        slow, successor = two_runs(store, clock=clock)
        claim = await slow.claim(0)
        clock.now += CLAIM_LIFE_S + 1
        stolen = await successor.claim(0)
        assert not await slow.publish(0, claim, ENTRY)
        await slow.release(0, claim)
        assert await successor.publish(0, stolen, OTHER)
        assert await slow.entries() == {0: OTHER}

    asyncio.run(main())


def test_a_slow_owner_publishes_while_its_claim_is_taken_over(store, modal_faults):
    """Whatever the order, one of the two learns of the other: never two workers in one slot."""

    async def main():
        clock = Clock()
        modal_faults.latency("DictUpdate", 0.01)
        for delays in [(n / 500, 0) for n in range(8)] + [(0, n / 500) for n in range(1, 8)]:
            slow, successor = two_runs(store, clock=clock)
            claim = await slow.claim(0)
            clock.now += CLAIM_LIFE_S + 1

            async def later(delay_s, work):
                await asyncio.sleep(delay_s)
                return await work

            published, stolen = await asyncio.gather(
                later(delays[0], slow.publish(0, claim, ENTRY)), later(delays[1], successor.claim(0))
            )
            assert not (published and stolen)
            if stolen:
                assert await successor.publish(0, stolen, ENTRY)
            elif published:
                assert await successor.entries() == {0: ENTRY}
            await slow.remove(0, ENTRY)

    asyncio.run(main())


def test_a_dict_that_stays_away_is_a_worker_error(store, modal_faults):
    async def main():
        registry, _ = two_runs(store)
        await registry.entries()
        for rpc, call in [
            ("DictGet", registry.entries()),
            ("DictGet", registry.claim(0)),
            ("DictUpdate", registry.claim(0)),
            ("DictGet", registry.remove(0, ENTRY)),
        ]:
            modal_faults.unavailable(rpc, 50)
            with pytest.raises(WorkerError, match=r"the registry did not answer: .* is unavailable on purpose"):
                await call
            modal_faults.clear()

    asyncio.run(main())


def test_a_claim_that_was_won_unheard_is_known_as_ours_the_next_time(store, modal_faults):
    async def main():
        one, two = two_runs(store)
        await one.entries()
        modal_faults.lose_reply("DictUpdate", 50)
        with pytest.raises(WorkerError):
            await one.claim(0)
        modal_faults.clear()
        assert await two.claim(0) is None
        both = await asyncio.gather(one.claim(0), one.claim(0))
        assert sorted(claim is not None for claim in both) == [False, True]
        assert await one.publish(0, both[0] or both[1], ENTRY)

    asyncio.run(main())


def test_a_claim_that_is_cancelled_is_given_back(store, modal_faults):
    async def main():
        one, two = two_runs(store)
        await one.entries()
        modal_faults.latency("DictUpdate", 0.2)
        claiming = asyncio.create_task(one.claim(0))
        await asyncio.sleep(0.1)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        modal_faults.clear()
        assert await two.claim(0) is not None

    asyncio.run(main())


def test_an_epoch_to_look_from_that_lags_behind_is_no_harm(store):
    async def main():
        registry, _ = two_runs(store)
        for number in range(5):
            claim = await registry.claim(0)
            entry = replace(ENTRY, id=f"w{number}")
            assert await registry.publish(0, claim, entry)
            if number < 4:
                await registry.remove(0, entry)
        await store.put.aio("s/0", 1)
        assert (await registry.entries())[0].id == "w4"
        assert await registry.claim(0) is None

    asyncio.run(main())


def test_every_slot_that_was_ever_used_is_found_without_knowing_the_size(store):
    async def main():
        one = DictRegistry(store, scope="s", size=100)
        for slot in range(70):
            claim = await one.claim(slot)
            assert await one.publish(slot, claim, replace(ENTRY, id=f"w{slot}"))
        for slot in range(60):
            await one.remove(slot, replace(ENTRY, id=f"w{slot}"))
        assert sorted(await DictRegistry(store, scope="s").entries()) == list(range(60, 70))

    asyncio.run(main())


def test_a_large_registry_reads_no_more_of_the_dict_than_was_ever_used(store, modal_double):
    async def main():
        registry = DictRegistry(store, scope="s", size=64)
        claim = await registry.claim(0)
        assert await registry.publish(0, claim, ENTRY)
        before = modal_double.rpc_counts["DictGet"]
        assert await registry.entries() == {0: ENTRY}
        assert modal_double.rpc_counts["DictGet"] - before <= 2 * 32 + 1

    asyncio.run(main())
