"""The root-LM loop: ask → read the reply → run its cells → report, until there is an answer or a limit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from rlm import events, feedback
from rlm.budget import Budget
from rlm.errors import ContextWindowError, EmptyReplyError, LimitReachedError, ReplDiedError
from rlm.events import CellOutput, Emit
from rlm.models import ChatModel, Message
from rlm.prompts import Prompts
from rlm.reply import Reply, TextFinal, parse_reply

SHORTEST_MESSAGE_CHARS = 500
LAST_REQUEST_TIMEOUT_S = 120.0


class Repl(Protocol):
    """Runs cells."""

    async def run(self, code: str) -> CellOutput:
        """Run a cell.

        Raises: ReplDiedError when the REPL died of it; the next call finds a fresh one.
        """

    async def close(self) -> str:
        """End the REPL; a later `run` starts a fresh one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the loop ended. `stopped_by` is "answer" or the limit that cut it short; `answer` None: there is none."""

    answer: str | None
    stopped_by: str
    iterations: int


class Loop:
    """One run of a root LM over one REPL."""

    def __init__(  # what a loop is made of
        self, run_id: str, root: ChatModel, repl: Repl, budget: Budget, prompts: Prompts, emit: Emit
    ) -> None:
        self._run_id = run_id
        self._root = root
        self._repl = repl
        self._budget = budget
        self._prompts = prompts
        self._emit = emit
        self._messages: list[Message] = []
        self._iteration = 0

    async def run(self, system: str, question: str, max_iterations: int) -> Ending:
        """Go on until there is an answer, or a limit is reached and the last request is answered.

        Raises: RLMError for what the machinery did wrong.
        """
        self._messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        stopped_by = "iterations"
        try:
            while self._iteration < max_iterations:
                if limit := self._budget.used_up():
                    raise limit
                async with self._until_deadline():
                    reply = await self._ask()
                    answer, report = await self._carry_out(reply)
                if answer is not None:
                    return Ending(answer=answer, stopped_by="answer", iterations=self._iteration)
                if self._messages[-1] in self._messages[:-1]:
                    report = f"{report}\n\n{self._prompts('repeated')}"
                left = feedback.budget_line(self._budget.left(), max_iterations - self._iteration)
                self._messages.append({"role": "user", "content": f"{left}\n\n{report}"})
            reason = f"all {max_iterations} replies are used"
        except LimitReachedError as limit:
            stopped_by, reason = limit.kind, str(limit)
        except ContextWindowError as exc:
            stopped_by, reason = "context_window", str(exc)
        answer = await self._ask_for_the_last_word(reason)
        return Ending(answer=answer, stopped_by=stopped_by, iterations=self._iteration)

    async def _ask(self) -> Reply:
        """One reply of the root LM, appended to the messages."""
        self._iteration += 1
        reply = await self._complete()
        self._messages.append({"role": "assistant", "content": reply})
        return parse_reply(reply)

    async def _complete(self) -> str:
        """Ask; messages that are too long for the model are shortened, the oldest outputs too, until they fit."""
        keep_chars = max(len(message["content"]) for message in self._messages)
        while True:
            try:
                reply = await self._root.complete(self._messages)
                break
            except ContextWindowError:
                keep_chars //= 2
                if keep_chars < SHORTEST_MESSAGE_CHARS:
                    raise
                self._shorten_outputs(keep_chars)
        self._budget.spend(self._root.name, reply.usage)
        self._emit(
            events.RootReplied(
                run_id=self._run_id,
                iteration=self._iteration,
                text=reply.text,
                usage=reply.usage,
                latency_s=reply.latency_s,
            )
        )
        return reply.text

    def _shorten_outputs(self, keep_chars: int) -> None:
        outputs = self._messages[2:]
        for message, content in zip(
            outputs, feedback.shorten([message["content"] for message in outputs], keep_chars), strict=True
        ):
            message["content"] = content

    async def _carry_out(self, reply: Reply) -> tuple[str | None, str]:
        """Run the reply's cells and read its final: the answer, if one was given, or what to tell the root LM."""
        reports: list[str] = []
        for number, code in enumerate(reply.cells, start=1):
            final, report, went_well = await self._run_cell(number, code)
            if final is not None:
                return final, ""
            reports.append(report)
            if not went_well:
                if later := len(reply.cells) - number:
                    reports.append(feedback.NOT_RUN.format(count=later))
                return None, "\n\n".join([*reports, self._prompts("after_error")])
        final, report = await self._read_final(reply)
        return final, "\n\n".join([*reports, report])

    async def _read_final(self, reply: Reply) -> tuple[str | None, str]:
        """The answer written in the reply's text, once its cells have run, or what to say of it."""
        match reply.final:
            case TextFinal(kind="variable", content=name):
                final, report, _ = await self._run_cell(len(reply.cells) + 1, f"FINAL_VAR({name!r})")
                return final, f"{report}\n\n{self._prompts('after_error')}"
            case TextFinal(content=value):
                return (None, self._prompts("early_final")) if reply.cells else (value, "")
        if reply.unclosed_final:
            return None, self._prompts("unclosed_final")
        return None, self._prompts("next_step" if reply.cells else "no_code")

    async def _run_cell(self, number: int, code: str) -> tuple[str | None, str, bool]:
        """Run one cell: the answer it gave, the report of it, and whether it went well."""
        self._emit(events.CellStarted(run_id=self._run_id, iteration=self._iteration, code=code))
        started = time.monotonic()
        result, error = None, None
        try:
            result = await self._repl.run(code)
        except ReplDiedError as exc:
            error = str(exc)
        self._emit(
            events.CellFinished(
                run_id=self._run_id,
                iteration=self._iteration,
                result=result,
                error=error,
                seconds=time.monotonic() - started,
            )
        )
        if result is None:
            return None, feedback.death_report(number, error or ""), False
        final = None if result.final is None else result.final.text
        return final, feedback.cell_report(number, result), result.error is None

    async def _ask_for_the_last_word(self, reason: str) -> str | None:
        """One more request, for the answer alone; the text of the reply, if it makes no use of FINAL."""
        request = self._prompts("last_request", reason=reason)
        if self._messages[-1]["role"] == "user":  # a limit was reached between two replies
            self._messages[-1]["content"] += f"\n\n{request}"
        else:
            self._messages.append({"role": "user", "content": request})
        try:
            async with asyncio.timeout(LAST_REQUEST_TIMEOUT_S):
                text = await self._complete()
                reply = parse_reply(text)
                if reply.final is not None and reply.final.kind == "value":
                    return reply.final.content
                if reply.cells or reply.final is not None:
                    return (await self._carry_out(reply))[0]
        except (ContextWindowError, EmptyReplyError, TimeoutError):
            return None
        return text.strip() or None

    @contextlib.asynccontextmanager
    async def _until_deadline(self) -> AsyncIterator[None]:
        """Cut short what is under way when the run's time is up.

        Raises: LimitReachedError then.
        """
        seconds = self._budget.left()["seconds"]
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            await self._repl.close()
            limit = self._budget.used_up()
            if limit is None:
                raise
            raise limit from None
