"""Answers what cells ask: sub-LLM calls through the pool, child runs, what was spent and is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from rlm import events
from rlm.budget import Budget, Reservation
from rlm.config import RunConfig
from rlm.errors import (
    KeyRefusedError,
    LimitReachedError,
    PoolBrokenError,
    ProviderError,
    RLMError,
    SubLLMError,
    UnknownModelError,
)
from rlm.events import Emit
from rlm.repl.frames import BudgetCall, Call, ChildQuestion, LLMCall, RLMCall
from rlm.state import RunState
from rlm.usage import TokenUsage
from rlm.workers.base import Completion, Prompt
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import Retry

MAX_WORDS_CHARS = 2_000  # of an error or a reason
MAX_NAME_CHARS = 80

# {"text"}, of a text that was cut {"cut": True} too; or {"error", "index", "attempts"} and, when the budget forbade
# the call, {"budget": True}
Outcome = dict[str, Any]
AskChild = Callable[[ChildQuestion, int], Awaitable[str]]  # the question, and the number of the cell that asks

# What no other call of the run would escape.
HOPELESS = (KeyRefusedError, UnknownModelError, PoolBrokenError)


class CallAnswerer:
    """Answers the calls of one run's REPL.

    `ask_child` runs a child over a question of its own; None where the run may have no children, so that
    `rlm_query` is a plain sub-LLM call.
    """

    def __init__(
        self,
        state: RunState,
        config: RunConfig,
        pool: WorkerPool,
        budget: Budget,
        emit: Emit,
        *,
        ask_child: AskChild | None,
    ) -> None:
        self._state = state
        self._models = [config.recursive_model, config.model]
        self._max_prompt_chars = config.sub_llm_chars
        self._max_children = config.max_children
        self._pool = pool
        self._budget = budget
        self._emit = emit
        self._ask_child = ask_child
        self._batches = 0

    async def __call__(self, call: Call) -> list[Outcome]:
        """One outcome for each item of the call.

        Raises: RLMError when the run cannot go on: the key is refused, workers keep dying.
        """
        match call:
            case BudgetCall():
                return [{**self._budget.account(), "replies": self._state.replies()}]
            case LLMCall(items=texts, model=model, cell=cell):
                return await self._ask_sub_llms(texts, model or self._models[0], cell)
            case RLMCall(items=questions, cell=cell) if self._ask_child is None:
                return await self._ask_sub_llms([as_prompt(item) for item in questions], self._models[0], cell)
            case RLMCall(items=questions, cell=cell):
                return await self._ask_children(questions, cell, self._ask_child)

    async def _ask_sub_llms(self, texts: list[str], model: str, cell: int) -> list[Outcome]:
        if model not in self._models:
            asked = f"{model[:MAX_NAME_CHARS]!r}" + ("..." if len(model) > MAX_NAME_CHARS else "")
            return refused(len(texts), f"no model {asked} here: use one of {', '.join(self._models)}")
        if (longest := max(map(len, texts), default=0)) > self._max_prompt_chars:
            return refused(len(texts), too_long(longest, self._max_prompt_chars))
        try:
            reserved = self._budget.reserve(model, [len(text) for text in texts])
        except LimitReachedError as exc:
            return refused(len(texts), str(exc), budget=True)
        self._batches += 1
        batch = Batch(self._batches, cell, texts, model, reserved)
        with reserved:
            try:
                await self._ask_pool(batch)
            finally:
                self._emit(self._budget.spent_event(self._state.run_id))
        return [batch.outcomes[index] for index in range(len(texts))]

    async def _ask_pool(self, batch: Batch) -> None:
        run_id, iteration = self._state.run_id, self._state.iteration_of(batch.cell)
        self._emit(
            events.SubCallsStarted(
                run_id=run_id,
                iteration=iteration,
                cell=batch.cell,
                batch=batch.number,
                count=len(batch.texts),
                model=batch.model,
            )
        )

        def on_retry(retry: Retry) -> None:
            reason = retry.reason[:MAX_WORDS_CHARS]
            self._emit(
                events.SubCallRetried(
                    run_id=run_id, batch=batch.number, index=retry.index, reason=reason, wait_s=retry.delay_s
                )
            )

        def on_result(result: Completion | SubLLMError) -> None:
            usage = batch.settle(result)
            outcome = batch.outcomes[result.index]
            self._emit(
                events.SubCallFinished(
                    run_id=run_id,
                    iteration=iteration,
                    cell=batch.cell,
                    batch=batch.number,
                    index=result.index,
                    prompt=batch.texts[result.index],
                    text=outcome.get("text"),
                    error=outcome.get("error"),
                    usage=usage or TokenUsage(),
                    attempts=result.attempts,
                    in_flight=self._pool.stats().in_flight,
                    cut=outcome.get("cut", False),
                )
            )

        # Heard at the moment of the answer, so that one that has come is never lost to what ends the batch.
        results = self._pool.map(
            batch.prompts(), order_outputs=False, return_exceptions=True, on_retry=on_retry, on_result=on_result
        )
        try:
            async for _ in results:
                pass
        except ProviderError as exc:
            if exc.usage is not None:
                self._budget.spend(batch.model, exc.usage)
            raise

    async def _ask_children(self, questions: list[ChildQuestion], cell: int, ask: AskChild) -> list[Outcome]:
        if (longest := max((len(question.prompt) for question in questions), default=0)) > self._max_prompt_chars:
            return refused(len(questions), too_long(longest, self._max_prompt_chars))
        outcomes: dict[int, Outcome] = {}
        coming = enumerate(questions)

        async def ask_in_turn() -> None:
            for index, question in coming:
                outcomes[index] = await ask_one(index, question, cell, ask)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(questions), self._max_children)):
                    group.create_task(ask_in_turn())
        except* RLMError as errors:
            raise errors.exceptions[0] from None
        return [outcomes[index] for index in range(len(questions))]


class Batch:
    """The sub-LLM calls that a cell asks for at once, and what has become of each."""

    def __init__(self, number: int, cell: int, texts: Sequence[str], model: str, reserved: Reservation) -> None:
        self.number = number
        self.cell = cell
        self.texts = texts
        self.model = model
        self.outcomes: dict[int, Outcome] = {}
        self._reserved = reserved

    def prompts(self) -> Iterator[Prompt]:
        """The prompts for the pool, which takes them as it has room."""
        for index, text in enumerate(self.texts):
            self._reserved.begin(index)
            yield Prompt(text=text, model=self.model)

    def settle(self, result: Completion | SubLLMError) -> TokenUsage | None:
        """Keep what a call came to, once: what it used, or None if it failed at no cost."""
        if isinstance(result, Completion):
            self._reserved.settle(result.index, result.usage)
            self.outcomes[result.index] = {"text": result.text, **({"cut": True} if result.cut else {})}
            return result.usage
        self._reserved.settle(result.index, result.usage)
        self.outcomes[result.index] = failure(result.index, str(result), attempts=result.attempts)
        return result.usage


async def ask_one(index: int, question: ChildQuestion, cell: int, ask: AskChild) -> Outcome:
    """The outcome of one child run: what goes wrong with it is told in the cell, as of a sub-LLM call.

    Raises: RLMError for what no other call would escape.
    """
    try:
        return {"text": await ask(question, cell)}
    except HOPELESS:
        raise
    except RLMError as exc:
        outcome = failure(index, str(exc))
        return {**outcome, "budget": True} if isinstance(exc, LimitReachedError) else outcome


def failure(index: int, words: str, *, attempts: int = 1) -> Outcome:
    """The outcome of a call that failed for good."""
    return {"error": words[:MAX_WORDS_CHARS], "index": index, "attempts": attempts}


def refused(count: int, words: str, *, budget: bool = False) -> list[Outcome]:
    """The outcomes of a batch of which no call was made."""
    more = {"budget": True} if budget else {}
    return [{**failure(index, words, attempts=0), **more} for index in range(count)]


def too_long(chars: int, most: int) -> str:
    """Why a prompt is refused."""
    return f"a prompt of {chars:,} characters is longer than the {most:,} that a sub-LLM takes"


def as_prompt(question: ChildQuestion) -> str:
    """A child's question as one prompt, where there may be no child."""
    return question.prompt if question.context in ("", "null") else f"{question.prompt}\n\n{question.context}"
