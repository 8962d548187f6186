"""`ModalDouble`: the control plane in a thread of its own, and what a test can ask of it and do to it."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from modal._utils.function_utils import _process_result
from modal_proto import api_pb2 as pb

from .faults import Faults
from .server import ControlPlane
from .settings import Settings

T = TypeVar("T")


class RunFailed(Exception):
    """A Function run by the double did not succeed; the message is what the Function raised, as text."""


@dataclass(frozen=True)
class SandboxInfo:
    """A living Sandbox. `allowed` are the domains and CIDRs it may reach; None is without a list."""

    sandbox_id: str
    app_id: str
    name: str
    tags: Mapping[str, str]
    blocked: bool
    allowed: tuple[str, ...] | None
    stdout: bytes
    stderr: bytes


def _allowed(access: pb.NetworkAccess) -> tuple[str, ...] | None:
    listed = access.network_access_type == pb.NetworkAccess.ALLOWLIST
    return (*access.allowed_domains, *access.allowed_cidrs) if listed else None


@dataclass(frozen=True)
class ContainerInfo:
    """A living Function container and the inputs it is running."""

    task_id: str
    app_id: str
    function: str
    inputs: tuple[str, ...]


class ModalDouble:
    """A Modal control plane on loopback, from `with` or `async with`.

    Processes that get `env` talk to it; the client must see those variables before it is imported. It runs in a
    thread, so it serves synchronous tests, asynchronous ones and subprocesses alike, and all its methods may be
    called from any thread.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.faults = Faults()
        self._plane: ControlPlane | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # Life

    def start(self) -> None:
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(started,), name="modal-double", daemon=True)
        self._thread.start()
        started.result()

    def stop(self) -> None:
        """End everything the double started. Safe to call more than once."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    def _main(self, started: "Future[None]") -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            plane = ControlPlane(self.settings, self.faults)
            async with plane.running():
                self._plane = plane
                self.faults.bind(self._call, plane.sandboxes, plane.scheduler)
                started.set_result(None)
                await self._stop.wait()

        try:
            asyncio.run(run())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.shield(asyncio.to_thread(self.stop))

    # For clients

    @property
    def url(self) -> str:
        return self._now.url

    @property
    def env(self) -> dict[str, str]:
        """The variables that point a client at the double; `modal` on PATH is the one of this interpreter."""
        return {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}",
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-double",
            "MODAL_TOKEN_SECRET": "as-double",
            "MODAL_CONFIG_PATH": str(self._now.workspace.path / "no-config.toml"),
            "MODAL_ENVIRONMENT": "main",
        }

    def run(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command as a client and collect its output; its whole process group is killed on a timeout."""
        full = {**os.environ, **self.env, **(env or {})}
        popen = subprocess.Popen(
            command, env=full, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = popen.communicate(timeout=timeout_s)
        except BaseException:
            os.killpg(popen.pid, 9)
            popen.communicate()
            raise
        return subprocess.CompletedProcess(command, popen.returncode, out, err)

    def cli(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout_s: float = 60.0,
    ) -> "subprocess.CompletedProcess[str]":
        """`modal *args`, with the interpreter that runs the tests."""
        return self.run(sys.executable, "-m", "modal", *args, env=env, cwd=cwd, timeout_s=timeout_s)

    # What there is

    @property
    def rpc_counts(self) -> Counter[str]:
        """How often each RPC was called."""
        return Counter(self._now.dispatcher.counts)

    @property
    def unknown_rpcs(self) -> Counter[str]:
        """RPCs that were called and that the double does not know."""
        return Counter(self._now.dispatcher.unknown)

    def sandboxes(self) -> list[SandboxInfo]:
        """The Sandboxes that are alive."""

        def look(plane: ControlPlane) -> list[SandboxInfo]:
            return [
                SandboxInfo(
                    sandbox_id=s.sandbox_id,
                    app_id=s.app.app_id,
                    name=s.name,
                    tags=dict(s.tags),
                    blocked=s.definition.network_access.network_access_type == pb.NetworkAccess.BLOCKED,
                    allowed=_allowed(s.definition.network_access),
                    stdout=s.entrypoint.stdout.data if s.entrypoint else b"",
                    stderr=s.entrypoint.stderr.data if s.entrypoint else b"",
                )
                for s in plane.sandboxes.alive()
            ]

        return self._look(look)

    def containers(self, function: str | None = None) -> list[ContainerInfo]:
        """The Function containers that are alive, of one Function or of all."""

        def look(plane: ControlPlane) -> list[ContainerInfo]:
            return [
                ContainerInfo(c.task_id, c.app.app_id, c.function.name, tuple(c.running))
                for c in plane.scheduler.containers.values()
                if function in (None, c.function.name, c.function.function_id)
            ]

        return self._look(look)

    def logs(self, app: str) -> str:
        """What the containers of an App (by name or id) have written so far, in the order it came."""

        def look(plane: ControlPlane) -> str:
            found = [a for a in plane.apps.apps.values() if app in (a.app_id, a.name, a.description)]
            return "".join(line.text for a in found for line in a.log.lines)

        return self._look(look)

    def web_url(self, app: str, function: str) -> str:
        """The loopback address of a web Function of a living App."""
        return self._look(lambda plane: plane.functions.find(app, function).metadata.web_url)

    def set_secret(self, name: str, env: Mapping[str, str]) -> None:
        """Make or replace a Secret."""
        self._look(lambda plane: plane.secrets.put(name, env))

    # What can be done

    async def run_schedule(self, app: str, function: str) -> Any:
        """Run a Function of a living App once, as its schedule would; returns what it returned.

        Raises RunFailed.
        """
        return await asyncio.wrap_future(self._submit(self._run_now(app, function)))

    def run_schedule_sync(self, app: str, function: str) -> Any:
        """`run_schedule` for synchronous tests."""
        return self._submit(self._run_now(app, function)).result()

    async def _run_now(self, app: str, function: str) -> Any:
        output = await self._now.functions.run_now(app, function)
        if output.result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS:
            raise RunFailed(output.result.exception or f"status {output.result.status}")
        return await _process_result(output.result, output.data_format, None)

    # The thread

    @property
    def _now(self) -> ControlPlane:
        if self._plane is None or self._thread is None:
            raise RuntimeError("the double is not running")
        return self._plane

    def _submit(self, coro: Coroutine[Any, Any, T]) -> "Future[T]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coro, self._loop)

    def _call(self, coro: Coroutine[Any, Any, T]) -> T:
        return self._submit(coro).result()

    def _look(self, look: Callable[[ControlPlane], T]) -> T:
        plane = self._now

        async def run() -> T:
            return look(plane)

        return self._call(run())
