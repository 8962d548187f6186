"""Starts workers as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rlm.errors import WorkerError
from rlm.workers.base import WorkerEntry
from rlm.workers.shield import uninterrupted
from sandbox_image.redact import Redactor

START_TIMEOUT_S = 60
STOP_GRACE_S = 2  # twice what a worker gives its calls in flight
STDERR_TAIL_BYTES = 4000
STDERR_LINE_CHARS = 500
YEAR_S = 365 * 24 * 3600
# What a worker gets of our environment, so that nothing else of it gets to a process that talks to the provider.
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SYSTEMROOT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)


class _Process:
    """A worker process, its streams read for as long as it lives, so that it never blocks on a full pipe."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._stderr = bytearray()
        self.first_line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._readers = [
            asyncio.create_task(self._read_stdout(process.stdout)),
            asyncio.create_task(self._read_stderr(process.stderr)),
        ]

    async def _read_stdout(self, stream: asyncio.StreamReader) -> None:
        try:
            line = await stream.readline()
        except ValueError:  # longer than any line of a worker
            line = b""
        if not self.first_line.done():
            self.first_line.set_result(line)
        while await stream.read(65536):
            pass

    async def _read_stderr(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65536):
            self._stderr += chunk
            del self._stderr[:-STDERR_TAIL_BYTES]

    async def end(self, grace_s: float) -> str:
        """SIGTERM, SIGKILL after the grace, reap; returns the end of its stderr."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM if grace_s else signal.SIGKILL)
        try:
            async with asyncio.timeout(grace_s or None):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._readers)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._stderr.decode("utf-8", "replace").strip()


class LocalLauncher:
    """Starts `sandbox_image/worker.py` as a subprocess.

    `provider_env` holds what the worker needs to reach the provider: OPENAI_API_KEY, OPENAI_BASE_URL, and the
    RLM_WORKER_* settings. As many workers start at a time as there are cores: starting is all CPU, and the first
    prompts are waiting.
    """

    def __init__(self, provider_env: Mapping[str, str]) -> None:
        self._env = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | dict(provider_env)
        self._redact = Redactor(self._env.get("OPENAI_API_KEY", ""))
        self._starts = asyncio.Semaphore(os.cpu_count() or 1)
        self._processes: dict[str, _Process] = {}

    async def start(self) -> WorkerEntry:
        """Start one worker and wait until it answers. Raises: WorkerError."""
        async with self._starts:
            token = secrets.token_urlsafe(24)
            process = await self._spawn(token)
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    port = int(json.loads(await process.first_line)["port"])
            except (TimeoutError, ValueError, LookupError, TypeError):
                stderr = self._redact(await uninterrupted(process.end(0)))
                *_, last_line = stderr.splitlines() or ["it said nothing"]
                error = WorkerError(f"a worker process did not start: {last_line[:STDERR_LINE_CHARS]}")
                error.add_note(stderr)
                raise error from None
            except asyncio.CancelledError:
                await uninterrupted(process.end(0))
                raise
        now = time.time()
        entry = WorkerEntry(
            id=secrets.token_hex(4), url=f"http://127.0.0.1:{port}", token=token, created=now, expires=now + YEAR_S
        )
        self._processes[entry.id] = process
        return entry

    async def stop(self, entry: WorkerEntry) -> None:
        """End the worker. Does nothing when it has ended already."""
        process = self._processes.pop(entry.id, None)
        if process is not None:
            await uninterrupted(process.end(STOP_GRACE_S))

    async def _spawn(self, token: str) -> _Process:
        package = importlib.util.find_spec("sandbox_image")
        assert package is not None
        assert package.origin is not None
        try:
            return _Process(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", str(Path(package.origin).with_name("worker.py")), "--port", "0"),
                    stdin=asyncio.subprocess.PIPE,  # held open: the worker ends when it closes, so when we end
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=self._env | {"RLM_WORKER_TOKEN": token},
                    start_new_session=True,  # a Ctrl-C is for us; the workers end when we say so
                )
            )
        except OSError as exc:
            raise WorkerError(f"cannot start a worker process: {exc.strerror or exc}") from exc
