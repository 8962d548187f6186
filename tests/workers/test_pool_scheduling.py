"""Scheduling, under every mixture of failures Hypothesis comes up with: in-process workers, the real pool."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.errors import PoolBrokenError, SubLLMError, WorkerError
from rlm.local.registry import MemoryRegistry
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, Completion, Prompt, ProviderFailure, WorkerBusy, WorkerEntry
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy
from tests.workers.support import until

POLICY = RetryPolicy(attempts=6, base_s=0.001, cap_s=0.002, deaths=10_000)
BEFORE_THE_ANSWER = ["500", "429", "429 now", "busy", "reset", "death"]


@dataclass
class World:
    """The machines and the provider. Each prompt has a list of things that happen before it is answered."""

    fate: dict[str, list[str]]
    per_worker: int
    failing_starts: int = 0
    life_s: float = 1e6
    start_s: float = 0
    alive: set[str] = field(default_factory=set)
    starts: int = 0
    peak_alive: int = 0
    in_flight: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    answered: Counter[str] = field(default_factory=Counter)

    async def start(self) -> WorkerEntry:
        self.starts = number = self.starts + 1
        await asyncio.sleep(self.start_s)
        if number <= self.failing_starts:
            raise WorkerError("no machine to be had")
        entry = WorkerEntry(id=f"w{number}", url="", token="", created=time.time(), expires=time.time() + self.life_s)
        self.alive.add(entry.id)
        self.peak_alive = max(self.peak_alive, len(self.alive))
        return entry

    async def stop(self, entry: WorkerEntry) -> None:
        self.alive.discard(entry.id)

    def connect(self, entry: WorkerEntry) -> "Connection":
        return Connection(self, entry.id)


@dataclass
class Connection:
    world: World
    worker: str

    async def complete(self, prompt: Prompt) -> Answer | ProviderFailure | WorkerBusy:
        world = self.world
        world.in_flight[self.worker] += 1
        world.peak = max(world.peak, world.in_flight.total())
        try:
            assert world.in_flight[self.worker] <= world.per_worker
            await self.check()
            await asyncio.sleep(0)
            match world.fate[prompt.text].pop(0) if world.fate[prompt.text] else "answer":
                case "500":
                    return ProviderFailure("transient", "500", None)
                case "429":
                    return ProviderFailure("rate_limited", "429", 0.001)
                case "429 now":
                    return ProviderFailure("rate_limited", "429", None)
                case "busy":
                    return WorkerBusy(0.001)
                case "refused":
                    return ProviderFailure("refused", "no", None)
                case "slow":
                    await asyncio.sleep(0.002)
                case "reset":
                    raise WorkerError("connection reset")
                case "death":
                    world.alive.discard(self.worker)
            await self.check()
            world.answered[prompt.text] += 1
            return Answer(f"answer to {prompt.text}", TokenUsage(input_tokens=1))
        finally:
            world.in_flight[self.worker] -= 1

    async def check(self) -> None:
        if self.worker not in self.world.alive:
            raise WorkerError("connection refused")

    async def aclose(self) -> None:
        pass


fates = st.lists(
    st.tuples(st.lists(st.sampled_from(BEFORE_THE_ANSWER), max_size=3), st.booleans()).map(
        lambda fate: fate[0] + ["refused"] * fate[1]
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(
    maps=st.lists(fates, min_size=1, max_size=3),
    size=st.integers(1, 5),
    per_worker=st.integers(1, 20),
    failing_starts=st.integers(0, 3),
    ordered=st.booleans(),
)
def test_every_prompt_has_one_result_whatever_happens(maps, size, per_worker, failing_starts, ordered):
    asked = [[Prompt(text=f"{m}:{i}", model="m") for i in range(len(fates))] for m, fates in enumerate(maps)]
    fate = {f"{m}:{i}": list(fate) for m, fates in enumerate(maps) for i, fate in enumerate(fates)}
    world = World(fate, per_worker, failing_starts)

    async def main():
        registry = MemoryRegistry()
        async with (
            asyncio.timeout(10),
            WorkerPool(world, registry, size=size, per_worker=per_worker, policy=POLICY, connect=world.connect) as pool,
        ):

            async def one_map(prompts):
                return [r async for r in pool.map(prompts, order_outputs=ordered, return_exceptions=True)]

            results = await asyncio.gather(*(one_map(prompts) for prompts in asked))
            stats = pool.stats()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.alive == set()
        assert await registry.entries() == {}
        assert (stats.in_flight, stats.waiting) == (0, 0)
        assert world.peak <= size * per_worker
        assert world.peak_alive <= size
        for number, (fates, got) in enumerate(zip(maps, results, strict=True)):
            if ordered:
                assert [result.index for result in got] == list(range(len(fates)))
            assert sorted(result.index for result in got) == list(range(len(fates)))
            for result in got:
                name = f"{number}:{result.index}"
                if isinstance(result, Completion):
                    assert "refused" not in fates[result.index]
                    assert result.text == f"answer to {name}"
                    assert world.answered[name] == 1
                else:  # refused for good, or workers died under it time and again
                    assert "refused" in fates[result.index] or result.attempts >= POLICY.attempts
                    assert world.answered[name] == 0
        assert stats.done + stats.failed == sum(map(len, maps))

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(
    fates=fates,
    size=st.integers(1, 4),
    per_worker=st.integers(1, 20),
    life_s=st.sampled_from([0.405, 0.42, 1e6]),
    kills=st.lists(st.integers(0, 20), max_size=12),
    ordered=st.booleans(),
)
def test_no_prompt_is_lost_or_answered_twice_while_workers_die_and_retire(
    fates, size, per_worker, life_s, kills, ordered
):
    world = World({str(index): ["slow", *fate] for index, fate in enumerate(fates)}, per_worker, life_s=life_s)
    policy = replace(POLICY, end_of_life_s=0.4)
    told = []

    async def kill():
        for hops in kills:
            for _ in range(hops):
                await asyncio.sleep(0)
            world.alive -= set(sorted(world.alive)[:1])

    async def main():
        registry = MemoryRegistry()
        async with (
            asyncio.timeout(15),
            WorkerPool(world, registry, size=size, per_worker=per_worker, policy=policy, connect=world.connect) as pool,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(kill())
            asked = [Prompt(text=str(index), model="m") for index in range(len(fates))]
            results = [
                result
                async for result in pool.map(
                    asked, order_outputs=ordered, return_exceptions=True, on_result=told.append
                )
            ]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert world.alive == set()
        assert await registry.entries() == {}
        assert pool.trouble == []
        assert sorted(result.index for result in results) == list(range(len(fates)))
        assert sorted(result.index for result in told) == list(range(len(fates)))
        for result in results:
            answered = isinstance(result, Completion)
            assert world.answered[str(result.index)] == answered
            assert answered or "refused" in fates[result.index] or result.attempts >= POLICY.attempts

    asyncio.run(main())


@settings(max_examples=100, deadline=None)
@given(
    fates=fates,
    size=st.integers(1, 3),
    per_worker=st.integers(1, 20),
    taken=st.integers(0, 30),
    hops=st.integers(0, 30),
    ordered=st.booleans(),
)
def test_whatever_was_answered_is_told_once_also_when_the_consumer_leaves(
    fates, size, per_worker, taken, hops, ordered
):
    asked = [Prompt(text=str(index), model="m") for index in range(len(fates))]
    world = World({str(index): list(fate) for index, fate in enumerate(fates)}, per_worker)
    told = []

    async def main():
        async with WorkerPool(
            world, MemoryRegistry(), size=size, per_worker=per_worker, policy=POLICY, connect=world.connect
        ) as pool:
            results = pool.map(asked, order_outputs=ordered, return_exceptions=True, on_result=told.append)
            async with asyncio.timeout(10):
                for _ in range(taken):
                    await anext(results, None)
                for _ in range(hops):
                    await asyncio.sleep(0)
                await results.aclose()

    asyncio.run(main())
    answered = Counter(asked[result.index].text for result in told if isinstance(result, Completion))
    assert answered == world.answered
    assert len({result.index for result in told}) == len(told)


def run_in_world(world, prompts, **pool_options):
    async def main():
        async with WorkerPool(world, MemoryRegistry(), connect=world.connect, **pool_options) as pool:
            return [result async for result in pool.map(prompts, return_exceptions=True)]

    return asyncio.run(main())


def test_a_worker_that_says_it_is_well_and_answers_nothing_is_evicted():
    class Deaf(World):
        def connect(self, entry):
            connection = super().connect(entry)
            if entry.id == "w1":
                connection.complete = broken
            return connection

    async def broken(prompt):
        raise WorkerError("nonsense")

    world = Deaf({"p": []}, per_worker=1)
    (result,) = run_in_world(world, [Prompt(text="p", model="m")], size=1, per_worker=1, policy=POLICY)
    assert (result.worker, result.attempts) == ("w2", 4)


def test_a_worker_near_its_end_gets_no_more_prompts_and_is_replaced():
    count = 150
    world = World({str(i): ["slow"] for i in range(count)}, per_worker=1, life_s=0.5)
    policy = replace(POLICY, end_of_life_s=0.4)
    results = run_in_world(
        world, [Prompt(text=str(i), model="m") for i in range(count)], size=1, per_worker=1, policy=policy
    )
    assert [result.attempts for result in results] == [1] * count
    assert world.starts > 1
    assert world.alive == set()


def test_an_idle_worker_that_has_grown_old_is_replaced_when_a_prompt_comes():
    world = World({"a": [], "b": []}, per_worker=1, life_s=0.5)

    async def main():
        policy = replace(POLICY, end_of_life_s=0.3)
        async with WorkerPool(world, MemoryRegistry(), size=1, policy=policy, connect=world.connect) as pool:
            first = await anext(pool.map([Prompt(text="a", model="m")]))
            await asyncio.sleep(0.3)
            second = await anext(pool.map([Prompt(text="b", model="m")]))
            return first.worker, second.worker

    assert asyncio.run(main()) == ("w1", "w2")


def test_workers_whose_life_is_over_when_they_start_break_the_pool_in_bounded_time():
    world = World({"p": []}, per_worker=1, life_s=0.5)
    with pytest.raises(PoolBrokenError, match="life ends too soon"):
        run_in_world(world, [Prompt(text="p", model="m")], size=1, policy=replace(POLICY, end_of_life_s=1, deaths=5))
    assert world.starts == 5
    assert world.alive == set()


def test_workers_that_die_before_they_answer_break_the_pool_in_bounded_time():
    world = World({str(i): ["death"] * 10 for i in range(4)}, per_worker=4)
    policy = replace(POLICY, attempts=100, deaths=5)
    with pytest.raises(PoolBrokenError, match="5 workers in a row"):
        run_in_world(world, [Prompt(text=str(i), model="m") for i in range(4)], size=1, per_worker=1, policy=policy)
    assert world.starts == 5


def test_a_worker_that_could_not_be_stopped_is_told_at_the_end():
    class Sticky(World):
        async def stop(self, entry):
            raise ConnectionError(f"cannot stop {entry.id}")

    world = Sticky({"p": ["death"]}, per_worker=1)

    async def main():
        pool = WorkerPool(world, MemoryRegistry(), size=1, policy=POLICY, connect=world.connect)
        async with pool:
            await anext(pool.map([Prompt(text="p", model="m")]))
        return pool

    pool = asyncio.run(main())
    assert sorted(pool.trouble) == [f"worker w{n}: ConnectionError: cannot stop w{n}" for n in (1, 2)]
    assert world.answered["p"] == 1


def test_an_answer_that_was_cut_arrives_as_cut():
    world = World({"p": []}, per_worker=1)

    class Cutting(Connection):
        async def complete(self, prompt):
            return replace(await super().complete(prompt), cut=True)

    world.connect = lambda entry: Cutting(world, entry.id)
    (result,) = run_in_world(world, [Prompt(text="p", model="m")], size=1)
    assert result.cut


def test_a_pool_that_broke_is_of_use_again_when_workers_can_be_had():
    world = World({"p": []}, per_worker=1, failing_starts=2)

    async def main():
        policy = replace(POLICY, deaths=2)
        async with WorkerPool(world, MemoryRegistry(), size=1, policy=policy, connect=world.connect) as pool:
            with pytest.raises(PoolBrokenError, match="2 workers in a row"):
                await anext(pool.map([Prompt(text="p", model="m")]))
            return await anext(pool.map([Prompt(text="p", model="m")]))

    assert asyncio.run(main()).text == "answer to p"


class SharedRegistry(MemoryRegistry):
    """As if it were in a Dict: later pools find the workers."""

    outlives_pool = True


def test_workers_found_running_share_the_prompts():
    count = 78
    world = World({str(index): ["slow"] for index in range(count)}, per_worker=64)

    class Remote(Connection):
        async def check(self):
            await asyncio.sleep(int(self.worker[1:]) / 100)  # one after another, as over a network
            await super().check()

        async def complete(self, prompt):
            self.world.fate[prompt.text].clear()
            self.world.in_flight[self.worker] += 1
            await asyncio.sleep(0.2)
            return Answer("", TokenUsage())

    world.connect = lambda entry: Remote(world, entry.id)

    async def main():
        registry = SharedRegistry()
        for slot in range(4):
            assert await registry.publish(slot, await registry.claim(slot), await world.start())
        async with WorkerPool(world, registry, size=4, policy=POLICY, connect=world.connect) as pool:
            asked = [Prompt(text=str(index), model="m") for index in range(count)]
            assert len([result async for result in pool.map(asked)]) == count

    asyncio.run(main())
    assert max(world.in_flight.values()) <= 20
    assert world.starts == 4


def test_a_worker_that_runs_takes_all_that_waits_while_others_start():
    count = 40
    world = World({str(index): ["slow"] for index in range(count)}, per_worker=64)

    async def main():
        registry = SharedRegistry()
        assert await registry.publish(0, await registry.claim(0), await world.start())
        world.start_s = 60
        async with WorkerPool(world, registry, size=4, policy=POLICY, connect=world.connect) as pool:
            asked = [Prompt(text=str(index), model="m") for index in range(count)]
            assert {result.worker for result in [r async for r in pool.map(asked)]} == {"w1"}
            raise LookupError  # nothing is waited for then

    with pytest.raises(LookupError):
        asyncio.run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_workers_being_started_at_the_end_are_kept_for_later_pools_but_not_when_cancelled(cancelled):
    world = World({str(index): [] for index in range(64)}, per_worker=64)

    async def main():
        registry = SharedRegistry()
        assert await registry.publish(0, await registry.claim(0), await world.start())
        world.start_s = 60 if cancelled else 0.1

        async def run():
            async with WorkerPool(world, registry, size=4, policy=POLICY, connect=world.connect) as pool:
                asked = [Prompt(text=str(index), model="m") for index in range(64)]
                assert len([result async for result in pool.map(asked)]) == 64
                await until(lambda: world.starts == 4)
                answered.set()

        answered = asyncio.Event()
        running = asyncio.create_task(run())
        await answered.wait()
        if cancelled:
            running.cancel()
        await asyncio.wait([running])
        assert running.cancelled() is cancelled
        entries = await registry.entries()
        assert len(entries) == (1 if cancelled else 4)
        assert {entry.id for entry in entries.values()} == world.alive
        assert await registry.claim(1) if cancelled else True  # no claim is left behind

    asyncio.run(main())


def test_a_claim_held_elsewhere_is_waited_for():
    world = World({"p": []}, per_worker=1)

    async def main():
        registry = MemoryRegistry()
        claim = await registry.claim(0)
        assert claim is not None
        async with WorkerPool(world, registry, size=1, policy=POLICY, connect=world.connect) as pool:
            task = asyncio.create_task(anext(pool.map([Prompt(text="p", model="m")])))
            await asyncio.sleep(0.02)
            assert world.starts == 0
            theirs = await world.start()
            assert await registry.publish(0, claim, theirs)
            assert (await task).worker == theirs.id
        assert await registry.entries() == {0: theirs}
        assert world.starts == 1

    asyncio.run(main())


def test_a_rate_limit_without_end_is_given_up_after_the_bound():
    world = World({"p": ["429"] * 10_000}, per_worker=1)
    policy = replace(POLICY, max_wait_s=0.05)
    (result,) = run_in_world(world, [Prompt(text="p", model="m")], size=1, policy=policy)
    assert isinstance(result, SubLLMError)
    assert "429" in str(result)
