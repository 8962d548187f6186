"""Where the processes of runs are, and what runs share there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from rlm.cleanup import Tell, forgiving
from rlm.config import Provider, RunConfig
from rlm.errors import InputError
from rlm.local.registry import MemoryRegistry
from rlm.local.repl import LocalReplLauncher
from rlm.local.workers import LocalLauncher
from rlm.models import ChatModel, OpenAIChatModel
from rlm.repl.session import ReplLauncher
from rlm.workers.base import Connect, WorkerLauncher, WorkerRegistry
from rlm.workers.client import HttpWorkerClient
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where processes run and where shared state lives: the two things that differ between here and Modal."""

    repl_launcher: ReplLauncher
    worker_launcher: WorkerLauncher
    registry: WorkerRegistry
    connect: Connect = HttpWorkerClient


def local_backend(provider: Provider) -> Backend:
    """Everything on this machine, as subprocesses."""
    return Backend(
        repl_launcher=LocalReplLauncher(),
        worker_launcher=LocalLauncher(provider.environment()),
        registry=MemoryRegistry(),
    )


class Shared:
    """What the runs of an open RLM share: the workers, and the clients of the root LMs. It is of one event loop."""

    def __init__(self, config: RunConfig, provider: Provider, backend: Backend, notice: Tell) -> None:
        self.loop = asyncio.get_running_loop()
        self.provider = provider
        self.backend = backend
        self.pool = WorkerPool(
            backend.worker_launcher,
            backend.registry,
            size=config.pool_size,
            policy=RetryPolicy(end_of_life_s=config.request_timeout_s + 60),  # a prompt must not outlive its worker
            connect=partial(backend.connect, timeout_s=config.request_timeout_s),
        )
        self._config = config
        self._notice = notice
        self._roots: dict[str, ChatModel] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(forgiving(self.pool, self._notice))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, exc, trace)  # the pool must know whether this is an end in order
        for trouble in self.pool.trouble:
            self._notice(trouble)

    async def roots(self, config: RunConfig) -> dict[str, ChatModel]:
        """The root LMs of a run and of its child runs, by name.

        Raises: InputError where the run's configuration asks for other workers than those that are shared.
        """
        for name in ("pool_size", "request_timeout_s"):
            if getattr(config, name) != (given := getattr(self._config, name)):
                raise InputError(
                    f"{name} is {given:g} for all runs that share the workers: give another to RLM(...), "
                    "or call `run` outside `async with`"
                )
        names = {config.model, config.recursive_model}
        for name in names - self._roots.keys():
            root = OpenAIChatModel(self.provider, name, timeout_s=config.request_timeout_s)
            self._roots[name] = await self._stack.enter_async_context(forgiving(root, self._notice))
        return {name: self._roots[name] for name in names}
