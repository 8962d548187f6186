"""Answers what cells ask: sub-LLM calls through the pool, child runs, what is left of the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rlm import events
from rlm.budget import Budget
from rlm.errors import LimitReachedError, RLMError, SubLLMError
from rlm.events import Emit
from rlm.repl.frames import BudgetCall, Call, ChildQuestion, LLMCall, RLMCall
from rlm.usage import TokenUsage
from rlm.workers.base import Completion, Prompt
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import Retry

Outcome = dict[str, Any]  # {"text"}, or {"error"} and, when the budget forbade the call, {"budget": True}
AskChild = Callable[[ChildQuestion], Awaitable[str]]


class CallAnswerer:
    """Answers the calls of one run's REPL.

    `ask_child` runs a child over a question of its own; None where the run may have no children, so that
    `rlm_query` is a plain sub-LLM call.
    """

    def __init__(
        self,
        run_id: str,
        pool: WorkerPool,
        budget: Budget,
        emit: Emit,
        *,
        models: Sequence[str],
        ask_child: AskChild | None,
    ) -> None:
        self._run_id = run_id
        self._pool = pool
        self._budget = budget
        self._emit = emit
        self._models = models
        self._ask_child = ask_child
        self._batches = 0

    async def __call__(self, call: Call) -> list[Outcome] | list[dict[str, float | None]]:
        """One outcome for each item of the call.

        Raises: RLMError when the run cannot go on: the key is refused, workers keep dying.
        """
        match call:
            case BudgetCall():
                return [self._budget.left()]
            case LLMCall(items=texts, model=model):
                return await self._ask_sub_llms(texts, model or self._models[0])
            case RLMCall(items=questions) if self._ask_child is None:
                return await self._ask_sub_llms([as_prompt(item) for item in questions], self._models[0])
            case RLMCall(items=questions):
                return await self._ask_children(questions, self._ask_child)

    async def _ask_sub_llms(self, texts: list[str], model: str) -> list[Outcome]:
        if model not in self._models:
            return [{"error": f"no model {model!r} here: use one of {', '.join(self._models)}"}] * len(texts)
        try:
            self._budget.reserve(model, [len(text) for text in texts])
        except LimitReachedError as exc:
            return [{"error": f"{exc}; {len(texts)} call(s) asked for", "budget": True}] * len(texts)
        self._batches += 1
        batch = self._batches
        self._emit(events.SubCallsStarted(run_id=self._run_id, batch=batch, count=len(texts), model=model))

        def on_retry(retry: Retry) -> None:
            self._emit(
                events.SubCallRetried(
                    run_id=self._run_id, batch=batch, index=retry.index, reason=retry.reason, wait_s=retry.delay_s
                )
            )

        outcomes: list[Outcome | None] = [None] * len(texts)
        try:
            async for result in self._pool.map(
                [Prompt(text=text, model=model) for text in texts],
                order_outputs=False,
                return_exceptions=True,
                on_retry=on_retry,
            ):
                outcomes[result.index] = self._settle(batch, texts[result.index], model, result)
        finally:
            for text, outcome in zip(texts, outcomes, strict=True):
                if outcome is None:  # cut short: what was set aside is given back
                    self._budget.settle(model, len(text), None)
        self._emit_spent()
        return [outcome for outcome in outcomes if outcome is not None]

    def _settle(self, batch: int, prompt: str, model: str, result: Completion | SubLLMError) -> Outcome:
        if isinstance(result, Completion):
            text, error, usage = result.text, None, result.usage
            self._budget.settle(model, len(prompt), usage)
        else:
            text, error, usage = None, str(result), TokenUsage()
            self._budget.settle(model, len(prompt), None)
        self._emit(
            events.SubCallFinished(
                run_id=self._run_id,
                batch=batch,
                index=result.index,
                prompt=prompt,
                text=text,
                error=error,
                usage=usage,
                attempts=result.attempts,
                in_flight=self._pool.stats().in_flight,
            )
        )
        return {"text": text} if error is None else {"error": error}

    def _emit_spent(self) -> None:
        self._emit(
            events.Spent(
                run_id=self._run_id,
                tokens=self._budget.total,
                sub_calls=self._budget.sub_calls,
                cost_usd=self._budget.cost_usd,
            )
        )

    async def _ask_children(self, questions: list[ChildQuestion], ask: AskChild) -> list[Outcome]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask_one(question, ask)) for question in questions]
        except* RLMError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]


async def ask_one(question: ChildQuestion, ask: AskChild) -> Outcome:
    """The outcome of one child run: without an answer it failed, as a sub-LLM call fails."""
    try:
        return {"text": await ask(question)}
    except SubLLMError as exc:
        return {"error": str(exc)}


def as_prompt(question: ChildQuestion) -> str:
    """A child's question as one prompt, where there may be no child."""
    return question.prompt if question.context in ("", "null") else f"{question.prompt}\n\n{question.context}"
