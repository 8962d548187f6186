"""What `WorkerPool.map` promises, with real workers against the offline model."""

import asyncio
import itertools

import pytest

from rlm.errors import InputError, PoolBrokenError, SubLLMError
from rlm.local.registry import MemoryRegistry
from rlm.local.workers import LocalLauncher
from rlm.offline.server import Fault, OfflineSettings
from rlm.workers.base import Prompt
from rlm.workers.pool import WorkerPool
from tests.workers.support import FAST, echo, pool_of, prompts, take_all, take_until_error, texts, until, worker_pids


def test_results_come_in_the_order_of_the_prompts_under_varying_latency():
    async def main():
        async with pool_of(2, OfflineSettings(latency_s=0.1, jitter=1, sub_replies=echo)) as it:
            results = await take_all(it.pool, prompts(100))
            assert [result.index for result in results] == list(range(100))
            assert texts(results) == [f"echo of prompt {i}" for i in range(100)]
            assert all(result.attempts == 1 for result in results)
            stats = it.server.stats()
            assert (stats.sub_requests, stats.prompts_answered_more_than_once) == (100, 0)

    asyncio.run(main())


def test_results_can_be_had_as_they_come():
    async def main():
        slow_first = OfflineSettings(faults=(Fault(match="prompt 0", hang_s=0.5),), sub_replies=echo)
        async with pool_of(1, slow_first) as it:
            results = await take_all(it.pool, prompts(10), order_outputs=False)
            assert results[-1].index == 0
            assert sorted(result.index for result in results) == list(range(10))

    asyncio.run(main())


@pytest.mark.parametrize(("size", "per_worker"), [(0, 64), (4, 0)])
def test_a_pool_that_could_answer_nothing_is_refused(size, per_worker):
    with pytest.raises(InputError):
        WorkerPool(LocalLauncher({}), MemoryRegistry(), size=size, per_worker=per_worker)


def test_nothing_starts_before_the_first_call_and_an_empty_batch_starts_nothing():
    async def main():
        async with pool_of(4) as it:
            unused = it.pool.map(prompts(3))
            assert await take_all(it.pool, []) == []
            assert worker_pids() == []
            assert it.pool.stats().starting == 0
            await unused.aclose()
            assert it.server.stats().requests == 0

    asyncio.run(main())


def test_a_single_prompt_starts_a_single_worker():
    async def main():
        async with pool_of(4) as it:
            for words in ("first", "second"):
                assert texts(await take_all(it.pool, prompts(1, words=words))) == [f"echo of {words} 0"]
            assert len(worker_pids()) == 1
            assert it.pool.stats().starting == 0

    asyncio.run(main())


def test_a_batch_of_78_uses_a_pool_of_4():
    async def main():
        async with pool_of(4, OfflineSettings(faults=(Fault(hang_s=2),), sub_replies=echo)) as it:
            results = take_all(it.pool, prompts(78))
            async with asyncio.TaskGroup() as group:
                task = group.create_task(results)
                await until(lambda: it.pool.stats().workers == 4)
            assert len(task.result()) == 78
            assert it.server.stats().peak_in_flight == 78

    asyncio.run(main())


@pytest.mark.parametrize(("size", "per_worker", "count"), [(1, 1, 5), (2, 8, 16), (2, 8, 40)])
def test_the_bound_on_calls_in_flight_holds_and_is_used(size, per_worker, count):
    async def main():
        async with pool_of(size, OfflineSettings(latency_s=0.05, sub_replies=echo), per_worker=per_worker) as it:
            await take_all(it.pool, prompts(17, words="to have all workers up"))
            await until(lambda: it.pool.stats().workers == size)
            await take_all(it.pool, prompts(count))
            assert it.server.stats().peak_in_flight == size * per_worker

    asyncio.run(main())


def test_an_endless_iterable_is_read_no_further_than_capacity_asks():
    async def main():
        async with pool_of(1, per_worker=8) as it:
            taken = itertools.count()
            endless = (Prompt(text=f"{number}", model="offline") for number in taken)
            results = it.pool.map(endless, order_outputs=False)
            got = [await anext(results) for _ in range(50)]
            assert len(got) == 50
            assert next(taken) <= 50 + 2 * 8
            await results.aclose()

    asyncio.run(main())


def test_an_error_of_the_iterable_ends_its_map_only_after_the_answers_on_their_way():
    async def main():
        def broken():
            yield from prompts(17)
            raise KeyError("the caller's own")

        async with pool_of(1, OfflineSettings(latency_s=0.1, sub_replies=echo), per_worker=8) as it:
            results, error = await take_until_error(it.pool, broken())
            assert isinstance(error, KeyError)
            assert 1 <= len(results) <= 17
            assert len(results) == it.server.stats().answered
            assert len(await take_all(it.pool, prompts(3))) == 3

    asyncio.run(main())


def test_a_short_map_does_not_wait_for_a_long_one():
    async def main():
        async with pool_of(1, OfflineSettings(latency_s=0.03, sub_replies=echo), per_worker=4) as it:
            long = it.pool.map(prompts(120, words="long"))
            await anext(long)
            done_before = it.pool.stats().done
            short = await take_all(it.pool, prompts(8, words="short"))
            assert len(short) == 8
            assert it.pool.stats().done - done_before < 40  # shared in turns: about 8 of each
            assert len([result async for result in long]) == 119
            assert len(worker_pids()) == 1

    asyncio.run(main())


def test_leaving_the_iteration_cancels_what_is_in_flight():
    async def main():
        async with pool_of(1, OfflineSettings(faults=(Fault(match="slow", hang_s=60),), sub_replies=echo)) as it:
            results = it.pool.map([*prompts(1), *prompts(20, words="slow")])
            async for _ in results:
                break
            await until(lambda: it.server.stats().in_flight == 20)
            await results.aclose()
            assert it.pool.stats().waiting == it.pool.stats().in_flight == 0
            assert texts(await take_all(it.pool, prompts(1))) == ["echo of prompt 0"]
            await until(lambda: it.server.stats().in_flight == 0)
            assert it.server.stats().abandoned == 20

    asyncio.run(main())


@pytest.mark.parametrize("ordered", [True, False])
def test_each_result_is_told_when_it_is_there_whatever_becomes_of_the_iteration(ordered):
    async def main():
        told = []
        settings = OfflineSettings(
            faults=(Fault(match="prompt 7", status=422), Fault(match="slow", hang_s=60)), sub_replies=echo
        )
        async with pool_of(1, settings) as it:
            results = it.pool.map(
                [*prompts(1), *prompts(1, words="slow"), *prompts(20)],
                order_outputs=ordered,
                return_exceptions=True,
                on_result=told.append,
            )
            await anext(results)
            await until(lambda: len(told) == 21)
            await results.aclose()
            assert len(told) == 21
            assert sorted(result.index for result in told) == [0, *range(2, 22)]
            assert [result.index for result in told if isinstance(result, SubLLMError)] == [9]

    asyncio.run(main())


@pytest.mark.parametrize("when", ["starting", "in_flight"])
def test_a_run_cancelled_while_workers_start_or_prompts_are_in_flight_leaves_no_process_and_no_task(when):
    async def main():
        async def run():
            async with pool_of(2, OfflineSettings(latency_s=60)) as it:
                pools.append(it)
                await take_all(it.pool, prompts(40))

        pools = []
        task = asyncio.create_task(run())
        await until(lambda: pools and getattr(pools[0].pool.stats(), when))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker_pids() == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_the_pool_ends_the_maps_of_others():
    async def main():
        async with pool_of(1, OfflineSettings(latency_s=60)) as it:
            task = asyncio.create_task(take_all(it.pool, prompts(3)))
            await until(lambda: it.server.stats().in_flight)
            await it.pool.close()
            with pytest.raises(PoolBrokenError, match="closed"):
                await task
            with pytest.raises(PoolBrokenError, match="closed"):
                await take_all(it.pool, prompts(1))

    asyncio.run(main())


def test_a_worker_of_another_run_is_used_and_a_stale_entry_replaced():
    async def main():
        async with pool_of(2) as it:
            stale = await it.launcher.start()
            await it.launcher.stop(stale)
            for slot, entry in enumerate([stale, theirs := await it.launcher.start()]):
                await it.registry.publish(slot, await it.registry.claim(slot), entry)
            results = await take_all(it.pool, prompts(32))
            assert theirs.id in {result.worker for result in results}
            assert stale.id not in {result.worker for result in results}
            await it.pool.close()
            assert await it.registry.entries() == {1: theirs}  # not ours to stop
            await it.registry.remove(1, theirs)
            await it.launcher.stop(theirs)

    asyncio.run(main())


def test_pools_that_share_a_registry_do_not_start_more_workers_than_its_slots():
    async def main():
        async with (
            pool_of(1) as it,
            WorkerPool(it.launcher, it.registry, size=1, policy=FAST) as other,
        ):
            both = await asyncio.gather(*(take_all(pool, prompts(20)) for pool in (it.pool, other)))
            assert {result.worker for results in both for result in results} == {
                entry.id for entry in (await it.registry.entries()).values()
            }
            assert len(worker_pids()) == 1

    asyncio.run(main())
