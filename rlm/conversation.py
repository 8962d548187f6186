"""The messages between a run and its root LM."""

from __future__ import annotations

from rlm import events, feedback
from rlm.budget import Budget, Reservation
from rlm.errors import ContextWindowError, ProviderError
from rlm.events import Emit
from rlm.models import ChatModel, Message, ModelReply

SHORTEST_MESSAGE_CHARS = 500
KEPT_MESSAGES = 2  # the system's and the question, which are never shortened


class Conversation:
    """What was said so far; each request sends all of it. Each reply is paid from the budget."""

    def __init__(self, run_id: str, root: ChatModel, budget: Budget, emit: Emit) -> None:
        self._run_id = run_id
        self._root = root
        self._budget = budget
        self._emit = emit
        self._messages: list[Message] = []

    def say(self, content: str, *, role: str = "user") -> None:
        """Add a message; to the last one, if that is of the same role."""
        self._emit(events.MessageSent(run_id=self._run_id, role=role, content=content))
        if self._messages and self._messages[-1]["role"] == role:
            self._messages[-1]["content"] += f"\n\n{content}"
        else:
            self._messages.append({"role": role, "content": content})

    @property
    def repeats_itself(self) -> bool:
        """Whether the last message has been sent before."""
        return self._messages[-1] in self._messages[:-1]

    async def reply(self, iteration: int, *, is_last: bool = False) -> ModelReply:
        """The root LM's next reply.

        Messages that are too long for the model are shortened until they fit, the oldest outputs too.

        Raises: ContextWindowError when they cannot be; LimitReachedError when the reply cannot be paid (the last
        one can); another ProviderError.
        """
        keep_chars = max(len(message["content"]) for message in self._messages)
        while True:
            try:
                with self._reserve(is_last=is_last) as paid:
                    paid.begin(0)
                    try:
                        reply = await self._root.complete(self._messages)
                    except ProviderError as exc:
                        paid.settle(0, exc.usage)
                        raise
                    paid.settle(0, reply.usage)
                break
            except ContextWindowError:
                keep_chars //= 2
                if keep_chars < SHORTEST_MESSAGE_CHARS:
                    raise
                self._shorten(keep_chars)
        self._messages.append({"role": "assistant", "content": reply.text})
        self._emit(
            events.RootReplied(
                run_id=self._run_id,
                iteration=iteration,
                text=reply.text,
                usage=reply.usage,
                latency_s=reply.latency_s,
                cut=reply.cut,
            )
        )
        self._emit(self._budget.spent_event(self._run_id))
        return reply

    def _reserve(self, *, is_last: bool) -> Reservation:
        chars = sum(len(message["content"]) for message in self._messages)
        reserve = self._budget.reserve_last_reply if is_last else self._budget.reserve_reply
        return reserve(self._root.name, chars)

    def _shorten(self, keep_chars: int) -> None:
        self._emit(events.MessagesShortened(run_id=self._run_id, keep_chars=keep_chars))
        outputs = self._messages[KEPT_MESSAGES:]
        short = feedback.shorten([message["content"] for message in outputs], keep_chars)
        for message, content in zip(outputs, short, strict=True):
            message["content"] = content
