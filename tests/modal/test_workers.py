"""Workers as Sandboxes on the double of Modal, with a real pool, real workers and the offline model."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import modal
import pytest

from rlm.errors import KeyRefusedError, PoolBrokenError, WorkerError
from rlm.modal.sandboxes import CREATED_TAG, ROLE_TAG
from rlm.modal.workers import SCOPE_TAG, ModalWorkerLauncher, Pace, connect, egress, registry_scope
from rlm.offline.server import Fault, OfflineSettings, serve_offline
from rlm.workers.pool import WorkerPool
from tests.modal.workers_support import UNHURRIED, all_started
from tests.workers.support import FAST, echo, prompts, take_all, texts, until

ECHO = OfflineSettings(sub_replies=echo)


def answers(count: int, words: str = "prompt") -> list[str]:
    return [f"echo of {words} {number}" for number in range(count)]


class TestAPool:
    def test_answers_in_order_and_the_next_pool_finds_its_workers_warm(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                async with on_modal.pool(server, 2) as pool:
                    assert texts(await take_all(pool, prompts(50))) == answers(50)
                    await all_started(pool)
                    assert pool.stats().workers == 2
                first = on_modal.alive()
                assert len(first) == 2
                async with on_modal.pool(server, 2) as pool:
                    assert texts(await take_all(pool, prompts(50, words="more"))) == answers(50, "more")
                assert on_modal.alive() == first
                assert server.stats().prompts_answered_more_than_once == 0

        asyncio.run(main())

    def test_a_pool_of_fast_calls_is_full_after_one_run_and_none_of_its_workers_is_thrown_away(self, on_modal):
        async def main():
            created = []
            with serve_offline(OfflineSettings(sub_replies=echo, latency_s=0.02)) as server:
                for run in range(3):
                    before = on_modal.double.rpc_counts["SandboxCreateV2"]
                    launcher = ModalWorkerLauncher(on_modal.spec(server), pace=Pace(a_second=2))
                    async with WorkerPool(launcher, on_modal.registry(4), size=4, policy=FAST, connect=connect) as pool:
                        assert len(await take_all(pool, prompts(78, words=f"{run}"))) == 78
                    created.append(on_modal.double.rpc_counts["SandboxCreateV2"] - before)
                    assert len(on_modal.alive()) == 4
                    assert pool.trouble == []
            assert created == [4, 0, 0]

        asyncio.run(main())

    def test_workers_found_in_the_registry_share_the_prompts(self, on_modal):
        async def main():
            with serve_offline(replace(ECHO, latency_s=0.3)) as server:
                async with on_modal.pool(server, 4) as pool:
                    await take_all(pool, prompts(78, words="warm"))
                assert len(on_modal.alive()) == 4
                async with on_modal.pool(server, 4) as pool:
                    results = await take_all(pool, prompts(78))
                assert max(Counter(result.worker for result in results).values()) <= 24

        asyncio.run(main())

    def test_a_large_pool_reads_of_the_registry_what_it_needs(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                for words, most in (("cold", 100), ("warm", 120)):
                    before = on_modal.double.rpc_counts["DictGet"]
                    async with on_modal.pool(server, 64) as pool:
                        assert len(await take_all(pool, prompts(78, words=words))) == 78
                    assert on_modal.double.rpc_counts["DictGet"] - before <= most

        asyncio.run(main())

    def test_a_worker_that_starts_for_longer_than_a_claim_lasts_is_not_started_twice(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                registries = [on_modal.registry(1), on_modal.registry(1)]
                for registry in registries:
                    registry.claim_life_s = 1.0
                modal_faults.sandbox_latency(2)

                async def run(registry):
                    async with WorkerPool(
                        on_modal.launcher(server), registry, size=1, policy=FAST, connect=connect
                    ) as pool:
                        (result,) = await take_all(pool, prompts(1))
                        return result.worker

                one, two = await asyncio.gather(*(run(registry) for registry in registries))
                assert [one] == [two] == on_modal.alive()

        asyncio.run(main())

    def test_two_runs_at_once_do_not_overshoot(self, on_modal):
        async def main():
            with serve_offline(OfflineSettings(sub_replies=echo, latency_s=0.05)) as server:

                async def run(words):
                    async with on_modal.pool(server, 4) as pool:
                        results = await take_all(pool, prompts(80, words=words))
                        await all_started(pool)
                        return texts(results)

                one, two = await asyncio.gather(run("one"), run("two"))
                assert (one, two) == (answers(80, "one"), answers(80, "two"))
                assert len(on_modal.alive()) == 4
                created = on_modal.double.rpc_counts["SandboxCreateV2"]
                await run("three")
                assert on_modal.double.rpc_counts["SandboxCreateV2"] == created

        asyncio.run(main())

    def test_a_worker_that_dies_in_the_middle_is_replaced_and_no_prompt_is_lost(self, on_modal, modal_faults):
        async def main():
            with serve_offline(OfflineSettings(sub_replies=echo, latency_s=0.1)) as server:
                async with on_modal.pool(server, 2) as pool:
                    await take_all(pool, prompts(40, words="warm"))
                    await all_started(pool)
                    victim, _ = before = on_modal.alive()
                    retries = []
                    results = []
                    async for result in pool.map(prompts(200), on_retry=retries.append):
                        results.append(result)
                        if len(results) == 20:
                            modal_faults.kill_sandbox(victim)
                    assert texts(results) == answers(200)
                    assert 0 < len(retries) <= 64 * 2
                    assert server.stats().prompts_answered_more_than_once <= len({r.index for r in retries})
                    assert sum(result.attempts > 1 for result in results) == len({r.index for r in retries})
                    await until(lambda: pool.stats().workers == 2)
                assert len(on_modal.alive()) == 2
                assert victim not in on_modal.alive()
                assert set(before) & set(on_modal.alive())

        asyncio.run(main())

    def test_an_entry_whose_sandbox_is_gone_is_replaced(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                async with on_modal.pool(server, 1) as pool:
                    await take_all(pool, prompts(1))
                (gone,) = on_modal.alive()
                await (await modal.Sandbox.from_id.aio(gone)).terminate.aio()
                async with on_modal.pool(server, 1) as pool:
                    assert texts(await take_all(pool, prompts(3))) == answers(3)
                (entry,) = (await on_modal.registry(1).entries()).values()
                assert [entry.id] == on_modal.alive() != [gone]

        asyncio.run(main())

    def test_a_claim_whose_owner_died_is_taken_over(self, on_modal):
        async def main():
            dead = on_modal.registry(1, clock=lambda: time.time() - 10_000)
            assert await dead.claim(0)
            with serve_offline(ECHO) as server:
                async with on_modal.pool(server, 1) as pool:
                    assert texts(await take_all(pool, prompts(3))) == answers(3)

        asyncio.run(main())

    def test_a_worker_at_the_end_of_its_life_gets_no_prompts(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                old = await on_modal.launcher(server).start()
                registry = on_modal.registry(1)
                soon = replace(old, expires=time.time() + FAST.end_of_life_s - 1)
                assert await registry.publish(0, await registry.claim(0), soon)
                async with on_modal.pool(server, 1) as pool:
                    (result,) = await take_all(pool, prompts(1))
                    assert result.worker != old.id
                (entry,) = (await registry.entries()).values()
                assert entry.id == result.worker
                assert old.id in on_modal.alive()  # what it may still be doing for others is not cut off

        asyncio.run(main())

    def test_expired_connect_tokens_are_renewed_and_the_worker_stays(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                async with on_modal.pool(server, 1) as pool:
                    await take_all(pool, prompts(20))
                    before = on_modal.alive()
                    for words in ("second", "third"):
                        modal_faults.expire_tokens()
                        minted = on_modal.double.rpc_counts["SandboxCreateConnectTokenV2"]
                        assert texts(await take_all(pool, prompts(20, words=words))) == answers(20, words)
                        assert on_modal.double.rpc_counts["SandboxCreateConnectTokenV2"] == minted + 1
                        assert pool.stats().retries == 0
                modal_faults.expire_tokens()
                async with on_modal.pool(server, 1) as pool:  # a run that finds the old token in the registry
                    assert texts(await take_all(pool, prompts(20, words="fourth"))) == answers(20, "fourth")
                assert on_modal.alive() == before

        asyncio.run(main())

    def test_a_dict_that_stumbles_is_no_harm(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                await on_modal.registry(1).entries()
                modal_faults.unavailable("DictGet", 6)
                modal_faults.lose_reply("DictUpdate", 3)
                async with on_modal.pool(server, 2) as pool:
                    assert texts(await take_all(pool, prompts(40))) == answers(40)
                    await all_started(pool)
                assert len(on_modal.alive()) == 2

        asyncio.run(main())

    def test_a_key_that_is_refused_ends_the_map_and_not_the_worker(self, on_modal):
        async def main():
            with serve_offline(replace(ECHO, api_key="sk-another")) as server:
                async with on_modal.pool(server, 1) as pool:
                    with pytest.raises(KeyRefusedError):
                        await take_all(pool, prompts(3))
                assert len(on_modal.alive()) == 1

        asyncio.run(main())

    def test_a_run_that_is_cancelled_while_workers_start_leaves_none_and_frees_their_slots(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:

                async def run():
                    async with on_modal.pool(server, 2) as pool:
                        await take_all(pool, prompts(40))
                        await all_started(pool)

                for wait_s in (0.02, 0.1, 0.3):
                    running = asyncio.create_task(run())
                    await asyncio.sleep(wait_s)
                    running.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await running
                    await until(lambda: on_modal.alive() == [])
                await asyncio.wait_for(run(), 10)  # and not the life of a claim
                assert len(on_modal.alive()) == 2

        asyncio.run(main())


class TestALauncher:
    def test_starts_a_worker_that_holds_the_key_and_ends_it(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                launcher = on_modal.launcher(server, env={"RLM_WORKER_CONCURRENCY": "7"}, life_s=1000)
                entry = await launcher.start()
                assert entry.expires - entry.created == 1000
                client = connect(entry)
                assert await client.stats() == {"in_flight": 0, "done": 0, "failed": 0, "limit": 7}
                await client.aclose()
                (info,) = [info for info in on_modal.double.sandboxes() if info.sandbox_id == entry.id]
                assert info.tags.items() >= {(ROLE_TAG, "worker"), (SCOPE_TAG, on_modal.scope)}
                assert int(info.tags[CREATED_TAG]) == int(entry.created)
                await launcher.stop(entry)
                await until(lambda: on_modal.alive() == [])
                await launcher.stop(entry)
                await launcher.stop(replace(entry, id="sb-" + "0" * 26))

        asyncio.run(main())

    def test_tells_the_last_words_of_a_worker_that_does_not_start(self, on_modal):
        async def main():
            with serve_offline(ECHO) as server:
                launcher = on_modal.launcher(server, env={"RLM_WORKER_CONCURRENCY": "many"})
                with pytest.raises(WorkerError, match="did not start: ValueError: invalid literal for int"):
                    await launcher.start()
                assert on_modal.alive() == []

        asyncio.run(main())

    def test_ends_a_sandbox_that_never_becomes_ready(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                modal_faults.sandbox_latency(60)
                launcher = ModalWorkerLauncher(on_modal.spec(server), ready_timeout_s=1)
                with pytest.raises(WorkerError, match="a worker Sandbox did not start"):
                    await launcher.start()
                await until(lambda: on_modal.alive() == [])

        asyncio.run(main())

    @pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.2])
    def test_leaves_nothing_when_it_is_cancelled(self, on_modal, modal_faults, after_s):
        async def main():
            with serve_offline(ECHO) as server:
                modal_faults.latency("SandboxCreateV2", 0.03)
                starting = asyncio.create_task(on_modal.launcher(server).start())
                await asyncio.sleep(after_s)
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await starting
                await until(lambda: on_modal.alive() == [])

        asyncio.run(main())

    def test_waits_out_a_limit_of_creations(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                modal_faults.creation_rate(1, per_s=1.5)
                launcher = on_modal.launcher(server)
                entries = await asyncio.gather(launcher.start(), launcher.start())
                assert sorted(entry.id for entry in entries) == sorted(on_modal.alive())

        asyncio.run(main())

    def test_says_so_when_the_limit_stays(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                modal_faults.creation_rate(1, per_s=3600)
                launcher = ModalWorkerLauncher(on_modal.spec(server), pace=UNHURRIED, patience_s=0)
                await launcher.start()
                with pytest.raises(WorkerError, match="Modal creates no Sandbox for a worker: more than 1 Sandbox"):
                    await launcher.start()

        asyncio.run(main())

    def test_an_account_that_gives_no_sandboxes_breaks_the_pool_with_its_words(self, on_modal, modal_faults):
        async def main():
            with serve_offline(ECHO) as server:
                modal_faults.unavailable("SandboxCreateV2", 1000)
                async with on_modal.pool(server, 4, policy=replace(FAST, deaths=2)) as pool:
                    with pytest.raises(PoolBrokenError, match="is unavailable on purpose"):
                        await take_all(pool, prompts(80))

        asyncio.run(main())


def test_starts_are_paced():
    async def main():
        pace, began, under_way, most = Pace(a_second=50, at_most=3), [], 0, 0

        async def start():
            nonlocal under_way, most
            async with pace.turn():
                began.append(time.monotonic())
                under_way += 1
                most = max(most, under_way)
                await asyncio.sleep(0.1)
                under_way -= 1

        await asyncio.gather(*(start() for _ in range(9)))
        assert began[-1] - began[0] > 8 / 50 - 0.01
        assert most == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    ("base_url", "options"),
    [
        ("https://api.openai.com/v1", {"outbound_domain_allowlist": ["api.openai.com"]}),
        ("https://eu.example.com:443/llm/v1", {"outbound_domain_allowlist": ["eu.example.com"]}),
        ("http://127.0.0.1:8000/v1", {"outbound_cidr_allowlist": ["127.0.0.1/32"]}),
        ("http://localhost:8000/v1", {"outbound_cidr_allowlist": ["127.0.0.1/32"]}),
        ("https://203.0.113.7:8443/v1", {"outbound_cidr_allowlist": ["203.0.113.7/32"]}),
        ("http://[2001:db8::1]/v1", {"outbound_cidr_allowlist": ["2001:db8::1/128"]}),
        ("http://llm.internal:8000/v1", {}),
        ("https://llm.example.com:8443/v1", {}),
    ],
)
def test_a_worker_may_reach_its_provider_and_nothing_else(base_url, options):
    assert egress(base_url) == options


def test_the_allowlist_reaches_modal(on_modal):
    async def main():
        with serve_offline(ECHO) as server:
            await on_modal.launcher(server, base_url="https://api.example.com/v1").start()
        (info,) = [info for info in on_modal.double.sandboxes() if info.app_id == on_modal.app_id]
        assert info.allowed == ("api.example.com",)

    asyncio.run(main())


def test_a_scope_changes_with_code_settings_and_key_and_shows_none_of_them():
    scope = registry_scope("ap-1", "sk-secret", "https://api.openai.com/v1")
    assert scope == registry_scope("ap-1", "sk-secret", "https://api.openai.com/v1")
    assert scope.startswith("ap-1.")
    assert "secret" not in scope
    assert len({scope, registry_scope("ap-1", "sk-other"), registry_scope("ap-2", "sk-secret")}) == 3


def test_a_provider_that_hangs_up_is_no_fault_of_the_worker(on_modal):
    async def main():
        settings = replace(ECHO, faults=(Fault(match="prompt 1", drop=True),))
        with serve_offline(settings) as server:
            async with on_modal.pool(server, 1) as pool:
                assert texts(await take_all(pool, prompts(5))) == answers(5)
            assert len(on_modal.alive()) == 1

    asyncio.run(main())
