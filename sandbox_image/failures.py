"""A provider's failures, sorted by what to do about them."""

from __future__ import annotations

import contextlib
import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

MAX_RETRY_AFTER_S = 86_400.0
MAX_WORDS_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached_input_tokens` are part of `input_tokens`."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


class ProviderFailedError(Exception):
    """The provider gave no completion: `kind` says what to do about it.

    "rate_limited" and "transient" may be tried again, and so may "empty" and "declined", where the model was paid
    for an answer without a word, or declined to give one; "key_refused", "out_of_quota", "wrong_url" and
    "unknown_model" end the run; "context_window" and "refused" are about this one request.
    """

    def __init__(
        self, kind: str, message: str, *, retry_after_s: float | None = None, usage: Usage | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.usage = usage or Usage()


def failure(status: int, body: object, retry_after_s: float | None = None) -> ProviderFailedError:
    """The error for an answer of that status; `body` is its JSON, or its text where it is none."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
    words = said if isinstance(said, str) and said.strip() else f"status {status}"
    return ProviderFailedError(_kind_of(status, code, words), words, retry_after_s=retry_after_s)


def _kind_of(status: int, code: object, words: str) -> str:
    low = words.lower()
    if code == "insufficient_quota" or status == 402:  # a 429 that no waiting will cure
        return "out_of_quota"
    if status in (401, 403):
        return "key_refused"
    if status == 429:
        return "rate_limited"
    if status >= 500 or status in (408, 409, 425):
        return "transient"
    if code == "model_not_found" or (status == 404 and "model" in low):
        return "unknown_model"
    if status < 400 or status in (404, 405):
        return "wrong_url"
    if status == 413 or code == "context_length_exceeded" or is_about_the_window(low):
        return "context_window"
    return "refused"


def is_about_the_window(words: str) -> bool:
    """Whether the words are those of OpenAI, vLLM, llama.cpp and others, who share no code for it."""
    return any(name in words.lower() for name in ("context length", "context window", "context size", "too long"))


def retry_after_s(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait from `retry-after-ms`, or from `Retry-After` in seconds or as an HTTP date.

    None where nothing can be made of it: no time at all, a time that is over, infinity.
    """
    with contextlib.suppress(KeyError, ValueError):
        return _to_wait(float(headers["retry-after-ms"]) / 1000)
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return _to_wait(float(value))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        then = email.utils.parsedate_to_datetime(value).timestamp()
        return _to_wait(then - (time.time() if now is None else now))
    return None


def _to_wait(seconds: float) -> float | None:
    return min(seconds, MAX_RETRY_AFTER_S) if math.isfinite(seconds) and seconds > 0 else None


def one_line(words: str) -> str:
    """`words` on one line, of a length fit for a message, without what would drive a terminal."""
    line = " ".join(words[: 10 * MAX_WORDS_CHARS].split())[:MAX_WORDS_CHARS]
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
