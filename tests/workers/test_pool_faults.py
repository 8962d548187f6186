"""What the pool does when workers die and the provider fails, with real workers against the offline model."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest

from rlm.errors import KeyRefusedError, PoolBrokenError, SubLLMError, UnknownModelError
from rlm.local.registry import MemoryRegistry
from rlm.local.workers import LocalLauncher
from rlm.offline.server import Fault, OfflineSettings, serve_offline
from rlm.workers.base import Completion
from rlm.workers.client import HttpWorkerClient
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy
from tests.workers.support import (
    FAST,
    echo,
    pool_of,
    prompts,
    provider_env,
    take_all,
    take_until_error,
    texts,
    until,
    worker_pids,
)


def answers(count):
    return [f"echo of prompt {number}" for number in range(count)]


def test_a_worker_killed_in_the_middle_costs_no_prompt():
    async def main():
        async with pool_of(4, OfflineSettings(latency_s=0.3, jitter=0.5, sub_replies=echo), per_worker=16) as it:
            await take_all(it.pool, prompts(64, words="to have all workers up"))
            await until(lambda: it.pool.stats().workers == 4)
            asked_before, (victim, *_) = it.server.stats().sub_requests, worker_pids()
            results = []
            async for result in it.pool.map(prompts(200)):
                results.append(result)
                if len(results) == 20:
                    os.kill(victim, signal.SIGKILL)
            assert texts(results) == answers(200)
            assert [result.index for result in results] == list(range(200))
            assert victim not in worker_pids()
            retried = sum(result.attempts > 1 for result in results)
            assert 0 < retried <= 16  # only what was in flight on the victim
            assert it.server.stats().sub_requests - asked_before <= 200 + retried
            assert it.server.stats().prompts_answered_more_than_once <= retried

    asyncio.run(main())


def test_a_killed_worker_is_replaced():
    async def main():
        async with pool_of(1, OfflineSettings(latency_s=0.1, sub_replies=echo)) as it:
            results = it.pool.map(prompts(3))
            await anext(results)
            (first,) = worker_pids()
            os.kill(first, signal.SIGKILL)
            assert len(await take_all(it.pool, prompts(5, words="after"))) == 5
            assert worker_pids() != [first]
            assert len([result async for result in results]) == 2

    asyncio.run(main())


def test_a_worker_that_hangs_is_found_out():
    async def main():
        with serve_offline(OfflineSettings(latency_s=0.2, sub_replies=echo)) as server:
            async with WorkerPool(
                LocalLauncher(provider_env(server)),
                MemoryRegistry(),
                size=1,
                policy=RetryPolicy(watch_s=0.2),
                connect=partial(HttpWorkerClient, check_timeout_s=1),
            ) as pool:
                task = asyncio.create_task(take_all(pool, prompts(10)))
                await until(lambda: server.stats().in_flight)
                os.kill(worker_pids()[0], signal.SIGSTOP)
                assert texts(await task) == answers(10)

    asyncio.run(main())


def test_server_errors_and_dropped_connections_are_tried_again():
    async def main():
        faults = (
            Fault(match="prompt 1", status=500, times=2),
            Fault(match="prompt 2", drop=True, times=2),
            Fault(match="prompt 3", status=503, headers={"Retry-After": "0"}),
        )
        retries = []
        async with pool_of(1, OfflineSettings(faults=faults, sub_replies=echo)) as it:
            results = [result async for result in it.pool.map(prompts(5), on_retry=retries.append)]
            assert texts(results) == answers(5)
            assert [result.attempts for result in results] == [1, 3, 3, 2, 1]
            assert it.pool.stats().retries == len(retries) == 5
            assert sorted((retry.index, retry.attempts) for retry in retries) == [
                (1, 1),
                (1, 2),
                (2, 1),
                (2, 2),
                (3, 1),
            ]
            assert it.server.stats().prompts_answered_more_than_once == 0

    asyncio.run(main())


def test_a_prompt_that_fails_every_time_fails_after_the_bound():
    async def main():
        faults = (Fault(match="prompt 1", status=500, times=1000),)
        async with pool_of(1, OfflineSettings(faults=faults, sub_replies=echo)) as it:
            results = await take_all(it.pool, prompts(3), return_exceptions=True)
            assert isinstance(results[1], SubLLMError)
            assert (results[1].index, results[1].attempts) == (1, FAST.attempts)
            assert texts([results[0], results[2]]) == ["echo of prompt 0", "echo of prompt 2"]
            assert it.server.stats().sub_requests == 2 + FAST.attempts

    asyncio.run(main())


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_out_and_lowers_the_concurrency(as_date):
    async def main():
        date = (datetime.now(UTC) + timedelta(seconds=5)).replace(microsecond=0)  # as it has whole seconds in HTTP
        header = {"Retry-After": format_datetime(date, usegmt=True) if as_date else "1"}
        faults = (Fault(match="prompt 1", status=429, headers=header),)  # prompts 1 and 10 to 19
        async with pool_of(1, OfflineSettings(faults=faults, latency_s=0.05, sub_replies=echo), per_worker=32) as it:
            await take_all(it.pool, prompts(1, words="start"))
            started = time.monotonic()
            limits = []
            results = [
                result
                async for result in it.pool.map(
                    prompts(30), on_retry=lambda _: limits.append(it.pool.stats().concurrency_limit)
                )
            ]
            assert datetime.now(UTC) >= date if as_date else time.monotonic() - started >= 1
            assert texts(results) == answers(30)
            assert len(limits) == 11
            assert limits[0] <= 15  # half of what was in flight, 30 at most
            assert it.server.stats().errors == {429: 11}
            assert it.server.stats().prompts_answered_more_than_once == 0
            await take_all(it.pool, prompts(300, words="recover"))
            assert it.pool.stats().concurrency_limit == 32

    asyncio.run(main())


def test_no_prompt_is_lost_or_answered_twice_under_a_rate_limit():
    async def main():
        async with pool_of(1, OfflineSettings(rate_limit=40, sub_replies=echo)) as it:
            results = await take_all(it.pool, prompts(100))
            assert texts(results) == answers(100)
            stats = it.server.stats()
            assert stats.errors.get(429, 0) > 0
            assert (stats.answered, stats.prompts_answered_more_than_once) == (100, 0)

    asyncio.run(main())


@pytest.mark.parametrize(("status", "error"), [(422, SubLLMError), (401, KeyRefusedError)])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_error_in_the_middle_comes_after_every_answer_that_is_paid(status, error, ordered):
    async def main():
        faults = (Fault(match="prompt 3", status=status), Fault(match="slow", hang_s=0.5))
        told = []
        async with pool_of(1, OfflineSettings(faults=faults, sub_replies=echo), per_worker=8) as it:
            await take_all(it.pool, prompts(1, words="start"))
            asked = [*prompts(3, words="slow"), *prompts(50)]
            results, raised = await take_until_error(it.pool, asked, order_outputs=ordered, on_result=told.append)
            assert type(raised) is error
            got = {result.index for result in results}
            assert got >= {0, 1, 2}  # in flight when the error came
            assert len(got) == len(results) == it.server.stats().answered - 1 < 50
            assert {result.index for result in told if isinstance(result, Completion)} == got
            if ordered:
                assert [result.index for result in results] == sorted(got)

    asyncio.run(main())


def test_a_refused_prompt_raises_the_providers_words_and_ends_its_map():
    async def main():
        faults = (Fault(match="prompt 3", status=422), Fault(match="prompt 4", hang_s=60))
        policy = replace(FAST, wind_up_s=0.1)
        async with pool_of(1, OfflineSettings(faults=faults, sub_replies=echo), policy=policy) as it:
            with pytest.raises(SubLLMError, match="A fault that was asked for") as raised:
                await take_all(it.pool, prompts(8))
            assert (raised.value.index, raised.value.attempts) == (3, 1)
            await until(lambda: it.server.stats().in_flight == 0)  # the others were cancelled
            assert len(await take_all(it.pool, prompts(2))) == 2

    asyncio.run(main())


def test_a_refused_prompt_leaves_the_others_with_return_exceptions():
    async def main():
        settings = OfflineSettings(window_tokens=100, sub_replies=echo)
        async with pool_of(1, settings) as it:
            asked = prompts(3)
            asked[1] = prompts(1, words="long " * 1000)[0]
            results = await take_all(it.pool, asked, return_exceptions=True)
            assert [type(result) for result in results] == [Completion, SubLLMError, Completion]
            assert (results[1].index, results[1].attempts) == (1, 1)
            assert it.pool.stats().failed == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "error"),
    [(OfflineSettings(api_key="another"), KeyRefusedError), (OfflineSettings(models=("other",)), UnknownModelError)],
)
def test_a_refused_key_or_an_unknown_model_ends_the_map_at_once(settings, error):
    async def main():
        async with pool_of(1, settings, per_worker=4) as it:
            for return_exceptions in (False, True):
                with pytest.raises(error):
                    await take_all(it.pool, prompts(100), return_exceptions=return_exceptions)
            assert it.server.stats().sub_requests <= 16

    asyncio.run(main())


def test_workers_that_cannot_start_break_the_pool_with_their_words():
    async def main():
        launcher = LocalLauncher({"OPENAI_API_KEY": "k", "RLM_WORKER_CONCURRENCY": "many"})
        async with WorkerPool(launcher, MemoryRegistry(), size=2, policy=FAST) as pool:
            both = await asyncio.gather(
                *(take_all(pool, prompts(40), return_exceptions=True) for _ in range(2)), return_exceptions=True
            )
            for error in both:
                assert isinstance(error, PoolBrokenError)
                assert "5 workers in a row" in str(error)
                assert "invalid literal for int" in str(error)
            with pytest.raises(PoolBrokenError):
                await take_all(pool, prompts(1))
        assert worker_pids() == []

    asyncio.run(main())


def test_an_error_that_no_adapter_should_raise_ends_the_map_too():
    class Unreachable(MemoryRegistry):
        async def entries(self):
            raise ConnectionError("the registry is away")

    async def main():
        async with WorkerPool(LocalLauncher({}), Unreachable(), size=1) as pool:
            with pytest.raises(PoolBrokenError, match="ConnectionError: the registry is away"):
                await take_all(pool, prompts(1))

    asyncio.run(main())


def test_a_rate_limit_without_a_wait_makes_no_storm():
    async def main():
        faults = (Fault(status=429, times=10**6, headers={"Retry-After": "-5"}),)
        policy = RetryPolicy(base_s=0.2, cap_s=0.5, max_wait_s=1)
        async with pool_of(1, OfflineSettings(faults=faults), policy=policy) as it:
            results = await take_all(it.pool, prompts(20), return_exceptions=True)
            assert all("held back for" in text for text in texts(results))
            assert it.server.stats().requests < 20 * 15

    asyncio.run(main())
