"""The Python API. RLM puts the parts together: pool, root LM, REPL, budget, loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Self

import uvloop

from rlm import scratch
from rlm.backend import Backend, Shared, local_backend
from rlm.budget import Budget
from rlm.config import Provider, RunConfig
from rlm.context import context_from_value
from rlm.errors import InputError
from rlm.events import Emit, Event, Notice
from rlm.live import events_of
from rlm.run import Parts, Run, RunResult, new_run_id
from rlm.usage import PriceList, load_prices

NOT_GIVEN = object()


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


def has_event_loop() -> bool:
    """Whether one runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class RLM:
    """Answers any number of questions over contexts of any size.

    `provider` and `prices` are those of the environment unless given; `backend` is this machine unless given;
    `on_event` hears everything that happens. In `async with`, runs may go on at once and share the workers; outside
    it, each call starts what it needs and ends it.

    Raises: InputError where there is no provider, or a limit in dollars and no price.
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
        self.config = config or RunConfig()
        asked = provider or Provider.from_environment()
        self._serve: Callable[[], AbstractContextManager[Provider]] = lambda: nullcontext(asked)
        self._prices = load_prices(asked.base_url) if prices is None else prices
        self._backend = backend
        self._emit = unfailing(on_event)
        self._shared: Shared | None = None
        self._stack = AsyncExitStack()
        self._check_prices(self.config)

    @classmethod
    def offline(cls, config: RunConfig | None = None, *, on_event: Emit = ignore) -> Self:
        """One for trying out: a scripted model, served for as long as it is asked, searches by rules.

        It needs no key, and costs nothing; its results say `scripted`.
        """
        from rlm.offline.scripted import FREE, SCRIPTED, scripted_config, serve_scripted

        rlm = cls(scripted_config(config or RunConfig()), provider=SCRIPTED, prices=FREE, on_event=on_event)
        rlm._serve = serve_scripted
        return rlm

    async def __aenter__(self) -> Self:
        if self._shared is not None:
            raise InputError("this RLM is open already: runs that go on at once need one `async with`")
        self._shared = await self._stack.enter_async_context(self._open(self.config, self._emit))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared = None
        await self._stack.__aexit__(kind, exc, trace)

    async def run(
        self, question: str, context: object, *, config: RunConfig | None = None, run_id: str | None = None
    ) -> RunResult:
        """Answer the question over the context.

        The context is a str; a pathlib.Path (file or folder), or a list of them; or any JSON value, in which there
        may be pydantic models, dates and sets. `config` is for this run, in place of the RLM's own. The run is known
        as `run_id` in its events, or else by a new id.

        Raises: InputError for what cannot be used; ProviderError, PoolBrokenError, ReplBrokenError when the
        machinery cannot go on.
        """
        return await self._run(question, context, config or self.config, run_id, self._emit)

    def completion(
        self,
        question: str = "",
        context: object = NOT_GIVEN,
        *,
        query: str = "",
        config: RunConfig | None = None,
        run_id: str | None = None,
    ) -> RunResult:
        """As `run`, for a script without an event loop. `query` is another name for `question`.

        Raises: as `run` does; InputError where there is an event loop.
        """
        if context is NOT_GIVEN:
            raise InputError("there is no context: give a str, a Path or a JSON value")
        if has_event_loop():
            raise InputError("there is an event loop here, as in a notebook: use `await rlm.run(question, context)`")
        return uvloop.run(self.run(question or query, context, config=config, run_id=run_id))

    def stream(
        self, question: str, context: object, *, config: RunConfig | None = None, run_id: str | None = None
    ) -> AsyncGenerator[Event | RunResult, None]:
        """As `run`, for `async for`: the events of the run and its child runs; the last item is the RunResult.

        Leaving the iteration ends the run; `contextlib.aclosing` sees to it that it has ended then.
        """

        async def make(tell: Callable[[Event | RunResult], None]) -> None:
            def emit(event: Event) -> None:
                self._emit(event)
                tell(event)

            tell(await self._run(question, context, config or self.config, run_id, emit))

        return events_of(make)

    async def _run(
        self, question: str, context: object, config: RunConfig, run_id: str | None, emit: Emit
    ) -> RunResult:
        if not question.strip():
            raise InputError("the question is empty")
        self._check_prices(config)
        started = time.monotonic()
        async with self._open_for(config, emit) as shared:
            parts = Parts(
                config=config,
                pool=shared.pool,
                roots=await shared.roots(config),
                prices=self._prices,
                repl_launcher=shared.backend.repl_launcher,
                child_slots=[asyncio.Semaphore(config.max_children) for _ in range(config.limits.max_depth)],
                emit=emit,
                scripted=shared.provider.scripted,
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
                scripted=shared.provider.scripted,
            )

    @asynccontextmanager
    async def _open_for(self, config: RunConfig, emit: Emit) -> AsyncIterator[Shared]:
        """What a run needs: shared, where this RLM is open in the event loop of the run, or else its own."""
        if self._shared is not None and self._shared.loop is asyncio.get_running_loop():
            yield self._shared
        else:
            async with self._open(config, emit) as shared:
                yield shared

    @asynccontextmanager
    async def _open(self, config: RunConfig, emit: Emit) -> AsyncIterator[Shared]:
        with self._serve() as provider:
            backend = self._backend or local_backend(provider)
            async with Shared(config, provider, backend, partial(tell_notice, emit, "")) as shared:
                yield shared

    def _check_prices(self, config: RunConfig) -> None:
        if config.limits.max_usd is not None:
            for model in (config.model, config.recursive_model):
                if model not in self._prices.by_model:
                    raise InputError(
                        f"max_usd needs the price of {model!r}: add it to a file and name it with --prices"
                    )
