"""The root LM: the ChatModel port and its OpenAI adapter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypedDict

from rlm.config import Provider
from rlm.errors import ContextWindowError, KeyRefusedError, ProviderError, UnknownModelError
from rlm.usage import TokenUsage
from sandbox_image.provider import ProviderFailedError, ask, open_client

RETRIES = 4  # by the SDK: half a second at first, doubling, with jitter; Retry-After is honoured
REQUEST_TIMEOUT_S = 600.0


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """What the model wrote, what it took; `latency_s` in seconds, retries included."""

    text: str
    usage: TokenUsage
    latency_s: float


class ChatModel(Protocol):
    """Answers a conversation."""

    name: str

    async def complete(self, messages: Sequence[Message]) -> ModelReply:
        """The next message.

        Raises: ContextWindowError when the messages are too long; another ProviderError when there is none.
        """


class OpenAIChatModel:
    """A model behind any API that speaks OpenAI's chat completions. Use as `async with`."""

    def __init__(self, provider: Provider, name: str) -> None:
        self.name = name
        self._base_url = provider.base_url or "OpenAI"
        self._client = open_client(
            timeout_s=REQUEST_TIMEOUT_S, max_retries=RETRIES, api_key=provider.api_key, base_url=provider.base_url
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, messages: Sequence[Message]) -> ModelReply:
        """The next message."""
        started = time.monotonic()
        try:
            answer = await ask(self._client, self.name, messages)
        except ProviderFailedError as exc:
            raise provider_error(exc.kind, str(exc), model=self.name, base_url=self._base_url) from exc
        return ModelReply(
            text=answer.text,
            usage=TokenUsage(
                input_tokens=answer.input_tokens,
                cached_input_tokens=answer.cached_input_tokens,
                output_tokens=answer.output_tokens,
            ),
            latency_s=time.monotonic() - started,
        )


def provider_error(kind: str, words: str, *, model: str, base_url: str) -> ProviderError:
    """The error for a failure of that kind, with the provider's words and the remedy."""
    match kind:
        case "key_refused":
            return KeyRefusedError(f"{base_url} does not accept the API key: {words} (see OPENAI_API_KEY)")
        case "unknown_model":
            return UnknownModelError(f"{base_url} has no model {model!r}: {words} (see --model, --recursive-model)")
        case "context_window":
            return ContextWindowError(f"the messages are too long for {model!r}: {words}")
        case _:
            return ProviderError(f"{model!r} at {base_url} gave no answer: {words}")
