"""Workers as Modal Sandboxes, and the registry that keeps them warm in a modal.Dict."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import modal

from rlm.config import REQUEST_TIMEOUT_S
from rlm.errors import WorkerError
from rlm.modal.sandboxes import MODAL_FAILED, create, terminate, terminate_after, words_of
from rlm.workers.base import WorkerEntry
from rlm.workers.client import HttpWorkerClient
from rlm.workers.shield import uninterrupted
from sandbox_image import worker_path

MINUTES = 60
HOURS = 60 * MINUTES
ROLE = "worker"
SCOPE_TAG = "scope"
OPENAI_URL = "https://api.openai.com/v1"
PORT = 8080
COMMAND = (
    *("python", "-m", "sandbox_image.worker", "--host", "0.0.0.0", "--port", str(PORT)),  # noqa: S104
    "--behind-connect-token",
)
FOLDER = "/root"  # holds sandbox_image
CPU = (0.5, 2.0)  # asked for, and the most it may take
MEMORY_MIB = (512, 2_048)
READY_TIMEOUT_S = 3 * MINUTES
PATIENCE_S = 30.0
LONGEST_START_S = READY_TIMEOUT_S + 2 * MINUTES  # with waiting for its turn, and for the account's limits
STDERR_TIMEOUT_S = 3.0
STDERR_KEPT_CHARS = 4_000
STDERR_LINE_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSandbox:
    """What every worker Sandbox is made of.

    `image` holds the folder `sandbox_image` at /root, and its requirements. `secret` holds OPENAI_API_KEY.
    `base_url` is the provider's: workers reach it and nothing else. `scope` names those who share workers, as
    `registry_scope` does. `env` is for the RLM_WORKER_* settings.
    """

    app: modal.App
    image: modal.Image
    secret: modal.Secret
    scope: str
    base_url: str = OPENAI_URL
    env: Mapping[str, str] = field(default_factory=dict)
    life_s: int = 6 * HOURS
    idle_s: int = 20 * MINUTES

    @property
    def tags(self) -> dict[str, str]:
        """The tag that tells the Sandboxes of this scope from others."""
        return {SCOPE_TAG: self.scope}


def registry_scope(app_id: str, *settings: str) -> str:
    """A name for workers that can stand in for one another: same app, same code, same settings.

    Give as `settings` whatever a worker is started with, the key too: only a hash of it is kept. After a deployment
    that changes any of it, or a change of key, no run finds the workers of before.
    """
    revision = hashlib.sha256()
    for path in sorted(worker_path().parent.glob("*.*")):
        revision.update(path.read_bytes())
    for setting in settings:
        revision.update(b"\0" + setting.encode())
    return f"{app_id}.{revision.hexdigest()[:12]}"


def egress(base_url: str) -> dict[str, list[str]]:
    """The options of a Sandbox that lets it reach the provider alone.

    Modal knows domains by the name in a TLS handshake on port 443, and addresses by CIDR; a provider's own loopback
    is an address, too. A name without TLS, or on another port, can be given in neither way: then there is no limit.
    """
    url = urlsplit(base_url)
    host = url.hostname or ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        return {"outbound_cidr_allowlist": [f"{address}/{address.max_prefixlen}"]}
    if url.scheme == "https" and url.port in (None, 443):
        return {"outbound_domain_allowlist": [host]}
    return {}


class Pace:
    """Lets so many starts begin a second, and so many be under way."""

    def __init__(self, *, a_second: float = 4, at_most: int = 8) -> None:
        self._every_s = 1 / a_second
        self._next = 0.0
        self._under_way = asyncio.Semaphore(at_most)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn; hold it for as long as the start takes."""
        async with self._under_way:
            now = time.monotonic()
            self._next = max(now, self._next + self._every_s)
            await asyncio.sleep(self._next - now)
            yield


class ModalWorkerLauncher:
    """A `WorkerLauncher` whose workers are Sandboxes, reached over HTTPS with a connect token."""

    def __init__(
        self,
        spec: WorkerSandbox,
        *,
        pace: Pace | None = None,
        ready_timeout_s: int = READY_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._spec = spec
        self._pace = pace or Pace()
        self._ready_timeout_s = ready_timeout_s
        self._patience_s = patience_s

    async def start(self) -> WorkerEntry:
        """Start one worker and wait until it answers. Raises: WorkerError."""
        async with self._pace.turn():
            created = time.time()
            with as_worker_error("Modal creates no Sandbox for a worker"):
                sandbox = await self._create()
            try:
                async with asyncio.timeout(self._ready_timeout_s):  # the client bounds only a part of the waiting
                    await sandbox.wait_until_ready.aio(timeout=self._ready_timeout_s)
                    credentials = await sandbox.create_connect_token.aio(port=PORT)
            except BaseException as exc:
                if isinstance(exc, MODAL_FAILED):
                    why = await _last_line_of_stderr(sandbox) or words_of(exc)
                    await terminate_after(exc, sandbox)
                    raise WorkerError(f"a worker Sandbox did not start: {why}") from exc
                await terminate_after(exc, sandbox)
                raise
        return WorkerEntry(
            id=sandbox.object_id,
            url=credentials.url,
            token=credentials.token,
            created=created,
            expires=created + self._spec.life_s,
        )

    async def stop(self, entry: WorkerEntry) -> None:
        """End the worker. Does nothing when it has ended already. Raises: WorkerError."""
        with as_worker_error(f"worker {entry.id} cannot be ended, and ends by itself"):
            await uninterrupted(_terminate_by_id(entry.id))

    async def _create(self) -> modal.Sandbox:
        spec = self._spec
        return await create(
            *COMMAND,
            role=ROLE,
            tags=spec.tags,
            patience_s=self._patience_s,
            app=spec.app,
            image=spec.image,
            secrets=[spec.secret],
            env={**spec.env, "OPENAI_BASE_URL": spec.base_url},
            workdir=FOLDER,
            readiness_probe=modal.Probe.with_tcp(PORT),
            timeout=spec.life_s,
            idle_timeout=spec.idle_s,
            cpu=CPU,
            memory=MEMORY_MIB,
            **egress(spec.base_url),
        )


def connect(entry: WorkerEntry, *, timeout_s: float = REQUEST_TIMEOUT_S) -> HttpWorkerClient:
    """What a `WorkerPool` takes for `connect`: a client that gets itself another connect token when one expires."""
    return HttpWorkerClient(entry, timeout_s=timeout_s, renew=renewed_token)


async def renewed_token(entry: WorkerEntry) -> str:
    """Another connect token for a worker that refuses the one it has. Raises: WorkerError."""
    with as_worker_error(f"worker {entry.id} gives no connect token"):
        sandbox = await modal.Sandbox.from_id.aio(entry.id)
        return (await sandbox.create_connect_token.aio(port=PORT)).token


async def _terminate_by_id(sandbox_id: str) -> None:
    with contextlib.suppress(modal.exception.NotFoundError):
        await terminate(await modal.Sandbox.from_id.aio(sandbox_id))


async def _last_line_of_stderr(sandbox: modal.Sandbox) -> str:
    """What a worker that did not start printed last, if it can still be had."""
    kept = ""
    with contextlib.suppress(*MODAL_FAILED):
        async with asyncio.timeout(STDERR_TIMEOUT_S):
            if await sandbox.poll.aio() is not None:
                async for chunk in sandbox.stderr:
                    kept = (kept + chunk)[-STDERR_KEPT_CHARS:]
    return kept.strip().rpartition("\n")[2][:STDERR_LINE_CHARS]


@contextlib.contextmanager
def as_worker_error(what: str) -> Iterator[None]:
    """A failure of Modal is, for the pool, a worker that cannot be had: it tries again."""
    try:
        yield
    except MODAL_FAILED as exc:
        raise WorkerError(f"{what}: {words_of(exc)}") from exc
