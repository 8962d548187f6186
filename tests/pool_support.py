"""Workers in this process: small real implementations of the pool's ports, for tests of what is built on the pool."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable

from rlm.local.registry import MemoryRegistry
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, Prompt, ProviderFailure, WorkerBusy, WorkerEntry
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy

Outcome = Answer | ProviderFailure | WorkerBusy
Answers = Callable[[str], Awaitable[Outcome]]


def answered(text: str) -> Answer:
    """An answer that took 3 tokens in and 1 out."""
    return Answer(text, TokenUsage(input_tokens=3, output_tokens=1))


class Launcher:
    """Starts workers that are no processes."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def start(self) -> WorkerEntry:
        now = time.time()
        return WorkerEntry(id=f"w{next(self._numbers)}", url="", token="", created=now, expires=now + 100_000)

    async def stop(self, entry: WorkerEntry) -> None:
        pass


class Client:
    """A worker that answers each prompt with what `answers` makes of its text."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def complete(self, prompt: Prompt) -> Outcome:
        return await self._answers(prompt.text)

    async def check(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def pool_in_process(answers: Answers, *, size: int = 1) -> WorkerPool:
    """A pool whose workers answer with `answers`."""
    policy = RetryPolicy(base_s=0.01, cap_s=0.02)
    return WorkerPool(Launcher(), MemoryRegistry(), size=size, policy=policy, connect=lambda *_, **__: Client(answers))
