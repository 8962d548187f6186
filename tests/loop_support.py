"""A root LM whose replies are given, and a REPL in this process: small real implementations of the loop's ports."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import io
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlm import Limits
from rlm.budget import Budget
from rlm.conversation import Conversation
from rlm.errors import ReplDiedError
from rlm.events import Answer, CellOutput, Emit, Event
from rlm.loop import Ending, Loop, Repl
from rlm.models import Message, ModelReply
from rlm.prompts import Prompts
from rlm.state import RunState
from rlm.usage import PriceList, TokenUsage

Reply = str | ModelReply | Exception | Callable[[], str]


def cut(text: str) -> ModelReply:
    """A reply that ends at the provider's limit."""
    return ModelReply(text=text, usage=TokenUsage(), latency_s=0.0, cut=True)


class ScriptedRoot:
    """A root LM that gives these replies, one after another, each after `latency_s`; it keeps what it was sent."""

    name = "root"

    def __init__(self, *replies: Reply, latency_s: float = 0.0, usage: TokenUsage | None = None) -> None:
        self._replies = list(replies)
        self._latency_s = latency_s
        self._usage = usage or TokenUsage()
        self.sent: list[list[Message]] = []

    async def complete(self, messages: Sequence[Message]) -> ModelReply:
        self.sent.append([Message(role=message["role"], content=message["content"]) for message in messages])
        await asyncio.sleep(self._latency_s)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, ModelReply):
            return reply
        text = reply if isinstance(reply, str) else reply()
        return ModelReply(text=text, usage=self._usage, latency_s=self._latency_s)


class Finished(BaseException):
    """Ends a cell that has given its answer."""


class Died(BaseException):
    """What a cell raises to end the REPL."""


class ExecRepl:
    """Runs cells with `exec`; names stay. `die()` ends it, and `await`ing cells wait in the event loop."""

    def __init__(self, **names: Any) -> None:
        self._given = names
        self._final: Answer | None = None
        self._names: dict[str, Any] = {}
        self._fresh()

    def _fresh(self) -> None:
        self._names = {**self._given, "FINAL": self._give, "FINAL_VAR": self._give_variable, "die": self._die}

    async def run(self, code: str) -> CellOutput:
        stdout, error, self._final = io.StringIO(), None, None
        try:
            with contextlib.redirect_stdout(stdout):
                compiled = compile(code, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                if (waiting := eval(compiled, self._names)) is not None:
                    await waiting
        except Finished:
            pass
        except Died:
            self._fresh()
            raise ReplDiedError("exit status 7") from None
        except Exception as exc:  # noqa: BLE001  # whatever a cell raises is data
            error = "".join(traceback.format_exception_only(exc)).strip()
        return CellOutput(stdout=stdout.getvalue(), stderr="", value="", error=error, final=self._final, late=[])

    async def final(self, text: str) -> CellOutput:
        try:
            names = {node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)}
        except SyntaxError:
            names = set()
        own = self._names.keys() - {"__builtins__"}
        if names & own and names <= own | set(dir(builtins)):
            return await self.run(f"FINAL({text})")
        try:
            answer = answer_of(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            answer = Answer(text=text)
        return CellOutput(stdout="", stderr="", value="", error=None, final=answer, late=[])

    def _give(self, value: object = "") -> None:
        self._final = answer_of(value)
        raise Finished

    def _give_variable(self, name: str) -> None:
        if name not in self._names:
            raise NameError(f"there is no variable {name!r}")
        self._give(self._names[name])

    def _die(self) -> None:
        raise Died


def answer_of(value: object) -> Answer:
    """The answer that a value makes."""
    return Answer(text=value) if isinstance(value, str) else Answer(text=json.dumps(value), is_json=True)


@dataclass(frozen=True)
class LoopRan:
    """What came of a loop."""

    ending: Ending
    events: list[Event]
    root: ScriptedRoot
    budget: Budget

    @property
    def text(self) -> str | None:
        """The answer's text."""
        return None if self.ending.answer is None else self.ending.answer.text

    def of(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def told(self) -> list[str]:
        """The last message of each request after the first."""
        return [messages[-1]["content"] for messages in self.root.sent[1:]]


def run_loop(
    *replies: Reply,
    make_repl: Callable[[Budget], Repl] | None = None,
    limits: Limits | None = None,
    max_iterations: int = 10,
    prices: PriceList | None = None,
    is_child: bool = False,
    prompts: str = "default",
    **root_options: Any,
) -> LoopRan:
    """Let a root LM that gives these replies work over a REPL in this process."""
    heard: list[Event] = []
    emit: Emit = heard.append
    root = ScriptedRoot(*replies, **root_options)
    budget = Budget(limits or Limits(), prices or PriceList())
    if is_child:
        budget = budget.child()

    async def run() -> Ending:
        conversation = Conversation("run", root, budget, emit)
        conversation.say("system", role="system")
        conversation.say("question")
        state = RunState(run_id="run", max_iterations=max_iterations)
        repl = make_repl(budget) if make_repl else ExecRepl(context="a b 42")
        return await Loop(conversation, repl, budget, state, Prompts(prompts), emit).run()

    return LoopRan(asyncio.run(run()), heard, root, budget)
