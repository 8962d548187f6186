"""The LLM provider as we see it: requests it can carry, answers read, failures sorted by what to do about them.

For the worker and for the root LM alike. Nothing of `rlm` is imported here: the worker's Image has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx2
import openai


class ProviderFailedError(Exception):
    """The provider gave no completion: `kind` says what to do about it.

    "rate_limited" and "transient" may be tried again; "key_refused" and "unknown_model" end the run;
    "context_window" and "refused" are about this one request.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A chat completion: its text, and the tokens it took. `cached_input_tokens` are part of `input_tokens`."""

    text: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int


def open_client(
    *, timeout_s: float, max_retries: int = 0, api_key: str | None = None, base_url: str | None = None
) -> openai.AsyncOpenAI:
    """A client of the provider; key and base URL are those of the environment unless given."""
    return openai.AsyncOpenAI(
        api_key=api_key,
        base_url=base_url,
        max_retries=max_retries,
        timeout=timeout_s,
        http_client=openai.DefaultAioHttpClient(),  # carries half as many calls again as the default transport
    )


async def ask(
    client: openai.AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], *, timeout_s: float | None = None
) -> ProviderAnswer:
    """One chat completion, the client's own retries included in `timeout_s`.

    Raises: ProviderFailedError.
    """
    sent = [{**message, "content": encodable(message["content"])} for message in messages]
    try:
        async with asyncio.timeout(timeout_s):
            # The SDK's typed `chat.completions.create` halves the calls a second: it checks what goes out and builds
            # models of what comes back. `post` is its documented way around that.
            response = await client.post(
                "/chat/completions", cast_to=httpx2.Response, body={"model": model, "messages": sent}
            )
    except TimeoutError:
        raise ProviderFailedError("transient", f"no answer within {timeout_s:g} s") from None
    except openai.OpenAIError as exc:
        raise provider_failed(exc) from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:  # broken HTTP, a key that fits no header: not the SDK's
        raise ProviderFailedError("transient", one_line(repr(exc))) from exc
    return read_completion(response.content)


def read_completion(content: bytes) -> ProviderAnswer:
    """The answer in a chat completion's JSON.

    Raises: ProviderFailedError when it is none.
    """
    try:
        completion = json.loads(content)
        text = completion["choices"][0]["message"].get("content") or ""
        usage = completion.get("usage") or {}
        return ProviderAnswer(
            text=encodable(text),
            input_tokens=int(usage.get("prompt_tokens") or 0),
            cached_input_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            output_tokens=int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        words = one_line(content[:500].decode("utf-8", "replace"))
        raise ProviderFailedError("transient", f"the provider's answer is no chat completion: {words}") from None


def provider_failed(exc: openai.OpenAIError) -> ProviderFailedError:
    """Sort an error of the SDK into one of our kinds, with the provider's words."""
    if not isinstance(exc, openai.APIStatusError):  # timeouts, dropped connections
        return ProviderFailedError("transient", one_line(str(exc.__cause__ or "") or exc))
    words = one_line(exc.body.get("message") if isinstance(exc.body, dict) else None or exc.message)
    return ProviderFailedError(_kind_of(exc, words), words, retry_after_s(exc.response.headers))


def _kind_of(exc: openai.APIStatusError, words: str) -> str:
    status, code = exc.status_code, exc.code or ""
    if code == "insufficient_quota" or status in (401, 403):  # no quota is a 429 that no waiting will cure
        return "key_refused"
    if status == 429:
        return "rate_limited"
    if status >= 500 or status in (408, 409, 425):
        return "transient"
    if status == 404 or code == "model_not_found":
        return "unknown_model"
    if status == 413 or code == "context_length_exceeded" or _is_about_the_window(words):
        return "context_window"
    return "refused"


def _is_about_the_window(words: str) -> bool:
    """The words of OpenAI, vLLM, llama.cpp and others, who share no code for it."""
    return any(name in words.lower() for name in ("context length", "context window", "context size", "too long"))


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait from `retry-after-ms`, or from `Retry-After` in seconds or as an HTTP date."""
    with contextlib.suppress(KeyError, ValueError):
        return _sane(float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return _sane(float(value))
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(value).timestamp()
        return _sane(then - (time.time() if now is None else now))
    return None


def _sane(seconds: float) -> float | None:
    return max(0.0, seconds) if math.isfinite(seconds) else None


def encodable(text: str) -> str:
    """`text` with U+FFFD for what UTF-8 cannot carry (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def one_line(text: object) -> str:
    """`text` on one line, of a length fit for a message."""
    return " ".join(str(text).split())[:1000]
