"""Sandboxes created and ended so that none is left behind. What runs in them is the business of others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import modal
from grpclib.exceptions import StreamTerminatedError

from rlm.workers.shield import uninterrupted

MODAL_FAILED = (modal.exception.Error, OSError, StreamTerminatedError)
"""What a call to Modal raises when it is not our code that is wrong; builtin time-outs are OSErrors."""

ROLE_TAG, CREATED_TAG = "rlm", "created"  # a Sandbox tells whoever lists it what it is for, and since when it runs
RATE_LIMIT_WAIT_S = 1.0  # between two tries, when Modal refuses to create any more for now
ABANDON_AFTER_S = 30.0  # how long a cancelled creation is waited for, to end what it makes
TERMINATE_TIMEOUT_S = 15.0
WORDS_CHARS = 500
ENDED_ALREADY = (modal.exception.NotFoundError, modal.exception.ConflictError)


async def create(
    *command: str,
    role: str,
    tags: Mapping[str, str],
    patience_s: float,
    **options: Any,  # noqa: ANN401  # those of Sandbox.create
) -> modal.Sandbox:
    """Create a Sandbox with these tags, its role and the time of its creation. When cancelled, it leaves none behind.

    While the account's limits refuse it, it tries again for `patience_s`.
    Raises: one of MODAL_FAILED.
    """
    until = time.monotonic() + patience_s
    while True:
        labels = {**tags, ROLE_TAG: role, CREATED_TAG: str(int(time.time()))}
        creating = asyncio.ensure_future(modal.Sandbox.create.aio(*command, tags=labels, **options))
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            await uninterrupted(_discard(creating))
            raise
        except modal.exception.ResourceExhaustedError:
            if time.monotonic() + RATE_LIMIT_WAIT_S > until:
                raise
        await asyncio.sleep(RATE_LIMIT_WAIT_S)


async def terminate(sandbox: modal.Sandbox) -> None:
    """End a Sandbox. Does nothing when it has ended already. Raises: one of MODAL_FAILED."""
    with contextlib.suppress(*ENDED_ALREADY):
        async with asyncio.timeout(TERMINATE_TIMEOUT_S):
            await sandbox.terminate.aio()


async def terminate_after(failure: BaseException, sandbox: modal.Sandbox) -> None:
    """End a Sandbox that `failure` has made useless, also when cancelled. What goes wrong now is added to it."""
    try:
        await uninterrupted(terminate(sandbox))
    except MODAL_FAILED as exc:
        failure.add_note(f"Sandbox {sandbox.object_id} could not be ended, and ends by itself: {words_of(exc)}")


async def list_running(app_id: str, tags: Mapping[str, str]) -> dict[str, modal.Sandbox]:
    """The Sandboxes of an App that have these tags and have not ended, by id. Raises: one of MODAL_FAILED.

    Modal's iterators lose a cancellation that comes as they end, so the list is made in a task of its own.
    """

    async def listed() -> dict[str, modal.Sandbox]:
        found = modal.Sandbox.list.aio(app_id=app_id, tags=dict(tags))
        return {sandbox.object_id: sandbox async for sandbox in found}

    listing = asyncio.ensure_future(listed())
    try:
        return await asyncio.shield(listing)
    except asyncio.CancelledError:
        listing.cancel()
        await uninterrupted(_ended(listing))
        raise


async def age_s(sandbox: modal.Sandbox) -> float:
    """Seconds since it was created. Raises: one of MODAL_FAILED."""
    tags = await sandbox.get_tags.aio()
    return time.time() - float(tags[CREATED_TAG])


def words_of(exc: BaseException) -> str:
    """An exception on one bounded line; its kind where it says nothing."""
    return " ".join(str(exc).split())[:WORDS_CHARS] or type(exc).__name__


async def _ended(task: asyncio.Future[dict[str, modal.Sandbox]]) -> None:
    await asyncio.wait([task], timeout=ABANDON_AFTER_S)
    if task.done() and not task.cancelled():
        task.exception()  # looked at, so that it is not reported as lost


async def _discard(creating: asyncio.Future[modal.Sandbox]) -> None:
    """End what a creation makes that is not waited for any more."""
    await asyncio.wait([creating], timeout=ABANDON_AFTER_S)
    if not creating.done():
        creating.cancel()
    elif not creating.cancelled() and creating.exception() is None:
        with contextlib.suppress(*MODAL_FAILED):  # then it ends by itself
            await terminate(creating.result())
