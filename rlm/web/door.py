"""Who comes in: the token is looked at before anything is read, and what is read is bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import hmac
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIB = 1 << 20
OPEN_PATH = "/healthz"
CLOSED = "this deployment has no RLM_API_TOKEN, so it is closed: make the Secret rlm-api-token"


class RefusedError(Exception):
    """A request that goes no further: the HTTP status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Door:
    """ASGI middleware: lets requests with the bearer token through to `app`, with their bodies read.

    Without a token it is closed. /healthz is open, and its body is never read. A body may have `max_body_bytes`
    and take `body_timeout_s` to arrive.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, max_body_bytes: int = 64 * MIB, body_timeout_s: float = 120.0
    ) -> None:
        self._app = app
        self._token = token.strip().encode()
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == OPEN_PATH):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
        except RefusedError as refused:
            await _answer(scope, send, refused)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check_token(self, scope: Scope) -> None:
        if not self._token:
            raise RefusedError(503, CLOSED)
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if not hmac.compare_digest(token.strip(), self._token) or scheme.lower() != b"bearer":
            raise RefusedError(401, "wrong or missing bearer token")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """What the request brings, whatever its Content-Length says."""
        told = [value for name, value in scope["headers"] if name == b"content-length"]
        if told and (not told[0].isdigit() or len(told[0]) > 18 or int(told[0]) > self._max_body_bytes):
            raise self._too_long()
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "the request ended before its body did")
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise self._too_long()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise RefusedError(408, f"the body took longer than {self._body_timeout_s:g} s to arrive") from None

    def _too_long(self) -> RefusedError:
        return RefusedError(413, f"the body is longer than {self._max_body_bytes:,} bytes")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message; then what else comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


async def _answer(scope: Scope, send: Send, refused: RefusedError) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if scope["http_version"].startswith("1"):  # what else the client sends of this request is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
