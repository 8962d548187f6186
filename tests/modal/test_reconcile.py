"""The reconciler, over what crashed runs have left on the double of Modal."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from rlm.config import ReplLimits
from rlm.context import context_from_value
from rlm.errors import WorkerError
from rlm.modal.reconcile import SweepPolicy, sweep, terminate_all
from rlm.modal.repl import ModalReplLauncher
from rlm.modal.workers import connect, registry_scope
from rlm.offline.server import OfflineSettings, serve_offline
from tests.modal.workers_support import IMAGE, all_started
from tests.workers.support import echo, prompts, take_all, texts, until

NOTHING = dict.fromkeys(("kept", "idle", "rotated", "lost", "orphans", "repls", "failed"), 0)
ALL_OLD = SweepPolicy(starting_s=0, longest_run_s=0, idle_s=0)
SETTINGS = OfflineSettings(sub_replies=echo)


def test_a_worker_in_use_is_kept_and_an_idle_one_ended(on_modal):
    async def main():
        with serve_offline(replace(SETTINGS, latency_s=1.0)) as server:
            async with on_modal.pool(server, 2) as pool:
                await take_all(pool, prompts(20, words="warm"))
                await all_started(pool)
                answering = asyncio.create_task(take_all(pool, prompts(20)))
                await until(lambda: server.stats().in_flight == 20)
                registry = on_modal.registry(2)
                assert await sweep(on_modal.app_id, registry, ALL_OLD) == NOTHING | {"kept": 2}
                assert len(await answering) == 20
                assert await sweep(on_modal.app_id, registry, SweepPolicy()) == NOTHING | {"kept": 2}
                one = replace(ALL_OLD, keep=1)
                assert await sweep(on_modal.app_id, registry, one) == NOTHING | {"kept": 1, "idle": 1}
                await until(lambda: len(on_modal.alive()) == 1)
                assert [entry.id for entry in (await registry.entries()).values()] == on_modal.alive()
                assert await sweep(on_modal.app_id, registry, ALL_OLD) == NOTHING | {"idle": 1}
                await until(lambda: on_modal.alive() == [])
                assert await sweep(on_modal.app_id, registry, ALL_OLD) == NOTHING

    asyncio.run(main())


def test_a_worker_that_has_done_something_since_is_not_idle(on_modal):
    async def main():
        now = time.time()
        registry = on_modal.registry(1, clock=lambda: now)
        policy = SweepPolicy(idle_s=100)
        with serve_offline(SETTINGS) as server:
            async with on_modal.pool(server, 1) as pool:
                for count in (1, 2):
                    await take_all(pool, prompts(1, words=f"{count}"))
                    assert (await sweep(on_modal.app_id, registry, policy))["kept"] == 1
                    now += 90
                assert (await sweep(on_modal.app_id, registry, policy))["kept"] == 1
                now += 20
                assert (await sweep(on_modal.app_id, registry, policy))["idle"] == 1

    asyncio.run(main())


def test_the_worker_of_a_high_slot_is_no_orphan(on_modal):
    async def main():
        registry = on_modal.registry(100)
        claims = {slot: await registry.claim(slot) for slot in range(71)}
        with serve_offline(SETTINGS) as server:
            assert await registry.publish(70, claims[70], await on_modal.launcher(server).start())
            busy = SweepPolicy(starting_s=0)
            assert await sweep(on_modal.app_id, on_modal.registry(None), busy) == NOTHING | {"kept": 1}
            assert len(on_modal.alive()) == 1

    asyncio.run(main())


def test_an_entry_with_no_sandbox_goes_and_one_near_its_end_gives_its_slot_up(on_modal):
    async def main():
        registry = on_modal.registry(2)
        with serve_offline(SETTINGS) as server:
            launcher = on_modal.launcher(server)
            gone, old = await asyncio.gather(launcher.start(), launcher.start())
            await launcher.stop(gone)
            await until(lambda: on_modal.alive() == [old.id])
            for slot, entry in enumerate((gone, replace(old, expires=time.time() + 800))):
                assert await registry.publish(slot, await registry.claim(slot), entry)
            done = await sweep(on_modal.app_id, registry, SweepPolicy())
        assert done == NOTHING | {"lost": 1, "rotated": 1}
        assert await registry.entries() == {}
        assert on_modal.alive() == [old.id]

    asyncio.run(main())


def test_a_worker_that_no_entry_knows_is_ended_when_it_is_old_and_at_rest(on_modal, modal_faults):
    async def main():
        registry = on_modal.registry(1)
        with serve_offline(replace(SETTINGS, latency_s=1.0)) as server:
            modal_faults.lose_reply("SandboxCreateV2")  # it creates two, and knows of one
            entry = await on_modal.launcher(server, scope=registry_scope(on_modal.app_id, "older")).start()
            assert await sweep(on_modal.app_id, registry, SweepPolicy()) == NOTHING  # it may be starting
            client = connect(entry)
            answering = asyncio.create_task(client.complete(prompts(1)[0]))
            await until(lambda: server.stats().in_flight == 1)
            done = await sweep(on_modal.app_id, registry, ALL_OLD)
            await until(lambda: on_modal.alive() == [entry.id])
            assert (await answering).text == "echo of prompt 0"
            await client.aclose()
            done = await sweep(on_modal.app_id, registry, ALL_OLD)
            assert done == NOTHING | {"orphans": 1}
            await until(lambda: on_modal.alive() == [])

    asyncio.run(main())


def test_a_repl_older_than_any_run_is_ended(on_modal, tmp_path):
    async def main():
        launcher = ModalReplLauncher(on_modal.app, IMAGE, run_id="r")
        process = await launcher.start(context_from_value("", tmp_path), ReplLimits())
        registry = on_modal.registry(1)
        assert await sweep(on_modal.app_id, registry, SweepPolicy()) == NOTHING
        assert len(on_modal.alive()) == 1
        assert await sweep(on_modal.app_id, registry, ALL_OLD) == NOTHING | {"repls": 1}
        await until(lambda: on_modal.alive() == [])
        await process.close()

    asyncio.run(main())


def test_what_modal_fails_at_is_left_to_the_next_sweep(on_modal, modal_faults):
    async def main():
        registry = on_modal.registry(1)
        with serve_offline(SETTINGS) as server:
            async with on_modal.pool(server, 1) as pool:
                await take_all(pool, prompts(1))
            modal_faults.unavailable("SandboxTerminateV2", 1000)
            done = await sweep(on_modal.app_id, registry, ALL_OLD)
            assert done == NOTHING | {"failed": 1}
            modal_faults.clear()
            done = await sweep(on_modal.app_id, registry, ALL_OLD)
            assert done == NOTHING | {"orphans": 1}  # its entry went first
        await until(lambda: on_modal.alive() == [])
        modal_faults.unavailable("SandboxListV2", 1000)
        with pytest.raises(WorkerError, match="Modal lists no Sandboxes"):
            await sweep(on_modal.app_id, registry, ALL_OLD)

    asyncio.run(main())


def test_a_pool_outlives_a_sweep_that_ends_its_idle_workers(on_modal):
    async def main():
        with serve_offline(SETTINGS) as server:
            async with on_modal.pool(server, 1) as pool:
                await take_all(pool, prompts(1))
                await sweep(on_modal.app_id, on_modal.registry(1), ALL_OLD)
                await until(lambda: on_modal.alive() == [])
                assert texts(await take_all(pool, prompts(3))) == [f"echo of prompt {n}" for n in range(3)]

    asyncio.run(main())


def test_all_workers_of_a_scope_can_be_ended_at_once(on_modal):
    async def main():
        with serve_offline(SETTINGS) as server:
            other = await on_modal.launcher(server, scope="another").start()
            async with on_modal.pool(server, 2) as pool:
                await take_all(pool, prompts(40))
                await all_started(pool)
            assert await terminate_all(on_modal.app_id, on_modal.scope) == 2
            await until(lambda: on_modal.alive() == [other.id])
            assert await terminate_all(on_modal.app_id, on_modal.scope) == 0

    asyncio.run(main())
