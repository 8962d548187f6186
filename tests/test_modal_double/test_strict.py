"""What Modal refuses, the double refuses: also what the client would not let through, so spoken over the wire here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import modal
import pytest
from grpclib import GRPCError, Status
from grpclib.client import Channel
from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as tr
from modal_proto.api_grpc import ModalClientStub
from modal_proto.task_command_router_grpc import TaskCommandRouterStub

from tests.modal_double import ModalDouble


@asynccontextmanager
async def channel(double: ModalDouble) -> AsyncIterator[Channel]:
    opened = Channel("127.0.0.1", int(double.url.rpartition(":")[2]))
    try:
        yield opened
    finally:
        opened.close()
        await asyncio.sleep(0)


def status_of(double: ModalDouble, call: Callable[[Channel], Awaitable[object]]) -> Status:
    async def run() -> Status:
        async with channel(double) as opened:
            try:
                await call(opened)
            except GRPCError as exc:
                return exc.status
        return Status.OK

    return asyncio.run(run())


def create(app: modal.App, **definition: object) -> Callable[[Channel], Awaitable[object]]:
    image_id = modal.Image.debian_slim().build(app).object_id
    request = api_pb2.SandboxCreateV2Request(
        app_id=app.app_id,
        definition=api_pb2.Sandbox(image_id=image_id, **definition),  # type: ignore[arg-type]
    )
    return lambda opened: ModalClientStub(opened).SandboxCreateV2(request)


BLOCKED = api_pb2.NetworkAccess(network_access_type=api_pb2.NetworkAccess.BLOCKED)


@pytest.mark.parametrize(
    "definition",
    [
        {"entrypoint_args": ["echo", "x" * 65_533]},
        {"network_access": BLOCKED, "open_ports": api_pb2.PortSpecs(ports=[api_pb2.PortSpec(port=80)])},
        {"network_access": BLOCKED, "inbound_cidr_allowlist": ["10.0.0.0/8"]},
        {"timeout_secs": 24 * 3600 + 1},
    ],
)
def test_a_sandbox_that_modal_refuses(box_app: modal.App, modal_double: ModalDouble, definition: dict) -> None:
    assert status_of(modal_double, create(box_app, **definition)) is Status.INVALID_ARGUMENT


def test_arguments_of_64_kib_are_still_taken(box_app: modal.App) -> None:
    sandbox = modal.Sandbox.create("sleep", "60", app=box_app)
    assert sandbox.exec("sh", "-c", "exit 0", "x" * 65_500).wait() == 0
    with pytest.raises(modal.exception.InvalidError):
        sandbox.exec("sh", "-c", "exit 0", "x" * 65_536)
    sandbox.terminate()


def test_a_second_writer_on_stdin_is_refused(box_app: modal.App, modal_double: ModalDouble) -> None:
    sandbox = modal.Sandbox.create("cat", app=box_app)
    sandbox.stdin.write("from the first\n")
    sandbox.stdin.drain()
    second = modal.Sandbox.from_id(sandbox.object_id)
    second.stdin.write("from another\n")
    with pytest.raises(ValueError, match="one writer"):
        second.stdin.drain()
    sandbox.stdin.write("again\n")
    sandbox.stdin.write_eof()
    sandbox.stdin.drain()
    assert sandbox.stdout.read() == "from the first\nagain\n"


def test_the_router_wants_its_token(box_app: modal.App, modal_double: ModalDouble) -> None:
    sandbox = modal.Sandbox.create("sleep", "60", app=box_app)
    task_id = sandbox._get_task_id()
    for authorization in ({}, {"authorization": "Bearer x"}):
        request = tr.TaskExecStartRequest(task_id=task_id, exec_id="e", command_args=["true"])
        status = status_of(
            modal_double,
            lambda opened, request=request, meta=authorization: TaskCommandRouterStub(opened).TaskExecStart(
                request, metadata=meta
            ),
        )
        assert status is Status.UNAUTHENTICATED
    sandbox.terminate()


def test_what_does_not_exist_is_not_found(modal_double: ModalDouble) -> None:
    for look in (
        lambda: modal.Function.from_name("no-app", "f").hydrate(),
        lambda: modal.App.lookup("no-app"),
        lambda: modal.Queue.from_name("no-queue").hydrate(),
        lambda: modal.Volume.from_name("no-volume").hydrate(),
        lambda: modal.Sandbox.from_id("sb-" + "x" * 26),
        lambda: modal.Sandbox.from_name("no-app", "no-name"),
    ):
        with pytest.raises(modal.exception.NotFoundError):
            look()
