"""The root-LM loop: ask → read the reply → run its cells → report, until there is an answer or a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from rlm import events, feedback
from rlm.budget import Budget
from rlm.conversation import Conversation
from rlm.errors import ContextWindowError, EmptyReplyError, LimitReachedError, ReplBrokenError, ReplDiedError
from rlm.events import Answer, CellOutput, Emit
from rlm.prompts import Prompts
from rlm.reply import Reply, TextFinal, is_literal, parse_reply
from rlm.state import RunState


class Repl(Protocol):
    """Runs cells."""

    async def run(self, code: str) -> CellOutput:
        """Run a cell.

        Raises: ReplDiedError when the REPL died of it; the next call finds a fresh one. ReplBrokenError when
        there is none to be had.
        """

    async def final(self, text: str) -> CellOutput:
        """Run a cell `FINAL(text)` where `text` is an expression over names that cells have made.

        Anything else is answered as it stands, but for a Python literal, which keeps its value.

        Raises: as `run`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the loop ended. `stopped_by` is "answer" or the limit that cut it short; `answer` None: no FINAL gave one.

    `prose` is what the last request was answered with in place of a FINAL, `last_reply` all of the last reply.
    """

    answer: Answer | None
    stopped_by: str
    iterations: int
    prose: str | None = None
    last_reply: str = ""


class Loop:
    """One run of a root LM over one REPL. The conversation holds the system's message and the question."""

    def __init__(
        self,
        conversation: Conversation,
        repl: Repl,
        budget: Budget,
        state: RunState,
        prompts: Prompts,
        emit: Emit,
    ) -> None:
        self._conversation = conversation
        self._repl = repl
        self._budget = budget
        self._state = state
        self._prompts = prompts
        self._emit = emit
        self._reports: list[str] = []  # what the root LM is to be told with the next request
        self._last_reply = ""
        self._has_names = False  # whether the REPL may hold what cells have made

    async def run(self) -> Ending:
        """Go on until there is an answer, or a limit is reached and the last request is answered.

        Raises: RLMError for what the machinery did wrong.
        """
        answer, prose = None, None
        try:
            answer = await self._iterate()
            stopped_by = "answer" if answer is not None else "iterations"
            reason = f"all {self._state.max_iterations} replies are used"
        except LimitReachedError as limit:
            stopped_by, reason = limit.kind, str(limit)
        except ContextWindowError as exc:
            stopped_by, reason = "context_window", str(exc)
        if answer is None:
            answer, prose = await self._ask_for_the_last_time(reason)
        return Ending(
            answer=answer,
            stopped_by=stopped_by,
            iterations=self._state.iteration,
            prose=prose,
            last_reply=self._last_reply,
        )

    async def _iterate(self) -> Answer | None:
        """Replies and their cells up to the answer, or until all replies are used."""
        while self._state.iteration < self._state.max_iterations:
            if limit := self._budget.used_up():
                raise limit
            async with self._budget.within_time():
                self._state.iteration += 1
                reply, is_cut = await self._ask()
                answer, went_well = await self._run_cells(reply.cells)
                if answer is None and went_well:
                    if reply.final is not None:
                        answer = await self._read_final(reply.final, len(reply.cells))
                    else:
                        self._reports.append(self._prompts(what_now(reply, is_cut=is_cut)))
            if answer is not None:
                return answer
            if self._conversation.repeats_itself:
                self._reports.append(self._prompts("repeated"))
            left = self._state.max_iterations - self._state.iteration
            self._say(feedback.budget_line(self._budget.left(), left), *self._reports)
        return None

    def _say(self, *texts: str) -> None:
        self._conversation.say("\n\n".join(texts))
        self._reports.clear()

    async def _ask(self, *, is_last: bool = False) -> tuple[Reply, bool]:
        """The root LM's next reply, read, and whether it was cut: then without the cell that has no end."""
        given = await self._conversation.reply(self._state.iteration, is_last=is_last)
        self._last_reply = given.text
        reply = parse_reply(given.text)
        if given.cut and reply.unclosed_cell:
            reply = replace(reply, cells=reply.cells[:-1])
        return reply, given.cut

    async def _run_cells(self, cells: Sequence[str]) -> tuple[Answer | None, bool]:
        """Run cells up to one that gives the answer or fails: the answer, and whether all went well."""
        for number, code in enumerate(cells, start=1):
            output = await self._run_cell(code, partial(self._repl.run, code))
            if output is not None and output.final is not None:
                return output.final, True
            if output is None or output.error is not None:
                if later := len(cells) - number:
                    self._reports.append(feedback.NOT_RUN.format(count=later))
                self._reports.append(self._prompts("after_error"))
                return None, False
        return None, True

    async def _read_final(self, final: TextFinal, cells: int) -> Answer | None:
        """The answer that was written in a reply's text, once the reply's cells have run.

        Beside cells, what was written before their output was seen counts only if the REPL gave it.
        """
        if final.kind == "text" and not cells:
            return Answer(text=final.content)
        if cells and (final.kind == "text" or (final.kind == "value" and is_literal(final.content))):
            self._reports.append(self._prompts("early_final"))
            return None
        output = await self._evaluate(final)
        if output is None or output.final is None:
            self._reports.append(self._prompts("after_error"))
            return None
        if cells and final.kind == "value" and output.final.text == final.content:
            self._reports.append(self._prompts("early_final"))
            return None
        return output.final

    async def _evaluate(self, final: TextFinal) -> CellOutput | None:
        if final.kind == "variable":
            code = f"FINAL_VAR({final.content!r})"
            return await self._run_cell(code, partial(self._repl.run, code))
        return await self._run_cell(f"FINAL({final.content})", partial(self._repl.final, final.content))

    async def _run_cell(self, code: str, run: Callable[[], Awaitable[CellOutput]]) -> CellOutput | None:
        """Run one cell: what it did, or None where the REPL died of it."""
        iteration, cell = self._state.iteration, self._state.begin_cell()
        self._emit(events.CellStarted(run_id=self._state.run_id, iteration=iteration, cell=cell, code=code))
        cost = self._budget.measure()
        output, error = None, None
        self._has_names = False
        try:
            output = await run()
            self._has_names = True
        except ReplDiedError as exc:
            error = str(exc)
        spent = cost()
        self._emit(
            events.CellFinished(
                run_id=self._state.run_id, iteration=iteration, cell=cell, result=output, error=error, cost=spent
            )
        )
        if output is None:
            self._reports.append(feedback.death_report(cell, error or ""))
        elif output.final is None:
            self._reports.append(feedback.cell_report(cell, output, spent))
        return output

    async def _ask_for_the_last_time(self, reason: str) -> tuple[Answer | None, str | None]:
        """One more request, for the answer alone; or else the text of the reply, if it makes no use of FINAL."""
        self._say(*self._reports, self._prompts("last_request", reason=reason))
        words = None
        try:
            async with asyncio.timeout(self._budget.last_request_s()):
                reply, is_cut = await self._ask(is_last=True)
                final = reply.final
                if final is None and not reply.cells:
                    return None, None if is_cut else self._last_reply.strip() or None
                if final is not None and final.kind != "variable":
                    words = Answer(text=final.content)
                answer, _ = await self._run_cells(reply.cells)
                if answer is not None or final is None or final.kind == "text":
                    return answer or words, None
                if words is not None and not self._has_names:  # a REPL to be started has no more to say
                    return words, None
                output = await self._evaluate(final)
                return words if output is None else output.final, None
        except (ContextWindowError, EmptyReplyError, LimitReachedError, ReplBrokenError, TimeoutError):
            return words, None


def what_now(reply: Reply, *, is_cut: bool) -> str:
    """The prompt that is said after a reply that gave no answer."""
    if is_cut:
        return "cut"
    if reply.unclosed_final:
        return "unclosed_final"
    return "next_step" if reply.cells else "no_code"
