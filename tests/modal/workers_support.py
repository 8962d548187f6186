"""Worker Sandboxes on the double of Modal, against the offline model on the host's loopback."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import modal

import sandbox_image
from rlm.modal.registry import DictRegistry
from rlm.modal.sandboxes import list_running
from rlm.modal.workers import ModalWorkerLauncher, Pace, WorkerSandbox, connect, registry_scope
from rlm.offline.server import OfflineServer
from rlm.workers.pool import WorkerPool
from rlm.workers.retry import RetryPolicy
from tests.modal_double import ModalDouble
from tests.workers.support import FAST, until

FOLDER = Path(sandbox_image.__file__).parent
IMAGE = modal.Image.debian_slim(python_version="3.11").add_local_dir(
    FOLDER, "/root/sandbox_image", ignore=["**/__pycache__"]
)
UNHURRIED = Pace(a_second=100, at_most=100)


class OnModal:
    """An App, and what a run on it is put together from."""

    def __init__(self, double: ModalDouble, app: modal.App) -> None:
        self.double = double
        self.app = app
        self.app_id = str(app.app_id)
        self.store = modal.Dict.from_name(f"workers-{uuid.uuid4().hex[:8]}", create_if_missing=True)
        self.scope = registry_scope(self.app_id, "sk-test")

    def spec(self, server: OfflineServer, **options) -> WorkerSandbox:
        return WorkerSandbox(
            **{
                "app": self.app,
                "image": IMAGE,
                "secret": modal.Secret.from_dict({"OPENAI_API_KEY": "sk-test"}),
                "scope": self.scope,
                "base_url": server.base_url,
                **options,
            }
        )

    def launcher(self, server: OfflineServer, **options) -> ModalWorkerLauncher:
        return ModalWorkerLauncher(self.spec(server, **options), pace=UNHURRIED)

    def registry(self, size: int | None, **options) -> DictRegistry:
        return DictRegistry(self.store, scope=self.scope, size=size, **options)

    @asynccontextmanager
    async def pool(
        self, server: OfflineServer, size: int, *, policy: RetryPolicy = FAST, **options
    ) -> AsyncIterator[WorkerPool]:
        """The pool of one run."""
        launcher, registry = self.launcher(server, **options), self.registry(size)
        async with WorkerPool(launcher, registry, size=size, policy=policy, connect=connect) as pool:
            yield pool

    async def running(self) -> dict[str, modal.Sandbox]:
        return await list_running(self.app_id, {})

    def end(self) -> None:
        """Terminate what is left, so that no test sees another's."""

        async def main() -> None:
            for sandbox in (await self.running()).values():
                await sandbox.terminate.aio()

        asyncio.run(main())

    def alive(self) -> list[str]:
        """The ids of the running Sandboxes, as the double knows them."""
        return [info.sandbox_id for info in self.double.sandboxes() if info.app_id == self.app_id]


async def all_started(pool: WorkerPool) -> None:
    """Wait for the workers that were wanted and have come too late to answer anything."""
    await until(lambda: pool.stats().starting == 0)
