"""One run: a REPL with the context, the root LM's loop over it, and the child runs that cells ask for."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm import events, feedback
from rlm.budget import Budget
from rlm.calls import CallAnswerer
from rlm.config import RunConfig
from rlm.context import Context, Kind, context_from_text
from rlm.errors import InputError, SubLLMError
from rlm.events import Emit
from rlm.loop import Ending, Loop
from rlm.models import ChatModel
from rlm.prompts import Prompts
from rlm.repl.frames import ChildQuestion
from rlm.repl.session import ReplLauncher, ReplSession
from rlm.workers.pool import WorkerPool


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
class Parts:
    """What a run and its child runs share. `roots` are the root LMs by name; `emit` hears all events."""

    config: RunConfig
    pool: WorkerPool
    roots: Mapping[str, ChatModel]
    repl_launcher: ReplLauncher
    emit: Emit
    scripted: bool


class Run:
    """One run, or one child run."""

    def __init__(
        self, parts: Parts, budget: Budget, run_id: str, *, depth: int = 0, parent_id: str | None = None
    ) -> None:
        self.run_id = run_id
        self.budget = budget
        self._parts = parts
        self._config = parts.config
        self._depth = depth
        self._parent_id = parent_id
        self._root = parts.roots[self._config.model if depth == 0 else self._config.recursive_model]

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
            self._parts.emit(events.RunFailed(run_id=self.run_id, error=str(exc) or type(exc).__name__))
            raise
        self._parts.emit(
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
        config, parts = self._config, self._parts
        calls = CallAnswerer(
            self.run_id,
            parts.pool,
            self.budget,
            parts.emit,
            models=[config.recursive_model, config.model],
            ask_child=self._ask_child if self._depth < config.limits.max_depth else None,
        )
        async with ReplSession(
            parts.repl_launcher, context, config.repl, calls, max_prompt_chars=config.sub_llm_chars
        ) as repl:
            parts.emit(
                events.RunStarted(
                    run_id=self.run_id,
                    parent_id=self._parent_id,
                    depth=self._depth,
                    question=question,
                    context=repl.context_description,
                    model=self._root.name,
                    recursive_model=config.recursive_model,
                    max_iterations=config.max_iterations,
                    scripted=parts.scripted,
                    starting_s=time.monotonic() - started,
                )
            )
            if self._depth == 0 and (notice := await parts.repl_launcher.notice()):
                parts.emit(events.Notice(run_id=self.run_id, text=notice))
            if context.skipped:
                parts.emit(events.Notice(run_id=self.run_id, text=skipped_notice(context.skipped)))
            prompts = Prompts(config.prompts, parallel=config.force_parallel)
            system = prompts(
                "system",
                example=prompts("example"),
                libraries="",
                models="",
                context=repl.context_description,
                max_output_chars=f"{config.repl.max_output_chars:,}",
                sub_llm_chars=config.sub_llm_chars,
                in_flight=parts.pool.stats().concurrency_limit,
                max_iterations=config.max_iterations,
                budget=feedback.budget_line(self.budget.left(), config.max_iterations),
            )
            loop = Loop(self.run_id, self._root, repl, self.budget, prompts, parts.emit)
            return await loop.run(system, prompts("question", question=question), config.max_iterations)

    async def _ask_child(self, question: ChildQuestion) -> str:
        """A child run's answer.

        Raises: SubLLMError when it has none.
        """
        child = Run(self._parts, self.budget.child(), new_run_id(), depth=self._depth + 1, parent_id=self.run_id)
        with tempfile.TemporaryDirectory(prefix="rlm-context-") as folder:
            try:
                kind: Kind = "json" if question.is_json else "text"
                ending = await child.answer(question.prompt, context_from_text(question.context, kind, Path(folder)))
            except InputError as exc:
                raise SubLLMError(str(exc)) from exc
        if ending.answer is None:
            raise SubLLMError(f"the child run ended without an answer (stopped by {ending.stopped_by})")
        return ending.answer


def new_run_id() -> str:
    """Twelve hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def skipped_notice(names: Sequence[str]) -> str:
    """Which files of a folder are not in the context."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} file(s) are not text and were left out: {shown}"
