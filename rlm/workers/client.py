"""Talks to one worker over HTTP. What can go wrong with that is translated here, once.

aiohttp, because it makes five times the calls a second of httpx2 for the same CPU, and modal brings it along.
"""

from __future__ import annotations

import json
from typing import get_args

import aiohttp
from yarl import URL

from rlm.errors import WorkerError
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, FailureKind, Prompt, ProviderFailure, WorkerBusy, WorkerEntry

CONNECT_TIMEOUT_S = 10
CHECK_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 660  # a worker gives its provider 600 s
KINDS = frozenset(get_args(FailureKind))


class HttpWorkerClient:
    """The `WorkerClient` for `sandbox_image/worker.py`. Makes as many connections as there are calls in flight."""

    def __init__(
        self, entry: WorkerEntry, *, timeout_s: float = ANSWER_TIMEOUT_S, check_timeout_s: float = CHECK_TIMEOUT_S
    ) -> None:
        self._id = entry.id
        self._check_timeout = aiohttp.ClientTimeout(total=check_timeout_s)
        self._complete_url = URL(entry.url) / "complete"
        self._stats_url = URL(entry.url) / "stats"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {entry.token}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def complete(self, prompt: Prompt) -> Answer | ProviderFailure | WorkerBusy:
        """Have one prompt answered. Raises: WorkerError."""
        body = json.dumps({"prompt": prompt.text, "model": prompt.model}).encode()
        try:
            async with self._session.post(self._complete_url, data=body, allow_redirects=False) as response:
                return self._read(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise WorkerError(f"worker {self._id} did not answer: {exc!r}") from exc

    async def check(self) -> None:
        """Find out whether the worker is well and takes our token. Raises: WorkerError."""
        try:
            async with self._session.get(
                self._stats_url, timeout=self._check_timeout, allow_redirects=False
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise WorkerError(f"worker {self._id} did not answer: {exc!r}") from exc
        if response.status != 200 or b'"in_flight"' not in body:
            raise self._nonsense(response.status, body)

    async def aclose(self) -> None:
        """Hang up."""
        await self._session.close()

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
        return WorkerError(f"worker {self._id} answered as no worker does: status {status}, {words!r}")
