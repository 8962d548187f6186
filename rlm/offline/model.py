"""The provider's API, answered from rules. Plain ASGI and json: a benchmark's provider has to be fast."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rlm.offline import root, sub
from rlm.offline.relay import Relay
from rlm.offline.settings import Fault, OfflineSettings, OfflineStats, WrongAnswer

CHARS_PER_TOKEN = 4
RECENT = 50
RECENT_CHARS = 200


class OfflineModel:
    """The ASGI app. Requests come from one event loop; the counts may be read from any thread."""

    def __init__(self, settings: OfflineSettings) -> None:
        self.settings = settings
        self.connections: set[Any] = set()  # the server's open connections, for faults that drop one
        self._relay = None if settings.relay is None else Relay(settings.relay)
        self._counts: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._tries: Counter[bytes] = Counter()
        self._sub_answers: Counter[bytes] = Counter()
        self._fault_hits: Counter[tuple[int, bytes]] = Counter()
        self._recent: deque[str] = deque(maxlen=RECENT)
        self._in_flight = self._peak_in_flight = 0
        self._allowance, self._allowance_at = max(1.0, settings.rate_limit), time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        route = f"{request.method} {scope['path']}"
        if route == "POST /v1/chat/completions":
            self._in_flight += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
            try:
                response = await self._complete(request)
                await response(scope, receive, send)
            except ClientDisconnect:
                self._counts["abandoned"] += 1
            finally:
                self._in_flight -= 1
        elif route == "GET /v1/models":
            names = self.settings.models or ("offline",)
            rows = [{"id": name, "object": "model", "created": 0, "owned_by": "rlm"} for name in names]
            await (self._refused_key(request) or _json({"object": "list", "data": rows}))(scope, receive, send)
        elif route == "GET /stats":
            await _json(asdict(self.stats()))(scope, receive, send)
        else:
            await _error(404, "invalid_request_error", "unknown_url", f"There is no {route}.")(scope, receive, send)

    def stats(self) -> OfflineStats:
        """The counts up to now."""
        return OfflineStats(
            **{name: self._counts[name] for name in ("requests", "root_requests", "sub_requests", "answered")},
            errors=dict(self._errors),
            dropped=self._counts["dropped"],
            abandoned=self._counts["abandoned"],
            in_flight=self._in_flight,
            peak_in_flight=self._peak_in_flight,
            distinct_sub_prompts=len(self._sub_answers),
            prompts_answered_more_than_once=sum(times > 1 for times in self._sub_answers.copy().values()),
            recent_prompts=tuple(self._recent),
        )

    async def _complete(self, request: Request) -> Response:
        self._counts["requests"] += 1
        try:
            body = json.loads(await request.body())
            messages = [(str(m["role"]), _text(m.get("content"))) for m in body["messages"]]
            model, prompt = str(body["model"]), "\n\n".join(text for _, text in messages)
            last_message = messages[-1][1]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
            return self._refuse(400, None, f"This is no chat completion request: {exc!r}.")
        is_root = any(role in ("system", "developer") for role, _ in messages)
        self._counts["root_requests" if is_root else "sub_requests"] += 1
        self._recent.append(last_message[:RECENT_CHARS])
        key = blake2b(prompt.encode(errors="surrogatepass"), digest_size=8).digest()
        if not is_root:
            self._sub_answers[key] += 0
        streams = bool(body.get("stream"))
        refusal = self._refused_key(request) or self._refused_request(model, prompt, streams=streams)
        fault = None if refusal else self._next_fault(last_message, key)
        refusal = refusal or (fault and await self._strike(request, fault)) or await self._delay(request, key)
        if refusal is not None:
            return refusal
        settings = self.settings
        if self._relay is not None and (is_root or settings.relay_subs):
            reply = await _unless_disconnected(request, self._relay.ask(messages))
        elif not is_root:
            reply = (settings.sub_replies or sub.answer)(prompt)
        elif settings.script:
            turn = sum(role == "assistant" for role, _ in messages)
            reply = settings.script[min(turn, len(settings.script) - 1)]
        else:
            reply = root.reply(messages)
        self._counts["answered"] += 1
        if not is_root:
            self._sub_answers[key] += 1
        completion = _Completion(f"chatcmpl-{self._counts['answered']}", model, len(prompt), reply)
        completion.cut(body.get("max_completion_tokens") or body.get("max_tokens"))
        if fault is not None and fault.answer is not None:
            completion.spoil(fault.answer)
        if not streams:
            return _json(completion.whole())
        with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return EventSourceResponse(completion.events(with_usage=with_usage))

    def _refused_key(self, request: Request) -> Response | None:
        key = self.settings.api_key
        if key is None or request.headers.get("authorization") == f"Bearer {key}":
            return None
        return self._refuse(401, "invalid_api_key", "Incorrect API key provided.")

    def _refused_request(self, model: str, prompt: str, *, streams: bool) -> Response | None:
        settings, tokens = self.settings, _tokens(len(prompt))
        if streams and not settings.streams:
            return self._refuse(400, "unsupported_value", "This model cannot be streamed.")
        if settings.models is not None and model not in settings.models:
            return self._refuse(404, "model_not_found", f"The model `{model}` does not exist.")
        if settings.window_tokens is not None and tokens > settings.window_tokens:
            words = f"This model's window is {settings.window_tokens} tokens; the messages are {tokens}."
            return self._refuse(400, "context_length_exceeded", words)
        if settings.rate_limit:
            now = time.monotonic()
            refilled = self._allowance + (now - self._allowance_at) * settings.rate_limit
            self._allowance, self._allowance_at = min(max(1.0, settings.rate_limit), refilled), now
            if self._allowance < 1:
                wait_s = (1 - self._allowance) / settings.rate_limit
                headers = {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
                return self._refuse(429, "rate_limit_exceeded", f"Rate limit reached, wait {wait_s:.3f} s.", headers)
            self._allowance -= 1
        return None

    def _next_fault(self, last_message: str, key: bytes) -> Fault | None:
        for index, fault in enumerate(self.settings.faults):
            if fault.match in last_message and self._fault_hits[index, key] < fault.times:
                self._fault_hits[index, key] += 1
                return fault
        return None

    async def _strike(self, request: Request, fault: Fault) -> Response | None:
        await _wait(request, fault.hang_s)
        if fault.drop:
            self._counts["dropped"] += 1
            for connection in [c for c in self.connections if c.client == request.scope["client"]]:
                connection.transport.abort()
            await request.receive()  # returns once the connection is gone
            return Response()
        if fault.status is not None:
            return self._refuse(fault.status, "offline_fault", "A fault that was asked for.", fault.headers)
        return None

    async def _delay(self, request: Request, key: bytes) -> Response | None:
        settings = self.settings
        if settings.error_rate or settings.jitter:
            self._tries[key] += 1  # draws go by prompt and try, so that the order of arrival does not matter
            draw = random.Random(f"{settings.seed} {key.hex()} {self._tries[key]}")
            if draw.random() < settings.error_rate:
                return self._refuse(500, "server_error", "The server had an error, as the error rate asks.")
            await _wait(request, settings.latency_s * (1 + settings.jitter * draw.uniform(-1, 1)))
        elif settings.latency_s:
            await _wait(request, settings.latency_s)
        return None

    def _refuse(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        self._errors[status] += 1
        kind = {429: "requests", 401: "authentication_error"}.get(status)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        return _error(status, kind, code, message, headers)


@dataclass(slots=True)
class _Completion:
    id: str
    model: str
    prompt_chars: int
    content: str
    finish_reason: str = "stop"
    refusal: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def cut(self, max_tokens: int | None) -> None:
        if max_tokens and _tokens(len(self.content)) > max_tokens:
            self.content, self.finish_reason = self.content[: max_tokens * CHARS_PER_TOKEN], "length"

    def spoil(self, how: WrongAnswer) -> None:
        match how:
            case WrongAnswer.EMPTY:
                self.content = ""
            case WrongAnswer.DECLINED:
                self.content, self.refusal = "", "I cannot help with that."
            case WrongAnswer.FILTERED:
                self.content, self.finish_reason = self.content[: len(self.content) // 2], "content_filter"
            case WrongAnswer.CUT:
                self.content, self.finish_reason = self.content[: len(self.content) // 2], "length"

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def events(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        pieces = [self.content[at : at + 40] for at in range(0, len(self.content), 40)]
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
        deltas.append({} if self.refusal is None else {"refusal": self.refusal})
        frame = self._frame("chat.completion.chunk")
        for number, delta in enumerate(deltas, start=1):
            finish_reason = self.finish_reason if number == len(deltas) else None
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            yield format_sse_event(data_str=json.dumps({**frame, "choices": [choice]}))
        if with_usage:
            yield format_sse_event(data_str=json.dumps({**frame, "choices": [], "usage": self._usage()}))
        yield format_sse_event(data_str="[DONE]")

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        sent, got = _tokens(self.prompt_chars), _tokens(len(self.content))
        details = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}
        return {"prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got, **details}


async def _unless_disconnected(request: Request, work: Coroutine[None, None, str]) -> str:
    """The work's result. Raises: ClientDisconnect once the client has left; the work is cancelled then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _wait(request: Request, wait_s: float) -> None:
    """Let time pass. Raises: ClientDisconnect once the client has left, as nobody waits for the answer then."""
    if wait_s:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await _disconnected(request)
                raise ClientDisconnect


async def _disconnected(request: Request) -> None:
    """Wait until the client has left. The body has been read: nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tokens(chars: int) -> int:
    return math.ceil(chars / CHARS_PER_TOKEN)


def _text(content: object) -> str:
    """A message's content, which is a text, a list of parts, or nothing."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return "" if content is None else str(content)


def _json(body: object) -> Response:
    # JSONResponse cannot write lone surrogates, which model-written code can well send
    return Response(json.dumps(body), media_type="application/json")


def _error(
    status: int, kind: str, code: str | None, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error}, status, headers)
