"""Images: what their commands say that a container can be given without building anything, and, on request, pip.

ENV, WORKDIR, CMD, ENTRYPOINT and COPY are honoured. RUN is not, except for pip layers when the double builds.
"""

import asyncio
import hashlib
import json
import logging
import platform
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from modal_proto import api_pb2 as pb

from .blobs import MountService
from .build import Builder, BuildError, is_pip
from .process import ByteLog
from .state import Workspace
from .wire import Caller, not_found

log = logging.getLogger("modal_double")

BUILDER_VERSION = "2025.06"


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What an Image means to a container. `layers` are directories, the first on top."""

    image_id: str = ""
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/root"
    cmd: tuple[str, ...] = ("sleep", "172800")
    entrypoint: tuple[str, ...] = ()
    layers: tuple[Path, ...] = ()
    pip: tuple[str, ...] = ()
    python: Path | None = None


@dataclass
class _Build:
    """A build that goes on, or has ended."""

    spec: ImageSpec
    log: ByteLog = field(default_factory=ByteLog)
    result: pb.GenericResult | None = None
    task: "asyncio.Task[None] | None" = None


class ImageService:
    def __init__(self, workspace: Workspace, mounts: MountService, builder: Builder | None) -> None:
        self._workspace = workspace
        self._mounts = mounts
        self._builder = builder
        self._builds: dict[str, _Build] = {}

    def spec(self, image_id: str) -> ImageSpec:
        if image_id not in self._builds:
            raise not_found(f"image {image_id} does not exist")
        return self._builds[image_id].spec

    async def ImageGetOrCreate(
        self, request: pb.ImageGetOrCreateRequest, caller: Caller
    ) -> pb.ImageGetOrCreateResponse:
        content = request.image.SerializeToString(deterministic=True)
        image_id = "im-" + hashlib.sha256(content).hexdigest()[:22]
        if image_id not in self._builds or request.force_build:
            spec = self._read(image_id, request.image)
            build = self._builds[image_id] = _Build(spec)
            if self._builder is not None and spec.pip:
                build.task = asyncio.get_running_loop().create_task(self._run(build, self._builder))
            else:
                build.result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        return pb.ImageGetOrCreateResponse(
            image_id=image_id, result=self._builds[image_id].result, metadata=self._metadata(image_id)
        )

    async def ImageJoinStreaming(
        self, request: pb.ImageJoinStreamingRequest, caller: Caller
    ) -> AsyncIterator[pb.ImageJoinStreamingResponse]:
        build = self._builds.get(request.image_id)
        if build is None:
            raise not_found(f"image {request.image_id} does not exist")
        async for offset, data in build.log.read(int(request.last_entry_id or 0)):
            text = pb.TaskLogs(data=data.decode(errors="replace"), file_descriptor=pb.FILE_DESCRIPTOR_STDOUT)
            yield pb.ImageJoinStreamingResponse(task_logs=[text], entry_id=str(offset + len(data)))
        yield pb.ImageJoinStreamingResponse(result=build.result, metadata=self._metadata(request.image_id), eof=True)

    async def close(self) -> None:
        tasks = [build.task for build in self._builds.values() if build.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _metadata(self, image_id: str) -> pb.ImageMetadata:
        return pb.ImageMetadata(
            python_version_info=f"Python {platform.python_version()}",
            workdir=self._builds[image_id].spec.workdir,
            image_builder_version=BUILDER_VERSION,
        )

    def _read(self, image_id: str, image: pb.Image) -> ImageSpec:
        spec = ImageSpec()
        if image.base_images:
            spec = self.spec(image.base_images[0].image_id)
        spec = replace(spec, image_id=image_id, env=dict(spec.env))
        for line in image.dockerfile_commands:
            verb, _, rest = line.strip().partition(" ")
            match verb.upper():
                case "ENV":
                    for word in shlex.split(rest):
                        key, _, value = word.partition("=")
                        spec.env[key] = value
                case "WORKDIR":
                    spec = replace(spec, workdir=shlex.split(rest)[0])
                case "CMD":
                    spec = replace(spec, cmd=_words(rest))
                case "ENTRYPOINT":
                    spec = replace(spec, entrypoint=_words(rest))
                case "COPY":
                    spec = replace(spec, layers=(*self._copy(image_id, image, rest), *spec.layers))
                case "RUN" if is_pip(rest) and image.base_images:
                    spec = replace(spec, pip=(*spec.pip, rest))
                case "RUN" if image.base_images:
                    log.warning("image %s: not run: %s", image_id, rest)
        return spec

    def _copy(self, image_id: str, image: pb.Image, rest: str) -> list[Path]:
        """A layer with what COPY brings: the context mount as a whole, or one context file."""
        words = [word for word in shlex.split(rest) if not word.startswith("--")]
        if "--from=" in rest or len(words) != 2:
            return []
        source, target = words
        layer = self._workspace.fresh(f"layer-{image_id}")
        inside = layer / target.lstrip("/")
        contents = {f.filename: f.data for f in image.context_files}
        if source in contents:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(contents[source])
            return [layer]
        tree = self._mounts.tree(image.context_mount_id) if image.context_mount_id else None
        if tree is None:
            log.warning("image %s: nothing to COPY from: %s", image_id, rest)
            return []
        origin = tree / source.strip("./")
        if origin.is_dir():
            shutil.copytree(origin, inside, dirs_exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, inside / origin.name if target.endswith("/") else inside)
        return [layer]

    async def _run(self, build: _Build, builder: Builder) -> None:
        try:
            python = await builder.build(build.spec.pip, build.spec.layers, build.spec.env, build.log)
            build.spec = replace(build.spec, python=python)
            build.result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
        except BuildError as exc:
            build.result = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_FAILURE, exception=str(exc))
        finally:
            build.log.close()


def _words(rest: str) -> tuple[str, ...]:
    """The exec form or the shell form of CMD and ENTRYPOINT."""
    if rest.lstrip().startswith("["):
        return tuple(json.loads(rest))
    return ("sh", "-c", rest)
