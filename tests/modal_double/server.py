"""The control plane: all services together on free loopback ports, for as long as the context lasts."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from grpclib._typing import IServable
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase

from .apps import AppService
from .blobs import BlobService, MountService
from .build import Builder
from .connect import ConnectProxy
from .containers import Housing
from .faults import Faults
from .functions import FunctionService
from .images import ImageService
from .router import RouterService
from .sandboxes import SandboxService
from .scheduler import Scheduler
from .settings import Settings
from .state import Workspace
from .storage import DictService, QueueService, SecretService
from .volumes import VolumeService
from .web import WebFront
from .wire import Dispatcher

log = logging.getLogger("modal_double")

_WEB_ADDRESSES = 16


class ControlPlane:
    """The services, wired. `running` starts them and ends everything they started."""

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self.settings = settings
        self.url = ""
        self.workspace = Workspace()
        self.dispatcher = Dispatcher(faults)
        self.blobs = BlobService(self.workspace)
        self.mounts = MountService(self.workspace, self.blobs)
        builder = Builder(settings, self.workspace) if settings.build else None
        self.images = ImageService(self.workspace, self.mounts, builder)
        self.secrets = SecretService(settings.secrets)
        self.volumes = VolumeService(self.workspace, self.blobs, self.mounts)
        self.housing = Housing(settings, self.workspace, self.images, self.mounts, self.secrets, self.volumes)
        self.apps = AppService("http://127.0.0.1")
        self.scheduler = Scheduler(settings, self.apps, self.housing)
        self.functions = FunctionService(self.apps, self.scheduler, self.housing)
        self.connect = ConnectProxy()
        self.sandboxes = SandboxService(self.apps, self.housing, self.connect, faults)
        self.router = RouterService(self.sandboxes, self.housing)
        self.web = WebFront(self.functions, self.scheduler, self.blobs, settings.proxy_tokens, faults)
        self.dispatcher.register(
            self.apps,
            self.blobs,
            self.mounts,
            self.images,
            DictService(),
            QueueService(),
            self.secrets,
            self.volumes,
            self.functions,
            self.scheduler,
            self.sandboxes,
            self.router,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ControlPlane"]:
        """Serve until the context ends; then every process started here ends too, on every path."""
        async with AsyncExitStack() as stack:
            stack.callback(self.workspace.remove)
            stack.push_async_callback(self.images.close)
            await self._serve_http(stack)
            stack.push_async_callback(self.connect.close)
            await self._serve_grpc(stack)
            stack.push_async_callback(self.web.close)
            stack.push_async_callback(self.apps.close)
            stack.push_async_callback(self.sandboxes.close)
            stack.push_async_callback(self.scheduler.close)
            yield self

    async def _serve_http(self, stack: AsyncExitStack) -> None:
        data = web.Application(client_max_size=1 << 40)
        data.router.add_put("/blob/{blob_id}", self.blobs.http_put)
        data.router.add_get("/blob/{blob_id}", self.blobs.http_get)
        data.router.add_put("/block", self._put_block)
        [self.blobs.base_url] = await self._sites(stack, web.AppRunner(data, access_log=None), 1)
        front = web.Application(client_max_size=1 << 40)
        front.router.add_route("*", "/{path:.*}", self.web.handle)
        runner = web.AppRunner(front, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        self.functions.offer_urls(await self._sites(stack, runner, _WEB_ADDRESSES))

    async def _put_block(self, request: web.Request) -> web.Response:
        return web.Response(body=self.blobs.put(await request.read()).encode())

    async def _sites(self, stack: AsyncExitStack, runner: web.AppRunner, n: int) -> list[str]:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        for _ in range(n):
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        return [f"http://{host}:{port}" for host, port in runner.addresses]

    async def _serve_grpc(self, stack: AsyncExitStack) -> None:
        bases = (ModalClientBase, TaskCommandRouterBase)
        server = _Server([self.dispatcher.servable(base) for base in bases])
        await server.start("127.0.0.1", self.settings.port)
        assert isinstance(server._server, asyncio.Server)
        port = server._server.sockets[0].getsockname()[1]

        async def close() -> None:
            server.close()
            await server.hang_up()
            await server.wait_closed()

        stack.push_async_callback(close)
        self.url = f"http://127.0.0.1:{port}"
        self.housing.server_url = self.router.url = self.sandboxes.router_url = self.url
        log.info("control plane at %s", self.url)


class _Server(Server):
    """grpclib's server leaves open the connections of clients that are still there; this one does not."""

    def __init__(self, handlers: Collection[IServable]) -> None:
        super().__init__(handlers)
        self._protocols: weakref.WeakSet[H2Protocol] = weakref.WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._protocols.add(protocol)
        return protocol

    async def hang_up(self) -> None:
        for protocol in self._protocols:
            transport = getattr(getattr(protocol, "connection", None), "_transport", None)
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)  # the loop closes a transport in its next round
