"""What crashed processes leave behind is found and ended here, by a scheduled Function of which there is only one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import modal

from rlm.errors import WorkerError
from rlm.modal.registry import DictRegistry
from rlm.modal.repl import ROLE as REPL_ROLE
from rlm.modal.sandboxes import MODAL_FAILED, ROLE_TAG, age_s, list_running, terminate
from rlm.modal.workers import LONGEST_START_S, PORT, ROLE, SCOPE_TAG, as_worker_error, connect
from rlm.workers.base import WorkerEntry

OUTCOMES = ("kept", "idle", "rotated", "lost", "orphans", "repls", "failed")
NO_ANSWER = {"in_flight": 0, "done": -1}  # a worker that does not answer does nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """Who may stay. All times are in seconds."""

    keep: int = 0
    """The slots, from the first, whose workers stay though they are idle."""
    idle_s: float = 1_200
    """Any other worker is ended when it has done nothing for so long."""
    rotate_s: float = 1_500
    """A worker that lives no longer gives its slot up. More than `RetryPolicy.end_of_life_s`."""
    longest_run_s: float = 6 * 3600
    """A REPL that is older belongs to a run that has died."""
    starting_s: float = LONGEST_START_S
    """A worker that is younger may not be in the registry yet."""


async def sweep(app_id: str, registry: DictRegistry, policy: SweepPolicy) -> dict[str, int]:
    """Bring the Sandboxes of an App and the entries of its registry together again. Returns how many of each:

    kept      workers in the registry, told to Modal to be in use
    idle      workers ended because they were idle for too long
    rotated   slots given up because their worker's life is at its end; it finishes what it has
    lost      entries removed because their Sandbox is gone
    orphans   workers ended that no entry knows and that had nothing in flight; of older deployments, too
    repls     REPLs ended because they were too old
    failed    whatever Modal failed at; the next sweep sees it again

    The registry is one of every slot. Raises: WorkerError when Modal tells nothing at all.
    """
    entries = await registry.entries()  # before the Sandboxes: one that is published now must not look lost
    with as_worker_error("Modal lists no Sandboxes"):
        workers = await list_running(app_id, {ROLE_TAG: ROLE})
        repls = await list_running(app_id, {ROLE_TAG: REPL_ROLE})
    known = {entry.id for entry in entries.values()}
    work = [
        *(_look_after(registry, policy, slot, entry) for slot, entry in entries.items()),
        *(_end_orphan(sandbox, policy) for id_, sandbox in workers.items() if id_ not in known),
        *(_end_old_repl(sandbox, policy) for sandbox in repls.values()),
    ]
    done = dict.fromkeys(OUTCOMES, 0)
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, str):
            done[outcome] += 1
        elif isinstance(outcome, (WorkerError, *MODAL_FAILED)):
            done["failed"] += 1
        elif outcome is not None:
            raise outcome
    return done


async def terminate_all(app_id: str, scope: str) -> int:
    """End every worker of a scope; how many there were. Raises: WorkerError."""
    with as_worker_error("the workers cannot be ended, and end by themselves"):
        running = await list_running(app_id, {ROLE_TAG: ROLE, SCOPE_TAG: scope})
        await asyncio.gather(*(terminate(sandbox) for sandbox in running.values()))
    return len(running)


async def _look_after(registry: DictRegistry, policy: SweepPolicy, slot: int, entry: WorkerEntry) -> str:
    sandbox = await _running(entry.id)
    if sandbox is None:
        await registry.remove(slot, entry)
        return "lost"
    if entry.expires - time.time() < policy.rotate_s:
        await registry.remove(slot, entry)
        return "rotated"
    stats = await _stats(entry)
    idle_s = await registry.idle_s(slot, entry, stats["done"])
    if stats["in_flight"] == 0 and slot >= policy.keep and idle_s > policy.idle_s:
        await registry.remove(slot, entry)
        await terminate(sandbox)
        return "idle"
    process = await sandbox.exec.aio("true")  # of what a worker sees, only this surely counts as activity on Modal
    await process.wait.aio()
    return "kept"


async def _running(sandbox_id: str) -> modal.Sandbox | None:
    try:
        sandbox = await modal.Sandbox.from_id.aio(sandbox_id)
    except modal.exception.NotFoundError:
        return None
    return sandbox if await sandbox.poll.aio() is None else None


async def _end_orphan(sandbox: modal.Sandbox, policy: SweepPolicy) -> str | None:
    """End a worker that no new run can find, once the runs that know it leave it alone."""
    if await age_s(sandbox) < policy.starting_s:
        return None
    credentials = await sandbox.create_connect_token.aio(port=PORT)
    entry = WorkerEntry(id=sandbox.object_id, url=credentials.url, token=credentials.token, created=0, expires=0)
    if (await _stats(entry))["in_flight"]:
        return None
    await terminate(sandbox)
    return "orphans"


async def _end_old_repl(sandbox: modal.Sandbox, policy: SweepPolicy) -> str | None:
    if await age_s(sandbox) < policy.longest_run_s:
        return None
    await terminate(sandbox)
    return "repls"


async def _stats(entry: WorkerEntry) -> dict[str, int]:
    client = connect(entry)
    try:
        return await client.stats()
    except WorkerError:
        return NO_ANSWER
    finally:
        await client.aclose()
