"""One run: a REPL with the context, the root LM's loop over it, and the child runs that cells ask for."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import rlm
from rlm import events, feedback, scratch
from rlm.budget import Budget
from rlm.calls import CallAnswerer
from rlm.cleanup import forgiving
from rlm.config import RunConfig
from rlm.context import Context, Kind, context_from_text
from rlm.conversation import Conversation
from rlm.errors import InputError, LimitReachedError, SubLLMError
from rlm.events import Answer, Emit, JsonValue
from rlm.folder import Skipped
from rlm.loop import Ending, Loop
from rlm.models import ChatModel
from rlm.prompts import Prompts
from rlm.repl.frames import ChildQuestion
from rlm.repl.session import ReplLauncher, ReplSession
from rlm.state import RunState
from rlm.usage import PriceList
from rlm.workers.pool import WorkerPool

LAST_REPLY_CHARS = 1_000  # of a child's last reply, as its parent is told


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What became of a question.

    `value` is what `answer` is the text of: the same str, or the JSON value that was given to FINAL. `stopped_by` is
    "answer", or the limit that cut the run short. `usage` is by model: calls, input_tokens, cached_input_tokens,
    output_tokens. `cost_usd` None is unknown. `elapsed_s` in seconds. `scripted`: no LLM was asked, but the offline
    model.
    """

    answer: str | None
    value: JsonValue
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
    """What a run and its child runs share.

    `roots` are the root LMs by name, `child_slots` by depth the child runs that may go on at once (each depth has its
    own, so that no child waits for its parent to end), `emit` hears all events.
    """

    config: RunConfig
    pool: WorkerPool
    roots: Mapping[str, ChatModel]
    prices: PriceList
    repl_launcher: ReplLauncher
    child_slots: Sequence[asyncio.Semaphore]
    emit: Emit
    scripted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the tree a run is: its depth, and the run and cell that asked for it."""

    depth: int = 0
    parent_id: str | None = None
    parent_cell: int | None = None


TOP = Place()


class Run:
    """One run, or one child run."""

    def __init__(self, parts: Parts, budget: Budget, run_id: str, place: Place = TOP) -> None:
        self.run_id = run_id
        self.budget = budget
        self._parts = parts
        self._config = parts.config
        self._place = place
        self._root = parts.roots[self._config.model if place.depth == 0 else self._config.recursive_model]
        self._state = RunState(run_id=run_id, max_iterations=self._config.max_iterations)

    def usage(self) -> dict[str, dict[str, int]]:
        """What each model was asked and used."""
        return {
            model: {"calls": tally.calls, **events.as_json(tally.tokens)}
            for model, tally in sorted(self.budget.by_model.items())
        }

    async def answer(self, question: str, context: Context) -> Ending:
        """Run to the end. The last event tells how it ended; only a clean-up that failed may be told after it."""
        async with AsyncExitStack() as stack:
            try:
                ending = await self._answer(question, context, stack)
            except BaseException as exc:
                self._tell_of_failure(exc)
                raise
            self._parts.emit(
                events.RunFinished(
                    run_id=self.run_id,
                    answer=None if ending.answer is None else ending.answer.text,
                    value=None if ending.answer is None else ending.answer.value,
                    stopped_by=ending.stopped_by,
                    iterations=ending.iterations,
                    usage=self.usage(),
                    cost_usd=self.budget.cost_usd,
                )
            )
        return ending

    async def _answer(self, question: str, context: Context, stack: AsyncExitStack) -> Ending:
        """The loop over a REPL with the context, which `stack` closes."""
        parts, started = self._parts, time.monotonic()
        prompts = Prompts(self._config.prompts, parallel=self._config.force_parallel)
        may_have_children = self._place.depth < len(parts.child_slots)
        calls = CallAnswerer(
            self._state,
            self._config,
            parts.pool,
            self.budget,
            parts.emit,
            ask_child=self._ask_child if may_have_children else None,
        )
        session = ReplSession(
            parts.repl_launcher, context, self._config.repl, calls, max_prompt_chars=self._config.sub_llm_chars
        )
        try:
            async with self.budget.within_time():
                repl = await stack.enter_async_context(forgiving(session, self.notice))
                self._tell_of_start(question, context, repl.context_description, time.monotonic() - started)
                if self._place.depth == 0 and (notice := await parts.repl_launcher.notice()):
                    self.notice(notice)
        except LimitReachedError as limit:
            return Ending(answer=None, stopped_by=limit.kind, iterations=0)
        conversation = Conversation(self.run_id, self._root, self.budget, parts.emit)
        conversation.say(self._system_prompt(prompts, repl), role="system")
        conversation.say(prompts("question", question=question))
        ending = await Loop(conversation, repl, self.budget, self._state, prompts, parts.emit).run()
        if ending.answer is None and ending.prose is not None and self._place.depth == 0:
            return replace(ending, answer=Answer(text=ending.prose))
        return ending

    def _tell_of_failure(self, exc: BaseException) -> None:
        self._parts.emit(
            events.RunFailed(
                run_id=self.run_id,
                error=str(exc) or type(exc).__name__,
                sub_calls=self.budget.sub_calls,
                usage=self.usage(),
                cost_usd=self.budget.cost_usd,
            )
        )

    def _tell_of_start(self, question: str, context: Context, description: str, starting_s: float) -> None:
        config = self._config
        self._parts.emit(
            events.RunStarted(
                run_id=self.run_id,
                parent_id=self._place.parent_id,
                parent_cell=self._place.parent_cell,
                depth=self._place.depth,
                question=question,
                context=description,
                files=files_of(context),
                model=self._root.name,
                recursive_model=config.recursive_model,
                max_iterations=config.max_iterations,
                settings=events.as_json(config),
                version=rlm.__version__,
                scripted=self._parts.scripted,
                starting_s=starting_s,
            )
        )
        if context.skipped:
            self.notice(skipped_notice(context.skipped))

    def _system_prompt(self, prompts: Prompts, repl: ReplSession) -> str:
        config = self._config
        kind = repl.context_type
        return prompts(
            "system",
            example=prompts(f"example.{kind}" if kind in ("str", "list", "dict") else "example"),
            libraries="".join(f", {name}" for name in repl.libraries),
            context=repl.context_description,
            context_summary=repl.context_description.partition("\n")[0],
            max_output_chars=f"{config.repl.max_output_chars:,}",
            sub_llm_chars=f"{config.sub_llm_chars:_}",
            in_flight=self._parts.pool.stats().concurrency_limit,
            models=feedback.models_line(self._root.name, config.recursive_model, self._parts.prices),
            max_children=config.max_children,
            max_iterations=config.max_iterations,
            budget=feedback.budget_line(self.budget.left(), config.max_iterations),
        )

    async def _ask_child(self, question: ChildQuestion, cell: int) -> str:
        """A child run's answer: what it gave to FINAL.

        Raises: SubLLMError when there is none; LimitReachedError when the budget has no reply left for it.
        """
        if not question.prompt.strip():
            raise SubLLMError("the question for the child run is empty")
        depth = self._place.depth
        async with self._parts.child_slots[depth]:
            place = Place(depth=depth + 1, parent_id=self.run_id, parent_cell=cell)
            child = Run(self._parts, self.budget.child(), new_run_id(), place)
            child.check_affordable(question.prompt)
            with scratch.folder("context", child.notice) as folder:
                kind: Kind = "json" if question.is_json else "text"
                ending = await child.answer(question.prompt, context_from_text(question.context, kind, folder))
        if ending.answer is None:
            raise SubLLMError(without_answer(ending))
        return ending.answer.text

    def check_affordable(self, question: str) -> None:
        """Look whether the budget has a first reply left.

        Raises: LimitReachedError.
        """
        with self.budget.reserve_reply(self._root.name, len(question)):
            pass

    def notice(self, text: str) -> None:
        """Tell the user something of this run."""
        self._parts.emit(events.Notice(run_id=self.run_id, text=text))


def files_of(context: Context) -> list[events.ContextFile]:
    """The files of a context, for the log.

    Raises: InputError when one is gone.
    """
    try:
        return [events.ContextFile(name=name, size_bytes=path.stat().st_size) for name, path in context.files]
    except OSError as exc:
        raise InputError(f"cannot read {exc.filename}: {exc.strerror}") from exc


def new_run_id() -> str:
    """Twelve hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def skipped_notice(skipped: Sequence[Skipped]) -> str:
    """Which files of a folder are not in the context."""
    shown = ", ".join(f"{one.name} {one.why}" for one in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    return f"{len(skipped)} file(s) were left out: {shown}"


def without_answer(ending: Ending) -> str:
    """What a cell is told of a child run that ended without an answer."""
    words = f"the child run ended without giving an answer (stopped by {ending.stopped_by})"
    reply = ending.last_reply.strip()
    if not reply:
        return words
    return f"{words}; its last reply was: {reply[:LAST_REPLY_CHARS]}{'...' if len(reply) > LAST_REPLY_CHARS else ''}"
