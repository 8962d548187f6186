"""The Python API. RLM puts the parts together: pool, root LM, REPL, budget, loop."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from rlm import events, feedback
from rlm.budget import Budget
from rlm.calls import CallAnswerer
from rlm.config import Provider, RunConfig
from rlm.context import Context, Kind, context_from_text, context_from_value
from rlm.errors import InputError, SubLLMError
from rlm.events import Emit, Event
from rlm.loop import Ending, Loop
from rlm.models import ChatModel, OpenAIChatModel
from rlm.prompts import prompt
from rlm.repl.frames import ChildQuestion
from rlm.repl.local import LocalReplLauncher
from rlm.repl.session import ReplLauncher, ReplSession
from rlm.usage import PriceList, load_prices
from rlm.workers.base import WorkerClient, WorkerEntry, WorkerLauncher, WorkerRegistry
from rlm.workers.client import HttpWorkerClient
from rlm.workers.local import LocalLauncher
from rlm.workers.pool import WorkerPool
from rlm.workers.registry import MemoryRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What became of a question.

    `stopped_by` is "answer", or the limit that cut the run short. `usage` is by model: calls, input_tokens,
    cached_input_tokens, output_tokens. `cost_usd` None is unknown. `elapsed_s` in seconds. `scripted`: no LLM
    was asked, but the offline model.
    """

    answer: str | None
    stopped_by: str
    iterations: int
    sub_calls: int
    usage: Mapping[str, Mapping[str, int]]
    cost_usd: float | None
    run_id: str
    elapsed_s: float
    scripted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where processes run and where shared state lives: the two things that differ between here and Modal."""

    repl_launcher: ReplLauncher
    worker_launcher: WorkerLauncher
    registry: WorkerRegistry
    connect: Callable[[WorkerEntry], WorkerClient] = HttpWorkerClient


def local_backend(provider: Provider) -> Backend:
    """Everything on this machine, as subprocesses."""
    return Backend(
        repl_launcher=LocalReplLauncher(),
        worker_launcher=LocalLauncher(provider.environment()),
        registry=MemoryRegistry(),
    )


def new_run_id() -> str:
    """Twelve hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def ignore(_: Event) -> None:
    """Nobody listens."""


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
        self._emit = on_event
        self._pool = WorkerPool(
            self._backend.worker_launcher,
            self._backend.registry,
            size=self._config.pool_size,
            connect=self._backend.connect,
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
        await self._stack.enter_async_context(self._pool)
        for name in {self._config.model, self._config.recursive_model}:
            self._roots[name] = await self._stack.enter_async_context(OpenAIChatModel(self._provider, name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def run(self, question: str, context: object, *, run_id: str | None = None) -> RunResult:
        """Answer the question over the context: a str, a pathlib.Path (file or folder), or any JSON value.

        The run is known as `run_id` in its events, or else by a new id.

        Raises: InputError for what cannot be used; ProviderError, PoolBrokenError, ReplBrokenError when the
        machinery cannot go on.
        """
        if not question.strip():
            raise InputError("the question is empty")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rlm-context-") as folder:
            run = _Run(self, Budget(self._config.limits, self._prices), run_id or new_run_id())
            ending = await run.answer(question, context_from_value(context, Path(folder)))
        return RunResult(
            answer=ending.answer,
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


class _Run:
    """One run, or one child run, of an RLM."""

    def __init__(self, rlm: RLM, budget: Budget, run_id: str, *, depth: int = 0, parent_id: str | None = None) -> None:
        self.run_id = run_id
        self.budget = budget
        self._rlm = rlm
        self._config = rlm._config
        self._depth = depth
        self._parent_id = parent_id
        self._root = rlm._roots[self._config.model if depth == 0 else self._config.recursive_model]

    def usage(self) -> dict[str, dict[str, int]]:
        """What each model was asked and used."""
        return {
            model: {"calls": tally.calls, **events.as_json(tally.tokens)}
            for model, tally in sorted(self.budget.by_model.items())
        }

    async def answer(self, question: str, context: Context) -> Ending:
        """Run to the end; whatever ends it is the last event."""
        try:
            ending = await self._answer(question, context)
        except BaseException as exc:
            self._rlm._emit(events.RunFailed(run_id=self.run_id, error=str(exc) or type(exc).__name__))
            raise
        self._rlm._emit(
            events.RunFinished(
                run_id=self.run_id,
                answer=ending.answer,
                stopped_by=ending.stopped_by,
                iterations=ending.iterations,
                usage=self.usage(),
                cost_usd=self.budget.cost_usd,
            )
        )
        return ending

    async def _answer(self, question: str, context: Context) -> Ending:
        started = time.monotonic()
        config, rlm = self._config, self._rlm
        calls = CallAnswerer(
            self.run_id,
            rlm._pool,
            self.budget,
            rlm._emit,
            models=[config.recursive_model, config.model],
            ask_child=self._ask_child if self._depth < config.limits.max_depth else None,
        )
        async with ReplSession(rlm._backend.repl_launcher, context, config.repl, calls) as repl:
            rlm._emit(
                events.RunStarted(
                    run_id=self.run_id,
                    parent_id=self._parent_id,
                    depth=self._depth,
                    question=question,
                    context=repl.context_description,
                    model=self._root.name,
                    recursive_model=config.recursive_model,
                    max_iterations=config.max_iterations,
                    scripted=rlm._provider.scripted,
                    starting_s=time.monotonic() - started,
                )
            )
            if self._depth == 0 and (notice := await rlm._backend.repl_launcher.notice()):
                rlm._emit(events.Notice(run_id=self.run_id, text=notice))
            if context.skipped:
                rlm._emit(events.Notice(run_id=self.run_id, text=skipped_notice(context.skipped)))
            system = prompt(
                "force_parallel" if config.force_parallel else "default",
                context=repl.context_description,
                max_output_chars=f"{config.repl.max_output_chars:,}",
                sub_llm_chars=config.sub_llm_chars,
                in_flight=rlm._pool.stats().concurrency_limit,
                max_iterations=config.max_iterations,
                budget=feedback.budget_line(self.budget.left(), config.max_iterations),
            )
            manner = "_parallel" if config.force_parallel else ""
            return await Loop(self.run_id, self._root, repl, self.budget, rlm._emit).run(
                system,
                prompt(f"question{manner}", question=question),
                prompt(f"next_step{manner}"),
                config.max_iterations,
            )

    async def _ask_child(self, question: ChildQuestion) -> str:
        """A child run's answer.

        Raises: SubLLMError when it has none.
        """
        child = _Run(self._rlm, self.budget.child(), new_run_id(), depth=self._depth + 1, parent_id=self.run_id)
        with tempfile.TemporaryDirectory(prefix="rlm-context-") as folder:
            try:
                kind: Kind = "json" if question.is_json else "text"
                ending = await child.answer(question.prompt, context_from_text(question.context, kind, Path(folder)))
            except InputError as exc:
                raise SubLLMError(str(exc)) from exc
        if ending.answer is None:
            raise SubLLMError(f"the child run ended without an answer (stopped by {ending.stopped_by})")
        return ending.answer


def skipped_notice(names: Sequence[str]) -> str:
    """Which files of a folder are not in the context."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} file(s) are not text and were left out: {shown}"
