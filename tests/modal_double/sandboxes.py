"""Sandboxes as the control plane knows them: created, named, tagged, waited for, ended."""

import asyncio
import time
from collections.abc import Iterable

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from .apps import App, AppService
from .connect import ConnectProxy, Egress, Gate, connect_inside, loopback_ports
from .containers import Housing
from .faults import Faults
from .ids import jwt
from .jail import Jail, JailError, SpawnError, isolation
from .process import Process
from .sandbox import Sandbox, check_args, living, tag_protos, terminated
from .wire import Caller, conflict, invalid, log, not_found

KEPT_OUTPUT_BYTES = 1 << 20
_LONG_POLL_S = 50.0
_Result = pb.GenericResult


class SandboxService:
    """The Sandbox RPCs of the control plane, in their V2 form."""

    def __init__(self, apps: AppService, housing: Housing, proxy: ConnectProxy, faults: Faults) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.by_task: dict[str, Sandbox] = {}
        self.router_url = ""
        self._apps = apps
        self._housing = housing
        self._proxy = proxy
        self._faults = faults
        apps.on_stop.append(self._stop_app)

    def get(self, sandbox_id: str) -> Sandbox:
        if sandbox_id not in self.sandboxes:
            raise not_found(f"Sandbox {sandbox_id} does not exist")
        return self.sandboxes[sandbox_id]

    def alive(self) -> list[Sandbox]:
        return [s for s in self.sandboxes.values() if s.result is None]

    # Life

    async def SandboxCreateV2(self, request: pb.SandboxCreateV2Request, caller: Caller) -> pb.SandboxCreateV2Response:
        self._faults.admit_creation()
        app = self._apps.get(request.app_id)
        definition = request.definition
        if not app.alive:
            raise conflict(f"App {app.app_id} is stopped")
        self._check(app, definition)
        sandbox = Sandbox(
            app=app,
            definition=definition,
            env=self.environment(definition.image_id, request.secret_sources),
            tags={tag.tag_name: tag.tag_value for tag in request.tags},
            name=definition.name,
        )
        self.sandboxes[sandbox.sandbox_id] = sandbox
        self.by_task[sandbox.task_id] = sandbox
        sandbox.task = asyncio.get_running_loop().create_task(self._life(sandbox))
        return pb.SandboxCreateV2Response(
            sandbox_id=sandbox.sandbox_id, task_id=sandbox.task_id, metadata=self._metadata(sandbox)
        )

    def _check(self, app: App, definition: pb.Sandbox) -> None:
        if not isolation():
            raise conflict("Sandboxes need namespaces and overlays, which this machine does not allow")
        check_args(definition.entrypoint_args)
        blocked = definition.network_access.network_access_type == pb.NetworkAccess.BLOCKED
        if blocked and (definition.open_ports.ports or definition.inbound_cidr_allowlist):
            raise invalid("Cannot specify open ports when `block_network` is enabled")
        if definition.timeout_secs > 24 * 3600:
            raise invalid("a Sandbox lives for 24 hours at most")
        if definition.name and any(s.name == definition.name and s.app is app for s in self.alive()):
            raise GRPCError(Status.ALREADY_EXISTS, f"a Sandbox named '{definition.name}' is running in this App")
        for mount_id in definition.mount_ids:
            self._housing.mounts.tree(mount_id)

    def environment(self, image_id: str, sources: Iterable[pb.SecretSource]) -> dict[str, str]:
        """The Image's environment with Secrets and inline variables over it."""
        env = self._housing.env(self._housing.images.spec(image_id), ())
        for source in sources:
            which = source.WhichOneof("source")
            env.update(self._housing.secrets.env(source.secret_id) if which == "secret_id" else source.env.contents)
        return env

    async def _life(self, sandbox: Sandbox) -> None:
        """From scheduling to the result. Cancelled by `Sandbox.end`, and by nobody else."""
        result = _Result(status=_Result.GENERIC_STATUS_INTERNAL_FAILURE)
        try:
            await asyncio.sleep(self._faults.sandbox_start_s)
            await self._start(sandbox)
            assert sandbox.entrypoint is not None
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(self._clock(sandbox)), group.create_task(self._probe(sandbox))]
                code = await sandbox.entrypoint.wait()
                for task in others:
                    task.cancel()
            await sandbox.entrypoint.settle()
            code = code if code >= 0 else 128 - code
            status = _Result.GENERIC_STATUS_SUCCESS if code == 0 else _Result.GENERIC_STATUS_FAILURE
            result = _Result(status=status, exitcode=code)
        except asyncio.CancelledError:
            result = sandbox.ending or terminated("The double is closing")
        except (JailError, SpawnError) as exc:
            log.warning("Sandbox %s: %s", sandbox.sandbox_id, exc)
            result = _Result(status=_Result.GENERIC_STATUS_INIT_FAILURE, exitcode=128, exception=str(exc))
        finally:
            sandbox.result = sandbox.ending or result
            sandbox.over.set()
            await self._reap(sandbox)

    async def _start(self, sandbox: Sandbox) -> None:
        definition = sandbox.definition
        image = self._housing.images.spec(definition.image_id)
        binds = self._housing.volumes.mount(sandbox.task_id, definition.volume_mounts)
        plan = self._housing.plan(image, definition.mount_ids, binds, own_network=True)
        sandbox.jail = await Jail.start(plan, self._housing.workspace.fresh("jail"))
        sandbox.egress = Egress(sandbox.jail)
        await self.open_egress(sandbox, sandbox.env)
        access = definition.network_access
        if self._housing.settings.egress and access.network_access_type != pb.NetworkAccess.BLOCKED:
            listed = access.network_access_type == pb.NetworkAccess.ALLOWLIST
            sandbox.env |= await sandbox.egress.open_proxy(list(access.allowed_domains) if listed else None)
        argv = list(definition.entrypoint_args) or list(image.cmd)
        cwd = definition.workdir or image.workdir
        sandbox.entrypoint = await Process.start(
            sandbox.jail, [*image.entrypoint, *argv], sandbox.env, cwd, keep=KEPT_OUTPUT_BYTES
        )
        sandbox.last_active = time.monotonic()
        sandbox.scheduled.set()

    async def open_egress(self, sandbox: Sandbox, env: dict[str, str]) -> None:
        blocked = sandbox.definition.network_access.network_access_type == pb.NetworkAccess.BLOCKED
        if not blocked and sandbox.egress is not None:
            await sandbox.egress.allow(loopback_ports(env.values()))

    async def _clock(self, sandbox: Sandbox) -> None:
        """The whole life, and the time without anything to do."""
        definition = sandbox.definition
        dies_at = time.monotonic() + (definition.timeout_secs or 300)
        while True:
            now = time.monotonic()
            wake_at = dies_at
            if definition.idle_timeout_secs:
                if any(p.returncode is None for p in sandbox.execs.values()):
                    sandbox.last_active = now
                idle_at = sandbox.last_active + definition.idle_timeout_secs
                if now >= idle_at:
                    sandbox.end(_Result(status=_Result.GENERIC_STATUS_IDLE_TIMEOUT, exception="idle for too long"))
                wake_at = min(dies_at, idle_at)
            if now >= dies_at:
                sandbox.end(_Result(status=_Result.GENERIC_STATUS_TIMEOUT, exception="the Sandbox timed out"))
            await asyncio.sleep(max(0.01, wake_at - now))

    async def _probe(self, sandbox: Sandbox) -> None:
        probe = sandbox.definition.readiness_probe
        if probe.WhichOneof("probe_oneof") is None:
            return
        while not await self._is_ready(sandbox, probe):  # noqa: ASYNC110 - that is what a probe is
            await asyncio.sleep((probe.interval_ms or 100) / 1000)
        sandbox.ready_at = time.time()
        sandbox.ready.set()

    async def _is_ready(self, sandbox: Sandbox, probe: pb.Probe) -> bool:
        assert sandbox.jail is not None
        try:
            if probe.WhichOneof("probe_oneof") == "tcp_port":
                _, writer = await connect_inside(sandbox.jail, probe.tcp_port)
                writer.close()
                await writer.wait_closed()
                return True
            process = await Process.start(sandbox.jail, list(probe.exec_command.argv), sandbox.env, "/root")
            try:
                return await process.wait() == 0
            finally:
                await process.close()
        except (OSError, SpawnError, JailError):
            return False

    async def _reap(self, sandbox: Sandbox) -> None:
        if sandbox.egress is not None:
            await sandbox.egress.close()
        if sandbox.jail is not None:
            await sandbox.jail.close()
        for process in [*sandbox.execs.values(), *([sandbox.entrypoint] if sandbox.entrypoint else [])]:
            await process.close()
        self._housing.volumes.unmount(sandbox.task_id)

    async def _stop_app(self, app: App) -> None:
        mine = [s for s in self.alive() if s.app is app]
        for sandbox in mine:
            sandbox.end(terminated("The App was stopped"))
        await asyncio.gather(*(s.task for s in mine if s.task), return_exceptions=True)

    async def close(self) -> None:
        tasks = [s.task for s in self.sandboxes.values() if s.task is not None]
        for sandbox in self.alive():
            sandbox.end(terminated("The double is closing"))
        await asyncio.gather(*tasks, return_exceptions=True)

    # What clients ask

    def _metadata(self, sandbox: Sandbox) -> pb.SandboxHandleMetadata:
        return pb.SandboxHandleMetadata(result=sandbox.result, app_id=sandbox.app.app_id)

    async def SandboxWaitV2(self, request: pb.SandboxWaitRequest, caller: Caller) -> pb.SandboxWaitResponse:
        sandbox = self.get(request.sandbox_id)
        if sandbox.result is None and request.timeout > 0:
            try:
                async with asyncio.timeout(min(request.timeout, _LONG_POLL_S)):
                    await sandbox.over.wait()
            except TimeoutError:
                pass
        return pb.SandboxWaitResponse(result=sandbox.result, metadata=self._metadata(sandbox))

    async def SandboxTerminateV2(
        self, request: pb.SandboxTerminateRequest, caller: Caller
    ) -> pb.SandboxTerminateResponse:
        sandbox = self.get(request.sandbox_id)
        before = sandbox.result
        sandbox.end(terminated("terminated by the user"))
        return pb.SandboxTerminateResponse(existing_result=before)

    async def SandboxListV2(self, request: pb.SandboxListRequest, caller: Caller) -> pb.SandboxListResponse:
        wanted = {tag.tag_name: tag.tag_value for tag in request.tags}
        found = [
            s
            for s in self.sandboxes.values()
            if (request.include_finished or s.result is None)
            and request.app_id in ("", s.app.app_id)
            and (not request.before_timestamp or s.created_at < request.before_timestamp)
            and wanted.items() <= s.tags.items()
        ]
        found.sort(key=lambda s: -s.created_at)
        return pb.SandboxListResponse(sandboxes=[self._info(s) for s in found[:100]])

    def _info(self, s: Sandbox) -> pb.SandboxInfo:
        return pb.SandboxInfo(
            id=s.sandbox_id,
            created_at=s.created_at,
            task_info=pb.TaskInfo(id=s.task_id, started_at=s.created_at, result=s.result),
            app_id=s.app.app_id,
            tags=tag_protos(s),
            name=s.name,
            image_id=s.definition.image_id,
            timeout_secs=s.definition.timeout_secs,
            metadata=self._metadata(s),
        )

    async def SandboxGetFromNameV2(
        self, request: pb.SandboxGetFromNameRequest, caller: Caller
    ) -> pb.SandboxGetFromNameResponse:
        for s in reversed(self.sandboxes.values()):
            named = s.name == request.sandbox_name and request.app_name in (s.app.name, s.app.description)
            if named and (s.result is None or request.include_terminated):
                return pb.SandboxGetFromNameResponse(sandbox_id=s.sandbox_id, metadata=self._metadata(s))
        raise not_found(f"no Sandbox named '{request.sandbox_name}' is running in App '{request.app_name}'")

    async def SandboxGetFromName(self, request: pb.SandboxGetFromNameRequest, caller: Caller) -> None:
        """The client looks among V1 Sandboxes last; there are none here."""
        raise not_found(f"no Sandbox named '{request.sandbox_name}' is running in App '{request.app_name}'")

    async def SandboxGetTaskIdV2(
        self, request: pb.SandboxGetTaskIdRequest, caller: Caller
    ) -> pb.SandboxGetTaskIdResponse:
        sandbox = self.get(request.sandbox_id)
        if sandbox.result is not None:
            return pb.SandboxGetTaskIdResponse(task_result=sandbox.result)
        return pb.SandboxGetTaskIdResponse(task_id=sandbox.task_id)

    async def SandboxTagsGetV2(self, request: pb.SandboxTagsGetRequest, caller: Caller) -> pb.SandboxTagsGetResponse:
        return pb.SandboxTagsGetResponse(tags=tag_protos(self.get(request.sandbox_id)))

    async def SandboxTagsSetV2(self, request: pb.SandboxTagsSetRequest, caller: Caller) -> None:
        self.get(request.sandbox_id).tags = {tag.tag_name: tag.tag_value for tag in request.tags}

    async def SandboxGetTunnelsV2(
        self, request: pb.SandboxGetTunnelsRequest, caller: Caller
    ) -> pb.SandboxGetTunnelsResponse:
        sandbox = self.get(request.sandbox_id)
        if sandbox.tunnels is None:
            sandbox.tunnels = []
            for spec in sandbox.definition.open_ports.ports:
                port = await self._proxy.tunnel(lambda: living(sandbox), spec.port)
                plain = {"unencrypted_host": "127.0.0.1", "unencrypted_port": port} if spec.unencrypted else {}
                sandbox.tunnels.append(
                    pb.TunnelData(host="127.0.0.1", port=port, container_port=spec.port, **plain)  # type: ignore[arg-type]
                )
        result = _Result(status=_Result.GENERIC_STATUS_SUCCESS)
        return pb.SandboxGetTunnelsResponse(result=result, tunnels=sandbox.tunnels)

    async def SandboxCreateConnectTokenV2(
        self, request: pb.SandboxCreateConnectTokenRequest, caller: Caller
    ) -> pb.SandboxCreateConnectTokenResponse:
        sandbox = self.get(request.sandbox_id)
        if sandbox.result is not None:
            raise conflict(f"Sandbox {sandbox.sandbox_id} has already shut down")
        if sandbox.definition.network_access.network_access_type == pb.NetworkAccess.BLOCKED:
            raise invalid("connect tokens need a network, and `block_network` is enabled")
        if sandbox.gate is None:
            sandbox.gate = Gate(lambda: living(sandbox))
            await self._proxy.open(sandbox.gate)
        token = sandbox.gate.mint(request.port or 8080, request.user_metadata)
        return pb.SandboxCreateConnectTokenResponse(url=sandbox.gate.url, token=token)

    async def SandboxGetCommandRouterAccess(
        self, request: pb.SandboxGetCommandRouterAccessRequest, caller: Caller
    ) -> pb.SandboxGetCommandRouterAccessResponse:
        sandbox = self.by_task.get(request.task_id) if request.task_id else self.get(request.sandbox_id)
        if sandbox is None:
            raise not_found(f"task {request.task_id} does not exist")
        if sandbox.result is not None:
            raise conflict(f"Sandbox {sandbox.sandbox_id} has already shut down")
        token = jwt(sandbox.task_id)
        sandbox.router_tokens.add(token)
        return pb.SandboxGetCommandRouterAccessResponse(jwt=token, url=self.router_url)

    # Faults

    async def fault_kill_sandbox(self, sandbox_id: str, after_s: float) -> None:
        sandbox = self.get(sandbox_id)
        result = _Result(status=_Result.GENERIC_STATUS_TERMINATED, exitcode=137, exception="killed on purpose")

        def strike() -> None:
            if sandbox.jail is not None:
                sandbox.jail.kill()
            sandbox.end(result)

        asyncio.get_running_loop().call_later(after_s, strike)

    async def fault_expire_tokens(self, sandbox_id: str | None) -> int:
        chosen = [self.get(sandbox_id)] if sandbox_id else list(self.sandboxes.values())
        return sum(s.gate.expire() for s in chosen if s.gate is not None)
