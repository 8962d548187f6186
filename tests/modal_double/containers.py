"""Function containers: the client's own entrypoint as a process, fed with inputs and asked to leave."""

import asyncio
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as pb

from .apps import App, LogLine
from .blobs import MountService
from .build import client_layer
from .calls import Input
from .ids import new_id
from .images import ImageService, ImageSpec
from .jail import Bind, Jail, JailError, JailPlan, SpawnError, isolation
from .process import ByteLog, Process
from .settings import Settings
from .state import Workspace
from .storage import SecretService
from .volumes import VolumeService
from .wire import TASK_HEADER, log

if TYPE_CHECKING:
    from .functions import FunctionState

_FS_TOOLS = "/__modal/.bin/modal-sandbox-fs-tools"


class Housing:
    """What every container and Sandbox is made of: layers, environment, interpreter."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        images: ImageService,
        mounts: MountService,
        secrets: SecretService,
        volumes: VolumeService,
    ) -> None:
        self.settings = settings
        self.workspace = workspace
        self.images = images
        self.mounts = mounts
        self.secrets = secrets
        self.volumes = volumes
        self.server_url = ""
        self._tools = self._tools_layer()

    def _tools_layer(self) -> Path:
        """Where the client expects its file system tool: ours, under the host's own interpreter."""
        layer = self.workspace.directory("tools")
        tool = layer / _FS_TOOLS.lstrip("/")
        tool.parent.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("fs_tools.py").read_text()
        (tool.parent / "fs_tools.py").write_text(script)
        python = os.path.realpath(self.settings.python)
        tool.write_text(f'#!/bin/sh\nexec {python} -IS {Path(_FS_TOOLS).parent}/fs_tools.py "$@"\n')
        tool.chmod(0o755)
        return layer

    def python(self, image: ImageSpec) -> Path:
        return image.python or Path(self.settings.python)

    def plan(
        self,
        image: ImageSpec,
        mount_ids: Iterable[str],
        binds: Iterable[Bind] = (),
        *,
        for_function: bool = False,
        own_network: bool = False,
    ) -> JailPlan:
        trees = [tree for mount_id in mount_ids if (tree := self.mounts.tree(mount_id)) is not None]
        layers = [*reversed(trees), *image.layers, self._tools]
        if for_function and image.python is not None:
            layers.append(client_layer(self.workspace))
        return JailPlan(
            layers=layers,
            binds=list(binds),
            masked=[path for path in self.settings.masked if path != "/"],
            shown=self._shown(image),
            own_network=own_network,
        )

    def _shown(self, image: ImageSpec) -> list[str]:
        """The host's interpreters, where a mask or another file system would hide them."""
        roots = {_prefix(Path(self.settings.python)), _prefix(Path(os.path.realpath(self.settings.python)))}
        if image.python is not None:
            roots.add(_prefix(image.python))
        device = os.stat("/").st_dev
        hidden = [str(r) for r in roots if os.stat(r).st_dev != device or self._is_masked(r)]
        return sorted(hidden)

    def _is_masked(self, path: Path) -> bool:
        return any(path.is_relative_to(mask) for mask in self.settings.masked)

    def env(self, image: ImageSpec, secrets: Iterable[str]) -> dict[str, str]:
        """PATH and the like, then the Image's ENV, then the Secrets."""
        env = {
            "PATH": f"{self.python(image).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MODAL_ENVIRONMENT": "main",
            "MODAL_IMAGE_ID": image.image_id,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_REGION": "double",
        }
        env.update(image.env)
        for secret_id in secrets:
            env.update(self.secrets.env(secret_id))
        return env


def _prefix(python: Path) -> Path:
    return python.parent.parent


class Container:
    """One Function container.

    It begins with `start`, asks for inputs, and is over when `ended` is set: by itself after `drain`, or by force
    after `stop` or `kill`. What was running in it then is for its Function to care about.
    """

    def __init__(self, function: "FunctionState", app: App, housing: Housing) -> None:
        self.function = function
        self.definition = function.definition
        self.app = app
        self.task_id = new_id("ta")
        self.enqueued_at = time.time()
        self.started = False
        self.draining = False
        self.preempted = False
        self.running: dict[str, Input] = {}
        self.waiting = 0
        self.to_cancel: deque[str] = deque()
        self.failure: pb.GenericResult | None = None
        self.last_active = time.monotonic()
        self.ended = asyncio.Event()
        self.news = asyncio.Event()
        self._housing = housing
        self._jail: Jail | None = None
        self._process: Process | None = None
        self._killed = False

    def wake(self) -> None:
        """Let the waiting long polls look again."""
        self.news.set()
        self.news = asyncio.Event()

    async def run(self, on_end: Callable[["Container"], None]) -> None:
        """From the start to the end of the process; never raises for what the container did."""
        volumes = self._housing.volumes
        try:
            await self._live()
        except (JailError, SpawnError) as exc:
            self._say(f"The container could not be started: {exc}\n")
        finally:
            volumes.unmount(self.task_id)
            if self._process is not None:
                await self._process.close()
            if self._jail is not None:
                await self._jail.close()
            self.ended.set()
            self.wake()
            on_end(self)

    async def _live(self) -> None:
        housing, definition = self._housing, self.definition
        assert definition is not None
        image = housing.images.spec(definition.image_id)
        room = housing.workspace.fresh("task")
        room.mkdir()
        (room / "arguments").write_bytes(self._arguments().SerializeToString())
        volume_binds = housing.volumes.mount(self.task_id, definition.volume_mounts)
        inside = "/__modal/task"
        plan = housing.plan(
            image, definition.mount_ids, [Bind(room, inside, read_only=True), *volume_binds], for_function=True
        )
        home = Path("/root")
        if not isolation():
            home = _plain_home(room, plan)
            inside, plan = str(room), JailPlan()
        env = housing.env(image, definition.secret_ids)
        env |= {
            "MODAL_SERVER_URL": housing.server_url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self.task_id,
            "MODAL_FUNCTION_NAME": definition.function_name,
            "MODAL_CONTAINER_ARGUMENTS_PATH": f"{inside}/arguments",
            "MODAL_OVERRIDE_HEADERS": f"{TASK_HEADER}:{self.task_id}",
            "PYTHONPATH": f"{home}:/pkg" if "PYTHONPATH" not in env else f"{home}:/pkg:{env['PYTHONPATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self._jail = await Jail.start(plan, housing.workspace.fresh("jail"))
        if self._killed:
            return
        cwd = image.workdir if isolation() else str(home)
        argv = [str(housing.python(image)), "-m", "modal._container_entrypoint"]
        self._process = process = await Process.start(self._jail, argv, env, cwd, keep=1 << 20)
        process.close_stdin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relay(process.stdout, pb.FILE_DESCRIPTOR_STDOUT))
            group.create_task(self._relay(process.stderr, pb.FILE_DESCRIPTOR_STDERR))
            await process.wait()
            await process.settle()

    def _arguments(self) -> pb.ContainerArguments:
        return pb.ContainerArguments(
            task_id=self.task_id,
            function_id=self.function.function_id,
            app_id=self.app.app_id,
            function_def=self.definition,
            serialized_params=self.function.serialized_params,
            environment_name="main",
            app_layout=self.function.layout(),
        )

    async def _relay(self, stream: ByteLog, fd: "pb.FileDescriptor.ValueType") -> None:
        async for _, data in stream.read(0):
            self._say(data.decode(errors="replace"), fd)

    def _say(self, text: str, fd: "pb.FileDescriptor.ValueType" = pb.FILE_DESCRIPTOR_STDERR) -> None:
        self.app.log.add(LogLine(text, fd, task_id=self.task_id, function_id=self.function.function_id))

    def drain(self) -> None:
        """Take no more inputs and leave when those at hand are done."""
        self.draining = True
        self.wake()

    async def stop(self, grace_s: float) -> None:
        """Leave now: an idle container through its exit handlers, a busy one by SIGINT, both killed after the grace."""
        self.drain()
        if self.running or not self.started:
            self.interrupt()
        try:
            async with asyncio.timeout(grace_s):
                await self.ended.wait()
        except TimeoutError:
            self.kill()
            await self.ended.wait()

    def interrupt(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGINT)

    def kill(self) -> None:
        """As if the machine were gone."""
        self._killed = True
        if self._jail is not None:
            self._jail.kill()


def _plain_home(room: Path, plan: JailPlan) -> Path:
    """Without namespaces: the files of `/root` in a directory of the container's own, which becomes its cwd."""
    home = room / "root"
    home.mkdir()
    for layer in reversed(plan.layers):
        if (layer / "root").is_dir():
            shutil.copytree(layer / "root", home, dirs_exist_ok=True)
    log.debug("no namespaces here: /root of the container is %s", home)
    return home
