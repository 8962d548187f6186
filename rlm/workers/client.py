"""Talks to one worker over HTTP. What can go wrong with that is translated here, once.

aiohttp, because it makes five times the calls a second of httpx2 for the same CPU, and modal brings it along.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import get_args

import aiohttp
from yarl import URL

from rlm.errors import WorkerError
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, FailureKind, Prompt, ProviderFailure, WorkerBusy, WorkerEntry

CONNECT_TIMEOUT_S = 10
CHECK_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 660  # a worker gives its provider 600 s
REFUSED = (401, 403)  # the statuses that say it of a token
KINDS = frozenset(get_args(FailureKind))


class HttpWorkerClient:
    """The `WorkerClient` for `sandbox_image/worker.py`. Makes as many connections as there are calls in flight.

    `renew` gets another token for a worker that refuses the one we have, or raises a WorkerError.
    """

    def __init__(
        self,
        entry: WorkerEntry,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        check_timeout_s: float = CHECK_TIMEOUT_S,
        renew: Callable[[WorkerEntry], Awaitable[str]] | None = None,
    ) -> None:
        self._entry = entry
        self._token = entry.token
        self._renew = renew
        self._renewing = asyncio.Lock()
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._check_timeout = aiohttp.ClientTimeout(total=check_timeout_s)
        self._complete_url = URL(entry.url) / "complete"
        self._stats_url = URL(entry.url) / "stats"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def complete(self, prompt: Prompt) -> Answer | ProviderFailure | WorkerBusy:
        """Have one prompt answered. Raises: WorkerError."""
        body = json.dumps({"prompt": prompt.text, "model": prompt.model}).encode()
        return self._read(*await self._ask("POST", self._complete_url, self._timeout, body))

    async def check(self) -> None:
        """Find out whether the worker is well and takes our token. Raises: WorkerError."""
        await self.stats()

    async def stats(self) -> dict[str, int]:
        """How many prompts the worker has in flight, has done, has failed at, and its limit. Raises: WorkerError."""
        status, body = await self._ask("GET", self._stats_url, self._check_timeout)
        if status != 200 or b'"in_flight"' not in body:
            raise self._nonsense(status, body)
        stats: dict[str, int] = json.loads(body)
        return stats

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
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=within, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise WorkerError(f"worker {self._entry.id} did not answer: {exc!r}") from exc

    def _read(self, status: int, body: bytes) -> Answer | ProviderFailure | WorkerBusy:
        try:
            content = json.loads(body)
            if status == 200:
                usage = TokenUsage(
                    input_tokens=content["input_tokens"],
                    cached_input_tokens=content["cached_input_tokens"],
                    output_tokens=content["output_tokens"],
                )
                return Answer(content["text"], usage)
            # A proxy between us and the worker has its own 502 and 503: only the worker's shape is the worker's word.
            error = content["error"]
            if status == 503 and error["kind"] == "busy":
                return WorkerBusy(float(error["retry_after_s"]))
            if status == 502 and error["kind"] in KINDS:
                return ProviderFailure(error["kind"], error["message"], error["retry_after_s"])
        except (ValueError, LookupError, TypeError):
            pass
        raise self._nonsense(status, body)

    def _nonsense(self, status: int, body: bytes) -> WorkerError:
        words = body[:200].decode("utf-8", "replace")
        return WorkerError(f"worker {self._entry.id} answered as no worker does: status {status}, {words!r}")
