"""The command router: what is done inside a Sandbox, by exec and by stdio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpclib import GRPCError, Status
from grpclib.server import Stream
from modal_proto import task_command_router_pb2 as tr

from .containers import Housing
from .jail import JailError, SpawnError
from .process import ByteLog, Process
from .sandbox import Sandbox, check_args, kill
from .sandboxes import SandboxService
from .wire import Caller, conflict, invalid, not_found


class RouterService:
    """SandboxStdio*, SandboxWaitUntilReady, TaskExec*: all but the last ask for the Sandbox to be alive."""

    def __init__(self, sandboxes: SandboxService, housing: Housing) -> None:
        self.url = ""
        self._sandboxes = sandboxes
        self._housing = housing
        self._limits: set[asyncio.Task[None]] = set()

    def _sandbox(self, task_id: str, caller: Caller) -> Sandbox:
        sandbox = self._sandboxes.by_task.get(task_id)
        if sandbox is None:
            raise not_found(f"task {task_id} does not exist")
        if caller.authorization.removeprefix("Bearer ") not in sandbox.router_tokens:
            raise GRPCError(Status.UNAUTHENTICATED, "the token is not good for this task")
        return sandbox

    def _exec(self, request: Any, caller: Caller) -> Process:
        sandbox = self._sandbox(request.task_id, caller)
        if request.exec_id not in sandbox.execs:
            raise not_found(f"exec {request.exec_id} does not exist")
        return sandbox.execs[request.exec_id]

    # The entrypoint

    async def SandboxStdioReadV2(
        self, request: tr.SandboxStdioReadV2Request, caller: Caller
    ) -> AsyncIterator[tr.SandboxStdioReadV2Response]:
        sandbox = self._sandbox(request.task_id, caller)
        if sandbox.entrypoint is None:
            await sandbox.running()
        assert sandbox.entrypoint is not None
        stderr = request.file_descriptor == tr.SANDBOX_STDIO_FILE_DESCRIPTOR_STDERR
        stream = sandbox.entrypoint.stderr if stderr else sandbox.entrypoint.stdout
        async for offset, data in stream.read(request.offset):
            yield tr.SandboxStdioReadV2Response(data=data, starting_offset=offset)

    async def SandboxStdinWriteV2(self, request: tr.SandboxStdinWriteV2Request, caller: Caller) -> None:
        sandbox = self._sandbox(request.task_id, caller)
        await sandbox.running()
        assert sandbox.entrypoint is not None
        await sandbox.entrypoint.write(request.offset, request.data, eof=request.eof)

    async def SandboxWaitUntilReady(
        self, request: tr.SandboxWaitUntilReadyTcrRequest, caller: Caller
    ) -> tr.SandboxWaitUntilReadyTcrResponse:
        sandbox = self._sandbox(request.task_id, caller)
        if sandbox.definition.readiness_probe.WhichOneof("probe_oneof") is None:
            raise invalid("the Sandbox has no readiness probe")
        waiters = [asyncio.ensure_future(event.wait()) for event in (sandbox.ready, sandbox.over)]
        try:
            timeout_s = request.timeout or None
            done, _ = await asyncio.wait(waiters, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
        if not done:
            raise GRPCError(Status.DEADLINE_EXCEEDED, f"the Sandbox was not ready after {request.timeout:g} s")
        if sandbox.over.is_set():
            raise conflict(f"Sandbox {sandbox.sandbox_id} has already shut down")
        return tr.SandboxWaitUntilReadyTcrResponse(ready_at=sandbox.ready_at)

    async def TaskReloadVolumes(
        self, request: tr.TaskReloadVolumesRequest, caller: Caller
    ) -> tr.TaskReloadVolumesResponse:
        self._sandbox(request.task_id, caller)
        self._housing.volumes.reload_all(request.task_id)
        return tr.TaskReloadVolumesResponse()

    # Exec

    async def TaskExecStart(self, request: tr.TaskExecStartRequest, caller: Caller) -> None:
        sandbox = self._sandbox(request.task_id, caller)
        if request.exec_id in sandbox.execs:
            return  # the id is the key of idempotency: this is a retry
        if request.HasField("pty_info"):
            raise GRPCError(Status.UNIMPLEMENTED, "the double has no pty")
        check_args(request.command_args)
        jail = await sandbox.running()
        env = sandbox.env | self._extra_env(request)
        await self._sandboxes.open_egress(sandbox, env)
        definition = sandbox.definition
        cwd = request.workdir or definition.workdir or self._housing.images.spec(definition.image_id).workdir
        try:
            process = await Process.start(jail, list(request.command_args), env, cwd)
        except SpawnError as exc:
            raise invalid(f"failed to start the command: {exc}") from exc
        except JailError as exc:
            raise not_found(f"Sandbox {sandbox.sandbox_id} has already shut down") from exc
        sandbox.execs[request.exec_id] = process
        if request.timeout_secs:
            task = asyncio.get_running_loop().create_task(_limit(process, request.timeout_secs + AFTER_THE_CLIENT_S))
            self._limits.add(task)
            task.add_done_callback(self._limits.discard)

    def _extra_env(self, request: tr.TaskExecStartRequest) -> dict[str, str]:
        env: dict[str, str] = {}
        for source in request.secret_sources:
            which = source.WhichOneof("source")
            env.update(self._housing.secrets.env(source.secret_id) if which == "secret_id" else source.env.contents)
        return env

    async def TaskExecStdioRead(
        self, request: tr.TaskExecStdioReadRequest, caller: Caller
    ) -> AsyncIterator[tr.TaskExecStdioReadResponse]:
        process = self._exec(request, caller)
        stderr = request.file_descriptor == tr.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDERR
        stream: ByteLog = process.stderr if stderr else process.stdout
        async for _, data in stream.read(request.offset):
            yield tr.TaskExecStdioReadResponse(data=data)
        if process.returncode is None:  # its container may just have gone: let that be noticed
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.2)
        _still_there(process)

    async def TaskExecStdinWrite(self, request: tr.TaskExecStdinWriteRequest, caller: Caller) -> None:
        await self._exec(request, caller).write(request.offset, request.data, eof=request.eof)

    async def TaskExecStdinStatus(
        self, request: tr.TaskExecStdinStatusRequest, caller: Caller
    ) -> tr.TaskExecStdinStatusResponse:
        process = self._exec(request, caller)
        return tr.TaskExecStdinStatusResponse(num_bytes_written=process.stdin_offset, closed=process.stdin_closed)

    async def TaskExecStdinWriteStream(self, stream: Stream[Any, Any], caller: Caller) -> None:
        first = await stream.recv_message()
        if first is None or first.WhichOneof("payload") != "start":
            raise invalid("the stream does not begin with a start")
        process = self._exec(first.start, caller)
        offset = first.start.offset
        while (message := await stream.recv_message()) is not None:
            if message.WhichOneof("payload") == "end":
                await process.write(offset, b"", eof=True)
                return
            await process.write(offset, message.data, eof=False)
            offset += len(message.data)

    async def TaskExecWait(self, request: tr.TaskExecWaitRequest, caller: Caller) -> tr.TaskExecWaitResponse:
        process = self._exec(request, caller)
        status = await process.wait()
        _still_there(process)
        return tr.TaskExecWaitResponse(**_exit(status))

    async def TaskExecPoll(self, request: tr.TaskExecPollRequest, caller: Caller) -> tr.TaskExecPollResponse:
        process = self._exec(request, caller)
        if process.returncode is None:
            return tr.TaskExecPollResponse()
        _still_there(process)
        return tr.TaskExecPollResponse(**_exit(process.returncode))


def _still_there(process: Process) -> None:
    """A process that ended with its container has no exit status."""
    if process.lost:
        raise not_found("the Sandbox has already shut down")


def _exit(status: int) -> dict[str, int]:
    return {"code": status} if status >= 0 else {"signal": -status}


AFTER_THE_CLIENT_S = 0.5  # it is the client's own deadline, which began later, that makes wait() give -1


async def _limit(process: Process, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        kill(process)
