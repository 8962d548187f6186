"""The root LM: the ChatModel port and its OpenAI adapter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, Self, TypedDict, cast
from urllib.parse import urlsplit, urlunsplit

from rlm.config import REQUEST_TIMEOUT_S, Provider
from rlm.errors import ContextWindowError, EmptyReplyError, ProviderError, SubLLMError
from rlm.usage import TokenUsage
from rlm.workers.base import FailureKind, ProviderFailure
from rlm.workers.retry import WORDLESS, RetryPolicy, Tries
from sandbox_image.failures import ProviderFailedError
from sandbox_image.provider import ProviderClient

ROOT_POLICY = RetryPolicy(attempts=5, cap_s=8)


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """What the model wrote, `cut` when it reached its output limit.

    `usage` and `latency_s`, in seconds, are those of all tries.
    """

    text: str
    usage: TokenUsage
    latency_s: float
    cut: bool = False


class ChatModel(Protocol):
    """Answers a conversation."""

    name: str

    async def complete(self, messages: Sequence[Message]) -> ModelReply:
        """The next message.

        Raises: ContextWindowError when the messages are too long; another ProviderError when there is none.
        """


class OpenAIChatModel:
    """A model behind any API that speaks OpenAI's chat completions. Use as `async with`.

    Each request has `timeout_s`; `policy` says how often it is made again.
    """

    def __init__(
        self,
        provider: Provider,
        name: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        policy: RetryPolicy = ROOT_POLICY,
    ) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._policy = policy
        self._who = shown(provider.base_url)
        self._client = ProviderClient(api_key=provider.api_key, base_url=provider.base_url, streams=True)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.__aexit__(*exc)

    async def complete(self, messages: Sequence[Message]) -> ModelReply:
        """The next message."""
        started = time.monotonic()
        tries = Tries(self._policy, 0, who=self._who)
        while True:
            try:
                answer = await self._client.ask(self.name, messages, timeout_s=self._timeout_s)
            except ProviderFailedError as exc:
                await asyncio.sleep(self._delay_s(tries, failure_of(exc)))
                continue
            return ModelReply(
                text=answer.text,
                usage=tries.usage + TokenUsage(**asdict(answer.usage)),
                latency_s=time.monotonic() - started,
                cut=answer.finish_reason == "length",
            )

    def _delay_s(self, tries: Tries, failure: ProviderFailure) -> float:
        """How long to wait before the request is made again. Raises: ProviderError when it is not."""
        if failure.kind == "context_window":
            raise ContextWindowError(f"the messages are too long for {self.name!r}: {failure.message}")
        try:
            return tries.next(failure, time.monotonic()).delay_s
        except SubLLMError as exc:
            kind = EmptyReplyError if failure.kind in WORDLESS else ProviderError
            error = kind(f"{self.name!r} at {self._who} gave no answer: {exc}")
        except ProviderError as exc:
            error = exc
        error.usage = tries.usage
        raise error from None


def failure_of(exc: ProviderFailedError) -> ProviderFailure:
    """The failure in the words that the retry policy knows."""
    return ProviderFailure(cast(FailureKind, exc.kind), str(exc), exc.retry_after_s, TokenUsage(**asdict(exc.usage)))


def shown(base_url: str | None) -> str:
    """The provider as messages name it: without a password, which a URL may hold."""
    if base_url is None:
        return "OpenAI"
    url = urlsplit(base_url)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment=""))
