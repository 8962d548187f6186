"""The events of a run while it goes on, for who would rather iterate than listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from rlm.events import Event
from rlm.run import RunResult


async def events_of(
    run: Callable[[Callable[[Event | RunResult], None]], Awaitable[object]],
) -> AsyncGenerator[Event | RunResult, None]:
    """The events of a run as it tells them; the last item is its result, which may come before the run has ended.

    Raises: what the run raises, after its events.
    """
    queue: asyncio.Queue[Event | RunResult | None] = asyncio.Queue()
    task = asyncio.ensure_future(run(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (item := await queue.get()) is not None:
            yield item
        task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
