"""Apps: their lives, their layouts, and the logs the CLI follows."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from .ids import jwt, new_id
from .images import BUILDER_VERSION
from .wire import Caller, not_found

log = logging.getLogger("modal_double")

_RUNNING = (
    pb.APP_STATE_EPHEMERAL,
    pb.APP_STATE_DETACHED,
    pb.APP_STATE_DEPLOYED,
    pb.APP_STATE_INITIALIZING,
)


@dataclass(frozen=True)
class LogLine:
    """Output of a container, as it came."""

    text: str
    fd: "pb.FileDescriptor.ValueType"
    task_id: str = ""
    function_id: str = ""
    sandbox_id: str = ""
    at: float = field(default_factory=time.time)


class AppLog:
    """The lines of one App; followers wait for more."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.done = False
        self._news = asyncio.Event()

    def add(self, line: LogLine) -> None:
        self.lines.append(line)
        self.tell()

    def finish(self) -> None:
        self.done = True
        self.tell()

    def tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, start: int, until: float) -> AsyncIterator[tuple[int, LogLine]]:
        """Yields `(number, line)` from `start` on, until the App is done or the time `until` has come."""
        while True:
            while start < len(self.lines):
                yield start, self.lines[start]
                start += 1
            left_s = until - time.monotonic()
            if self.done or left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                return


@dataclass
class App:
    app_id: str
    description: str
    state: "pb.AppState.ValueType"
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)
    stopped_at: float = 0.0
    version: int = 0
    log: AppLog = field(default_factory=AppLog)

    @property
    def alive(self) -> bool:
        return self.state in _RUNNING


class AppService:
    """App*, Environment*, AuthTokenGet, ClientHello.

    `on_publish` and `on_stop` are what the owners of containers and Sandboxes do about it.
    """

    def __init__(self, page_url: str) -> None:
        self.apps: dict[str, App] = {}
        self.on_publish: list[Callable[[App], Awaitable[None]]] = []
        self.on_stop: list[Callable[[App], Awaitable[None]]] = []
        self._page_url = page_url
        self._stopping: set[asyncio.Task[None]] = set()

    def get(self, app_id: str) -> App:
        if app_id not in self.apps:
            raise not_found(f"App {app_id} does not exist")
        return self.apps[app_id]

    def deployed(self, name: str) -> App | None:
        return next((a for a in self.apps.values() if a.name == name and a.state == pb.APP_STATE_DEPLOYED), None)

    def find(self, name: str) -> App:
        """A living App by its name, deployed or not; the last one. Raises NOT_FOUND."""
        found = [a for a in self.apps.values() if a.alive and name in (a.name, a.description, a.app_id)]
        if not found:
            raise not_found(f"no living App is called '{name}'")
        return found[-1]

    async def stop(self, app: App) -> None:
        """Stop everything the App runs; its log is done when that has ended."""
        if not app.alive:
            return
        app.state = pb.APP_STATE_STOPPED
        app.stopped_at = time.time()
        try:
            await asyncio.gather(*(hook(app) for hook in self.on_stop))
        finally:
            app.log.finish()

    def _stop_soon(self, app: App) -> None:
        task = asyncio.get_running_loop().create_task(self.stop(app))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._stopping, return_exceptions=True)

    def _add(self, description: str, state: "pb.AppState.ValueType") -> App:
        app = App(new_id("ap"), description, state)
        self.apps[app.app_id] = app
        return app

    def _page(self, app: App) -> str:
        return f"{self._page_url}/apps/{app.app_id}"

    async def ClientHello(self, request: object, caller: Caller) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse(image_builder_version=BUILDER_VERSION)

    async def AuthTokenGet(self, request: object, caller: Caller) -> pb.AuthTokenGetResponse:
        return pb.AuthTokenGetResponse(token=jwt("client"))

    async def EnvironmentGetOrCreate(
        self, request: pb.EnvironmentGetOrCreateRequest, caller: Caller
    ) -> pb.EnvironmentGetOrCreateResponse:
        if request.deployment_name not in ("", "main"):
            raise not_found(f"environment '{request.deployment_name}' does not exist; the double has only 'main'")
        settings = pb.EnvironmentSettings(image_builder_version=BUILDER_VERSION, webhook_suffix="")
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-main", metadata=pb.EnvironmentMetadata(name="main", settings=settings)
        )

    async def AppCreate(self, request: pb.AppCreateRequest, caller: Caller) -> pb.AppCreateResponse:
        app = self._add(request.description, request.app_state)
        app.tags = dict(request.tags)
        return pb.AppCreateResponse(
            app_id=app.app_id, app_page_url=self._page(app), app_logs_url=self._page(app) + "/logs"
        )

    async def AppGetOrCreate(self, request: pb.AppGetOrCreateRequest, caller: Caller) -> pb.AppGetOrCreateResponse:
        app = self.deployed(request.app_name)
        if app is None:
            if request.object_creation_type != pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise not_found(f"App '{request.app_name}' does not exist in the environment 'main'")
            app = self._add(request.app_name, pb.APP_STATE_DEPLOYED)
            app.name = request.app_name
        meta = pb.AppHandleMetadata(description=app.description, app_id=app.app_id, environment_name="main")
        return pb.AppGetOrCreateResponse(app_id=app.app_id, handle_metadata=meta)

    async def AppGetByDeploymentName(
        self, request: pb.AppGetByDeploymentNameRequest, caller: Caller
    ) -> pb.AppGetByDeploymentNameResponse:
        app = self.deployed(request.name)
        return pb.AppGetByDeploymentNameResponse(app_id=app.app_id if app else "", environment_name="main")

    async def AppPublish(self, request: pb.AppPublishRequest, caller: Caller) -> pb.AppPublishResponse:
        app = self.get(request.app_id)
        if request.app_state != pb.APP_STATE_UNSPECIFIED:
            app.state = request.app_state
        if request.name:
            app.name = request.name
        app.function_ids = dict(request.function_ids)
        app.class_ids = dict(request.class_ids)
        app.version += 1
        await asyncio.gather(*(hook(app) for hook in self.on_publish))
        return pb.AppPublishResponse(url=self._page(app), deployed_at=time.time())

    async def AppHeartbeat(self, request: pb.AppHeartbeatRequest, caller: Caller) -> None:
        self.get(request.app_id)

    async def AppClientDisconnect(self, request: pb.AppClientDisconnectRequest, caller: Caller) -> None:
        app = self.get(request.app_id)
        if app.state in (pb.APP_STATE_EPHEMERAL, pb.APP_STATE_INITIALIZING):
            self._stop_soon(app)

    async def AppStop(self, request: pb.AppStopRequest, caller: Caller) -> None:
        await self.stop(self.get(request.app_id))

    async def AppList(self, request: pb.AppListRequest, caller: Caller) -> pb.AppListResponse:
        items = [
            pb.AppListResponse.AppListItem(
                app_id=a.app_id,
                description=a.description,
                name=a.name,
                state=a.state,
                created_at=a.created_at,
                stopped_at=a.stopped_at,
            )
            for a in self.apps.values()
        ]
        return pb.AppListResponse(apps=items)

    async def AppGetLifecycle(self, request: pb.AppGetLifecycleRequest, caller: Caller) -> pb.AppGetLifecycleResponse:
        app = self.get(request.app_id)
        lifecycle = pb.AppLifecycle(app_state=app.state, created_at=app.created_at, version=app.version)
        return pb.AppGetLifecycleResponse(lifecycle=lifecycle)

    async def AppGetLogs(self, request: pb.AppGetLogsRequest, caller: Caller) -> AsyncIterator[pb.TaskLogsBatch]:
        app = self.get(request.app_id)
        start = int(request.last_entry_id or -1) + 1
        async for number, line in app.log.follow(start, time.monotonic() + request.timeout):
            if _wanted(line, request):
                yield _batch(line, number)
        if app.log.done:
            yield pb.TaskLogsBatch(app_done=True)

    async def AppFetchLogs(self, request: pb.AppFetchLogsRequest, caller: Caller) -> pb.AppFetchLogsResponse:
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        lines = self.get(request.app_id).log.lines
        found = [
            (number, line)
            for number, line in enumerate(lines)
            if since <= line.at <= until and _wanted(line, request) and request.search_text in line.text
        ]
        last = found[-(request.limit or len(found)) :] if found else []
        return pb.AppFetchLogsResponse(batches=[_batch(line, number) for number, line in last])


def _wanted(line: LogLine, request: pb.AppGetLogsRequest | pb.AppFetchLogsRequest) -> bool:
    names = ("task_id", "function_id", "sandbox_id")
    return all(getattr(request, name) in ("", getattr(line, name)) for name in names)


def _batch(line: LogLine, number: int) -> pb.TaskLogsBatch:
    item = pb.TaskLogs(data=line.text, file_descriptor=line.fd, timestamp=line.at, timestamp_ns=int(line.at * 1e9))
    return pb.TaskLogsBatch(items=[item], entry_id=str(number), task_id=line.task_id, function_id=line.function_id)
