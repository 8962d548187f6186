"""Talks to one worker over HTTP. What can go wrong with that is translated here, once.

aiohttp, because it makes five times the calls a second of httpx2 for the same CPU, and modal brings it along.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import aiohttp
import httpx2
from yarl import URL

from rlm.config import REQUEST_TIMEOUT_S
from rlm.errors import WorkerError
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, FailureKind, Prompt, ProviderFailure, WorkerBusy, WorkerEntry
from sandbox_image.failures import one_line
from sandbox_image.redact import Redactor
from sandbox_image.transport import MAX_BODY_BYTES, BodyTooLargeError, open_session, payload, read_body, words_for

CONNECT_TIMEOUT_S = 10
CHECK_TIMEOUT_S = 5
GRACE_S = 60.0
MAX_ANSWER_BYTES = 2 * MAX_BODY_BYTES  # what the provider may send, and our frame around it
MAX_STATS_BYTES = 10_000
REFUSED = (401, 403)  # the statuses that say it of a token
KINDS = frozenset(get_args(FailureKind))


class HttpWorkerClient:
    """The `WorkerClient` for `sandbox_image/worker.py`. Makes as many connections as there are calls in flight.

    The provider has `timeout_s` for each prompt, the worker `grace_s` more to say so. `renew` gets another token for
    a worker that refuses the one we have, or raises a WorkerError.
    """

    def __init__(
        self,
        entry: WorkerEntry,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        grace_s: float = GRACE_S,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        renew: Callable[[WorkerEntry], Awaitable[str]] | None = None,
    ) -> None:
        self._entry = entry
        self._token = entry.token
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s + grace_s, sock_connect=CONNECT_TIMEOUT_S)
        self._check_timeout = aiohttp.ClientTimeout(total=check_timeout_s)
        self._complete_url = URL(entry.url) / "complete"
        self._stats_url = URL(entry.url) / "stats"
        self._session = open_session()

    async def complete(self, prompt: Prompt) -> Answer | ProviderFailure | WorkerBusy:
        """Have one prompt answered. Raises: WorkerError."""
        asked = {"prompt": prompt.text, "model": prompt.model, "timeout_s": self._timeout_s}
        status, body = await self._ask("POST", self._complete_url, self._timeout, json.dumps(asked).encode())
        return self._read(status, body)

    async def check(self) -> None:
        """Find out whether the worker is well and takes our token. Raises: WorkerError."""
        await self.stats()

    async def stats(self) -> dict[str, int]:
        """How many prompts the worker has in flight, has done, has failed at, and its limit. Raises: WorkerError."""
        status, body = await self._ask("GET", self._stats_url, self._check_timeout)
        try:
            if status == 200:
                found = json.loads(body)
                return {name: int(found[name]) for name in ("in_flight", "done", "failed", "limit")}
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            pass
        raise self._nonsense(status, body)

    async def aclose(self) -> None:
        """Hang up."""
        await self._session.close()

    async def _ask(
        self, method: str, url: URL, within: aiohttp.ClientTimeout, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """One request; once more, with another token, when the one we have is refused."""
        token = self._token
        status, answer = await self._send(method, url, within, body, token)
        if status in REFUSED and self._renew is not None:
            async with self._renewing:  # of the many calls that are refused at once, the first renews for all
                if self._token == token:
                    self._token = await self._renew(self._entry)
            status, answer = await self._send(method, url, within, body, self._token)
        return status, answer

    async def _send(
        self, method: str, url: URL, within: aiohttp.ClientTimeout, body: bytes | None, token: str
    ) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            response = await self._session.request(
                method, url, data=body and payload(body), headers=headers, timeout=within, allow_redirects=False
            )
            try:
                return response.status, await read_body(response, MAX_ANSWER_BYTES if body else MAX_STATS_BYTES)
            finally:
                response.close()  # a connection that was read to its end has gone back to the pool already
        except (aiohttp.ClientError, OSError, ValueError, BodyTooLargeError, httpx2.DecodingError) as exc:
            raise WorkerError(f"worker {self._entry.id} did not answer: {words_for(exc)}") from None

    def _read(self, status: int, body: bytes) -> Answer | ProviderFailure | WorkerBusy:
        try:
            content = json.loads(body)
            if status == 200 and isinstance(text := content["text"], str):
                return Answer(text, usage_of(content["usage"]), cut=content["finish_reason"] == "length")
            # A proxy between us and the worker has its own 502 and 503: only the worker's shape is the worker's word.
            error = content["error"]
            kind, message, retry_after_s = error["kind"], str(error["message"]), error["retry_after_s"]
            if status == 503 and kind == "busy" and 0 < retry_after_s < math.inf:
                return WorkerBusy(float(retry_after_s))
            if status == 502 and kind in KINDS:
                return ProviderFailure(kind, message, retry_after_s, usage_of(error["usage"]))
            if status == 400 and kind == "bad_request":  # another worker would refuse it, too
                return ProviderFailure("refused", message, None)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            pass
        raise self._nonsense(status, body)

    def _nonsense(self, status: int, body: bytes) -> WorkerError:
        words = one_line(Redactor(self._token)(body[:MAX_STATS_BYTES].decode("utf-8", "replace")))[:200]
        return WorkerError(f"worker {self._entry.id} answered as no worker does: status {status}: {words}")


def usage_of(reported: dict[str, Any]) -> TokenUsage:
    """What a worker says was used. Raises: LookupError, TypeError, ValueError, OverflowError."""
    return TokenUsage(
        input_tokens=int(reported["input_tokens"]),
        cached_input_tokens=int(reported["cached_input_tokens"]),
        output_tokens=int(reported["output_tokens"]),
    )
