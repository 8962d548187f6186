"""Real workers against the offline model, and what the tests ask about both."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlm.errors import SubLLMError
from rlm.local.registry import MemoryRegistry
from rlm.local.workers import LocalLauncher
from rlm.offline.server import OfflineServer, OfflineSettings, serve_offline
from rlm.workers.base import Completion, Prompt
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy

FAST = RetryPolicy(base_s=0.02, cap_s=0.1)


def echo(prompt: str) -> str:
    return f"echo of {prompt}"


def prompts(count: int, *, words: str = "prompt", model: str = "offline") -> list[Prompt]:
    return [Prompt(text=f"{words} {number}", model=model) for number in range(count)]


def provider_env(server: OfflineServer, **more: str) -> dict[str, str]:
    return {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.base_url, **more}


@dataclass
class Setup:
    pool: WorkerPool
    server: OfflineServer
    launcher: LocalLauncher
    registry: MemoryRegistry


@asynccontextmanager
async def pool_of(
    size: int,
    settings: OfflineSettings | None = None,
    *,
    per_worker: int = 64,
    policy: RetryPolicy = FAST,
) -> AsyncIterator[Setup]:
    """A pool of real workers; asserts at the end that nothing of it is left."""
    with serve_offline(settings or OfflineSettings(sub_replies=echo)) as server:
        before = asyncio.all_tasks()
        launcher, registry = LocalLauncher(provider_env(server)), MemoryRegistry()
        async with WorkerPool(launcher, registry, size=size, per_worker=per_worker, policy=policy) as pool:
            yield Setup(pool, server, launcher, registry)
        assert worker_pids() == []
        assert await registry.entries() == {}
        assert asyncio.all_tasks() == before


async def take_all(pool: WorkerPool, asked: Iterable[Prompt], **options: bool) -> list[Completion | SubLLMError]:
    return [result async for result in pool.map(asked, **options)]


async def take_until_error(
    pool: WorkerPool, asked: Iterable[Prompt], **options: Any
) -> tuple[list[Completion | SubLLMError], Exception]:
    """The results that come before the error that ends the map, and the error."""
    results = pool.map(asked, **options)
    taken = []
    try:
        while True:
            taken.append(await anext(results))
    except StopAsyncIteration:
        raise AssertionError("no error") from None
    except Exception as exc:  # noqa: BLE001  # whatever it is, the test looks at it
        return taken, exc


def texts(results: Iterable[Completion | SubLLMError]) -> list[str]:
    return [result.text if isinstance(result, Completion) else str(result) for result in results]


async def until(holds: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait until something about another process or thread holds that sends us no event."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def worker_pids(parent: int | None = None) -> list[int]:
    """The worker processes among the children of `parent` (of this process if None), as Linux tells it."""
    parent = parent or os.getpid()
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a process that need not be our child; False when it still runs after the time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)
