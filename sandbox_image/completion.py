"""What a provider sent, read as a chat completion: its text, how it ended, what it took.

All of it comes from outside: anything may be missing, of another type, or a lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sandbox_image.failures import ProviderFailedError, Usage, failure

MAX_TOKENS = 10**9  # of one call: who reports more reports nothing
MAX_TEXT_CHARS = 4 * 2**20
CUT = ("length", "max_tokens", "model_length")
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A chat completion. `finish_reason` "length": the text is cut at the provider's limit."""

    text: str
    usage: Usage
    finish_reason: FinishReason


@dataclass(slots=True)
class StreamedCompletion:
    """A completion that comes in pieces."""

    texts: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    finish_reason: object = None
    usage: object = None
    chars: int = 0

    def add(self, event: str) -> None:
        """Take the next piece. Raises: ProviderFailedError when it is none, tells of a failure, or is too much."""
        try:
            chunk = json.loads(event)
            raise_error_in(chunk)
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk.get("choices") or ():
                self._add(choice)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise no_completion(event) from None

    def _add(self, choice: Mapping[str, Any]) -> None:
        if choice.get("index"):  # another answer than the first: nobody asked for one
            return
        delta = choice.get("delta") or {}
        for texts, value in ((self.texts, delta.get("content")), (self.refusals, delta.get("refusal"))):
            if text := _text(value):
                texts.append(text)
                self.chars += len(text)
        if self.chars > MAX_TEXT_CHARS:
            raise ProviderFailedError("transient", f"its answer is longer than {MAX_TEXT_CHARS:,} characters")
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def answer(self) -> ProviderAnswer:
        """The whole of it. Raises: ProviderFailedError when it broke off, or there is not a word in it."""
        if self.finish_reason is None:
            raise ProviderFailedError("transient", "its answer broke off", usage=_usage(self.usage))
        return _answer("".join(self.texts), "".join(self.refusals), self.finish_reason, _usage(self.usage))


def read_completion(content: bytes) -> ProviderAnswer:
    """The answer in a chat completion's JSON.

    Raises: ProviderFailedError when it is none, or there is not a word in it.
    """
    try:
        completion = json.loads(content)
        raise_error_in(completion)
        choice = completion["choices"][0]
        text, refusal = _text(choice["message"].get("content")), _text(choice["message"].get("refusal"))
        return _answer(text, refusal, choice.get("finish_reason"), _usage(completion.get("usage")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise no_completion(content.decode("utf-8", "replace")) from None


def raise_error_in(answer: Mapping[str, Any]) -> None:
    """Raises: ProviderFailedError for an error that comes with status 200, as gateways have it."""
    if isinstance(answer.get("error"), dict) and not answer.get("choices"):
        code = answer["error"].get("code")
        raise failure(code if isinstance(code, int) and 400 <= code < 600 else 500, answer)


def no_completion(words: str) -> ProviderFailedError:
    """The error for an answer that is something else."""
    return ProviderFailedError("transient", f"the provider's answer is no chat completion: {words}")


def _answer(text: str, refusal: str, finish_reason: object, usage: Usage) -> ProviderAnswer:
    if finish_reason == "content_filter":
        words = refusal or "the provider's content filter stopped it"
        raise ProviderFailedError("declined", words, usage=usage)
    if not text.strip() and refusal:
        raise ProviderFailedError("declined", refusal, usage=usage)
    cut = finish_reason in CUT
    if not text.strip():
        words = "it reached its output limit before the first word" if cut else ""
        raise ProviderFailedError("empty", words, usage=usage)
    return ProviderAnswer(encodable(text), usage, "length" if cut else "stop")


def _text(content: object) -> str:
    """A message's content: a text, the texts of a list of parts, or nothing."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _usage(reported: object) -> Usage:
    if not isinstance(reported, dict):
        return Usage()
    details = reported.get("prompt_tokens_details")
    sent = _count(reported.get("prompt_tokens"))
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(sent, min(sent, cached), _count(reported.get("completion_tokens")))


def _count(value: object) -> int:
    """A number of tokens, or 0 for what can be none (also infinity, and what is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value <= MAX_TOKENS else 0


def encodable(text: str) -> str:
    """`text` with U+FFFD for what UTF-8 cannot carry (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
