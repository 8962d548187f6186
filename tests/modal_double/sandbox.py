"""One Sandbox: what it was created as, what it has become, and what its RPCs need of it."""

import asyncio
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from .apps import App
from .connect import Egress, Gate
from .ids import new_sandbox_id, new_sandbox_task_id
from .jail import Jail
from .process import Process
from .wire import invalid, not_found

ARG_BYTES = 1 << 16


@dataclass(eq=False)
class Sandbox:
    """One Sandbox. It lives in its `task`; `over` holds the result when that has ended."""

    app: App
    definition: pb.Sandbox
    env: dict[str, str]
    tags: dict[str, str]
    sandbox_id: str = field(default_factory=new_sandbox_id)
    task_id: str = field(default_factory=new_sandbox_task_id)
    router_tokens: set[str] = field(default_factory=set)
    name: str = ""
    created_at: float = field(default_factory=time.time)
    ready_at: float = 0.0
    jail: Jail | None = None
    entrypoint: Process | None = None
    egress: Egress | None = None
    gate: Gate | None = None
    execs: dict[str, Process] = field(default_factory=dict)
    result: pb.GenericResult | None = None
    tunnels: list[pb.TunnelData] | None = None
    scheduled: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    last_active: float = field(default_factory=time.monotonic)
    ending: pb.GenericResult | None = None
    task: "asyncio.Task[None] | None" = None

    def end(self, result: pb.GenericResult) -> None:
        """Decide how it ends; the first to say so wins. The entrypoint is then killed by its task."""
        if self.ending is None and self.result is None:
            self.ending = result
            if self.task is not None:
                self.task.cancel()

    async def running(self) -> Jail:
        """The jail, once the Sandbox is scheduled. Raises NOT_FOUND when it has ended."""
        while not self.scheduled.is_set() and not self.over.is_set():
            waiters = [asyncio.ensure_future(event.wait()) for event in (self.scheduled, self.over)]
            try:
                await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiter in waiters:
                    waiter.cancel()
        if self.over.is_set() or self.jail is None:
            raise not_found(f"Sandbox {self.sandbox_id} has already shut down")
        self.last_active = time.monotonic()
        return self.jail


def check_args(args: Iterable[str]) -> None:
    size = sum(len(arg.encode()) for arg in args)
    if size > ARG_BYTES:
        raise invalid(f"the arguments have {size} bytes; at most {ARG_BYTES} are allowed")


def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)


def terminated(why: str) -> pb.GenericResult:
    return pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_TERMINATED, exitcode=137, exception=why)


def living(sandbox: Sandbox) -> Jail | None:
    if sandbox.result is None:
        sandbox.last_active = time.monotonic()
        return sandbox.jail
    return None


def tag_protos(sandbox: Sandbox) -> list[pb.SandboxTag]:
    return [pb.SandboxTag(tag_name=name, tag_value=value) for name, value in sandbox.tags.items()]
