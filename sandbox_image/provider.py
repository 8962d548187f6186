"""The LLM provider as we see it: a client that asks for chat completions and can be asked by nobody for the key.

For the worker and for the root LM alike. Nothing of `rlm` is imported here: the worker's Image has none.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Self, cast

import httpx2
import openai

from sandbox_image.completion import ProviderAnswer, StreamedCompletion, encodable, read_completion
from sandbox_image.failures import ProviderFailedError, failure, one_line, retry_after_s
from sandbox_image.redact import Redactor, fits_header
from sandbox_image.transport import EVENT_STREAM, ProviderTransport

SILENCE_S = 120.0  # of a stream that has begun to answer; before its first word a model may think for long
MAX_EVENT_BYTES = 4 * 2**20
UNFIT = "it has characters that no HTTP header can carry"
REST_S = 0.2  # for the end of a stream to come in, so that its connection can be used again


class ProviderClient:
    """Asks one provider. Use as `async with`.

    Key and base URL are those of the environment unless given. With `streams` an answer is taken as a stream where
    the provider can do that, so that one that falls silent for `silence_s` is noticed; it costs a fifth of the calls
    a second. The key, and what else is `secret`, stands in no answer and no error.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        streams: bool = False,
        silence_s: float = SILENCE_S,
        secret: str = "",
    ) -> None:
        key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
        self._streams = streams
        self._silence_s = silence_s
        self._redact = Redactor(key, secret)
        self._unusable_key = "" if fits_header(key) else UNFIT if key else "there is none"
        self._client = openai.AsyncOpenAI(
            api_key="none" if self._unusable_key else key,
            base_url=base_url,
            max_retries=0,
            timeout=None,  # `ask` has one limit for all of it
            http_client=httpx2.AsyncClient(transport=ProviderTransport(), follow_redirects=False),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, model: str, messages: Sequence[Mapping[str, Any]], *, timeout_s: float) -> ProviderAnswer:
        """One chat completion, all of it within `timeout_s`. Nothing is tried again.

        Raises: ProviderFailedError.
        """
        try:
            answer = await self._ask(model, messages, timeout_s)
        except ProviderFailedError as exc:
            words = one_line(self._redact(f"{model!r}: {exc}" if exc.kind == "unknown_model" else str(exc)))
            raise ProviderFailedError(exc.kind, words, retry_after_s=exc.retry_after_s, usage=exc.usage) from None
        return replace(answer, text=self._redact(answer.text))

    async def _ask(self, model: str, messages: Sequence[Mapping[str, Any]], timeout_s: float) -> ProviderAnswer:
        if self._unusable_key:
            raise ProviderFailedError("key_refused", self._unusable_key)
        sent = [{**message, "content": encodable(message["content"])} for message in messages]
        body = {"model": encodable(model), "messages": sent}
        try:
            async with asyncio.timeout(timeout_s):
                return await (self._ask_for_stream(body) if self._streams else self._ask_for_all(body))
        except TimeoutError:
            raise ProviderFailedError("transient", f"no answer within {timeout_s:g} s") from None
        except openai.APIStatusError as exc:
            raise status_failure(exc) from None
        except openai.OpenAIError as exc:
            raise ProviderFailedError("transient", str(exc.__cause__ or exc)) from None
        except (httpx2.TransportError, httpx2.DecodingError) as exc:
            raise ProviderFailedError("transient", str(exc)) from None
        except UnicodeError:  # OPENAI_ORG_ID and the like, which the SDK reads by itself
            raise ProviderFailedError("refused", "a setting of the SDK has what no HTTP header can carry") from None

    async def _ask_for_all(self, body: Mapping[str, Any]) -> ProviderAnswer:
        # The SDK's typed `chat.completions.create` halves the calls a second: it checks what goes out and builds
        # models of what comes back. `post` is its documented way around that.
        response = await self._client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        return read_completion(response.content)

    async def _ask_for_stream(self, body: dict[str, Any]) -> ProviderAnswer:
        streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            answered = await self._client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                body=streaming,
                options={"headers": {"Accept": EVENT_STREAM}},
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
        except openai.APIStatusError as exc:
            if not refuses_streams(exc):
                raise
            self._streams = False
            return await self._ask_for_all(body)
        response = cast(httpx2.Response, answered)  # as `cast_to` says; the SDK's types know of streams alone
        if response.headers["content-type"] != EVENT_STREAM:
            return read_completion(response.content)
        completion = StreamedCompletion()
        async with aclosing(response):
            await read_stream(response, completion, self._silence_s)
        self._streams = completion.usage is not None  # what is not counted cannot be kept within a budget
        return completion.answer()


async def read_stream(response: httpx2.Response, completion: StreamedCompletion, silence_s: float) -> None:
    """Read a stream to its end.

    Raises: ProviderFailedError when it tells of a failure, or says nothing for `silence_s` once it has begun to
    answer; httpx2.TransportError.
    """
    clock = asyncio.get_running_loop()
    source = aiter(httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES))
    async with aclosing(cast(AsyncGenerator[httpx2.ServerSentEvent], source)) as events:
        try:
            async with asyncio.timeout(None) as silence:
                async for event in events:
                    if event.data.strip() == "[DONE]":
                        break
                    completion.add(event.data)
                    if completion.chars:
                        silence.reschedule(clock.time() + silence_s)
        except TimeoutError:
            raise ProviderFailedError("transient", f"it fell silent for {silence_s:g} s in its answer") from None
        try:
            async with asyncio.timeout(REST_S):
                async for _ in events:
                    pass
        except (TimeoutError, httpx2.TransportError):
            pass


def status_failure(exc: openai.APIStatusError) -> ProviderFailedError:
    """The error for an answer whose status is none of success."""
    headers = exc.response.headers
    body = f"it redirects to {headers['location']}" if "location" in headers else exc.body
    return failure(exc.status_code, body, retry_after_s(headers))


def refuses_streams(exc: openai.APIStatusError) -> bool:
    """Whether the provider says that it does not stream, or takes no options of it, or not for us."""
    return exc.status_code in (400, 404, 405, 422, 501) and bool(re.search(r"\bstream", f"{exc.message} {exc.param}"))
