"""The Python API. RLM puts the parts together: pool, root LM, REPL, budget, loop."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import uvloop

from rlm import scratch
from rlm.budget import Budget
from rlm.cleanup import forgiving
from rlm.config import Provider, RunConfig
from rlm.context import context_from_value
from rlm.errors import InputError
from rlm.events import Emit, Event, Notice
from rlm.local.registry import MemoryRegistry
from rlm.local.repl import LocalReplLauncher
from rlm.local.workers import LocalLauncher
from rlm.models import ChatModel, OpenAIChatModel
from rlm.repl.session import ReplLauncher
from rlm.run import Parts, Run, RunResult, new_run_id
from rlm.usage import PriceList, load_prices
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


def ignore(_: Event) -> None:
    """Hear an event, and do nothing."""


def unfailing(listener: Emit) -> Emit:
    """The listener, but that no run fails of what it raises: its first error becomes a Notice."""
    told = False

    def emit(event: Event) -> None:
        nonlocal told
        try:
            listener(event)
        except Exception as exc:  # noqa: BLE001  # a listener is not ours, and no reason to lose an answer
            if not told:
                told = True
                emit(Notice(run_id=event.run_id, text=f"a listener to events failed: {type(exc).__name__}: {exc}"))

    return emit


def tell_notice(emit: Emit, run_id: str, text: str) -> None:
    """Tell the user something; `run_id` is "" where it is not of one run."""
    emit(Notice(run_id=run_id, text=text))


class RLM:
    """Answers questions over contexts of any size.

    `provider` and `prices` are those of the environment unless given; `backend` is this machine unless given;
    `on_event` hears everything that happens. Use as `async with`; runs may go on at once and share the workers.
    """

    def __init__(
        self,
        config: RunConfig | None = None,
        *,
        provider: Provider | None = None,
        prices: PriceList | None = None,
        backend: Backend | None = None,
        on_event: Emit = ignore,
    ) -> None:
        self._config = config or RunConfig()
        self._provider = provider or Provider.from_environment()
        self._prices = load_prices(self._provider.base_url) if prices is None else prices
        self._backend = backend or local_backend(self._provider)
        self._emit = unfailing(on_event)
        timeout_s = self._config.request_timeout_s
        self._pool = WorkerPool(
            self._backend.worker_launcher,
            self._backend.registry,
            size=self._config.pool_size,
            policy=RetryPolicy(end_of_life_s=timeout_s + 60),  # a prompt must not outlive its worker
            connect=partial(self._backend.connect, timeout_s=timeout_s),
        )
        self._roots: dict[str, ChatModel] = {}
        self._stack = AsyncExitStack()
        if self._config.limits.max_usd is not None:
            for model in (self._config.model, self._config.recursive_model):
                if model not in self._prices.by_model:
                    raise InputError(
                        f"max_usd needs the price of {model!r}: add it to a file and name it with --prices"
                    )

    async def __aenter__(self) -> Self:
        notice = partial(tell_notice, self._emit, "")
        await self._stack.enter_async_context(forgiving(self._pool, notice))
        for name in {self._config.model, self._config.recursive_model}:
            root = OpenAIChatModel(self._provider, name, timeout_s=self._config.request_timeout_s)
            self._roots[name] = await self._stack.enter_async_context(forgiving(root, notice))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, exc, trace)  # the pool must know whether this is an end in order
        for trouble in self._pool.trouble:
            tell_notice(self._emit, "", trouble)

    async def run(self, question: str, context: object, *, run_id: str | None = None) -> RunResult:
        """Answer the question over the context: a str, a pathlib.Path (file or folder), or any JSON value.

        The run is known as `run_id` in its events, or else by a new id.

        Raises: InputError for what cannot be used; ProviderError, PoolBrokenError, ReplBrokenError when the
        machinery cannot go on.
        """
        if not question.strip():
            raise InputError("the question is empty")
        started = time.monotonic()
        config = self._config
        parts = Parts(
            config=config,
            pool=self._pool,
            roots=self._roots,
            prices=self._prices,
            repl_launcher=self._backend.repl_launcher,
            child_slots=[asyncio.Semaphore(config.max_children) for _ in range(config.limits.max_depth)],
            emit=self._emit,
            scripted=self._provider.scripted,
        )
        run = Run(parts, Budget(config.limits, self._prices), run_id or new_run_id())
        with scratch.folder("context", run.notice) as folder:
            ending = await run.answer(question, context_from_value(context, folder))
        return RunResult(
            answer=None if ending.answer is None else ending.answer.text,
            value=None if ending.answer is None else ending.answer.value,
            stopped_by=ending.stopped_by,
            iterations=ending.iterations,
            sub_calls=run.budget.sub_calls,
            usage=run.usage(),
            cost_usd=run.budget.cost_usd,
            run_id=run.run_id,
            elapsed_s=time.monotonic() - started,
            scripted=self._provider.scripted,
        )

    def completion(self, *, context: object, query: str) -> RunResult:
        """The same for a script without an event loop: one question, then everything is ended."""

        async def run_once() -> RunResult:
            async with self:
                return await self.run(query, context)

        return uvloop.run(run_once())
