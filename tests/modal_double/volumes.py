"""Volumes: what is committed, and a working copy for each container that mounts one.

As on Modal, a container sees what was committed when it started, others see its writes after a commit and their own
reload, and what a container has written is committed when it ends. There are no commits in the background.
"""

import os
import shutil
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from .blobs import BlobService, MountService
from .jail import Bind, isolation
from .state import Named, Workspace
from .wire import Caller, conflict, invalid, not_found

_BLOCK = 8 << 20
_Stat = dict[str, tuple[int, int]]


@dataclass
class _Copy:
    """The working copy of one container: where it is, and what it was at the last commit or reload."""

    root: Path
    read_only: bool
    known: _Stat = field(default_factory=dict)


@dataclass
class _Volume:
    root: Path
    version: "pb.VolumeFsVersion.ValueType" = pb.VOLUME_FS_VERSION_V1
    copies: dict[str, _Copy] = field(default_factory=dict)


class VolumeService:
    def __init__(self, workspace: Workspace, blobs: BlobService, mounts: MountService) -> None:
        self._workspace = workspace
        self._blobs = blobs
        self._mounts = mounts
        self._blocks: dict[bytes, bytes] = {}
        self.volumes: Named[_Volume] = Named("Volume", "vo", self._make)

    def _make(self) -> _Volume:
        root = self._workspace.fresh("volume")
        root.mkdir()
        return _Volume(root)

    # Containers

    def mount(self, task_id: str, mounts: Iterable[pb.VolumeMount]) -> list[Bind]:
        """A working copy of each Volume for this container."""
        binds = []
        for spec in mounts:
            volume = self.volumes.get(spec.volume_id)
            copy = _Copy(self._workspace.fresh("copy"), spec.read_only)
            copy.root.mkdir()
            volume.copies[task_id] = copy
            _sync(volume.root, copy.root)
            copy.known = _stat(copy.root)
            source = copy.root / spec.sub_path.strip("/") if spec.sub_path else copy.root
            source.mkdir(parents=True, exist_ok=True)
            binds.append(Bind(source, spec.mount_path, spec.read_only))
        return binds if isolation() else []

    def unmount(self, task_id: str) -> None:
        """Commit what the container leaves, and let its copies go."""
        for volume in self.volumes.objects.values():
            if (copy := volume.copies.pop(task_id, None)) is not None:
                self._commit(volume, copy)
                shutil.rmtree(copy.root, ignore_errors=True)

    def _commit(self, volume: _Volume, copy: _Copy) -> None:
        if copy.read_only:
            return
        now = _stat(copy.root)
        for name in now:
            if now[name] != copy.known.get(name):
                _copy_file(copy.root / name, volume.root / name)
        for name in copy.known.keys() - now.keys():
            (volume.root / name).unlink(missing_ok=True)
        copy.known = now

    def _copy_of(self, volume_id: str, caller: Caller) -> tuple[_Volume, _Copy]:
        volume = self.volumes.get(volume_id)
        copy = volume.copies.get(caller.task_id or "")
        if copy is None:
            raise conflict("commit and reload are for containers that mount the Volume")
        return volume, copy

    async def VolumeCommit(self, request: pb.VolumeCommitRequest, caller: Caller) -> pb.VolumeCommitResponse:
        volume, copy = self._copy_of(request.volume_id, caller)
        if copy.read_only:
            raise conflict("the Volume is mounted read-only")
        self._commit(volume, copy)
        return pb.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: pb.VolumeReloadRequest, caller: Caller) -> None:
        volume, copy = self._copy_of(request.volume_id, caller)
        self.reload(volume, copy)

    def reload(self, volume: _Volume, copy: _Copy) -> None:
        self._commit(volume, copy)
        _sync(volume.root, copy.root)
        copy.known = _stat(copy.root)

    def reload_all(self, task_id: str) -> None:
        for volume in self.volumes.objects.values():
            if (copy := volume.copies.get(task_id)) is not None:
                self.reload(volume, copy)

    # Clients

    async def VolumeGetOrCreate(
        self, request: pb.VolumeGetOrCreateRequest, caller: Caller
    ) -> pb.VolumeGetOrCreateResponse:
        fresh = request.deployment_name not in self.volumes.ids
        volume_id = self.volumes.get_or_create(request.deployment_name, request.object_creation_type)
        volume = self.volumes.get(volume_id)
        if request.version and fresh:
            volume.version = request.version
        return pb.VolumeGetOrCreateResponse(
            volume_id=volume_id, version=volume.version, metadata=self.metadata(volume_id)
        )

    async def VolumeGetById(self, request: pb.VolumeGetByIdRequest, caller: Caller) -> pb.VolumeGetByIdResponse:
        return pb.VolumeGetByIdResponse(volume_id=request.volume_id, metadata=self.metadata(request.volume_id))

    def metadata(self, volume_id: str) -> pb.VolumeMetadata:
        return pb.VolumeMetadata(version=self.volumes.get(volume_id).version, name=self.volumes.name_of(volume_id))

    async def VolumeHeartbeat(self, request: pb.VolumeHeartbeatRequest, caller: Caller) -> None:
        self.volumes.get(request.volume_id)

    async def VolumeDelete(self, request: pb.VolumeDeleteRequest, caller: Caller) -> None:
        self.volumes.delete(request.volume_id)

    def _path(self, volume_id: str, path: str) -> Path:
        root = self.volumes.get(volume_id).root
        full = root / path.strip("/")
        if not Path(os.path.normpath(full)).is_relative_to(root):
            raise invalid(f"{path} leads out of the Volume")
        if not full.exists():
            raise not_found(f"path {path} does not exist in the Volume")
        return full

    def _entries(self, volume_id: str, path: str, *, recursive: bool) -> list[pb.FileEntry]:
        root = self.volumes.get(volume_id).root
        start = self._path(volume_id, path)
        found = [start] if start.is_file() else sorted(start.rglob("*") if recursive else start.iterdir())
        return [
            pb.FileEntry(
                path=str(p.relative_to(root)),
                type=pb.FileEntry.DIRECTORY if p.is_dir() else pb.FileEntry.FILE,
                mtime=int(p.stat().st_mtime),
                size=0 if p.is_dir() else p.stat().st_size,
            )
            for p in found
        ]

    async def VolumeListFiles(
        self, request: pb.VolumeListFilesRequest, caller: Caller
    ) -> AsyncIterator[pb.VolumeListFilesResponse]:
        entries = self._entries(request.volume_id, request.path, recursive=request.recursive)
        yield pb.VolumeListFilesResponse(entries=entries)

    async def VolumeListFiles2(
        self, request: pb.VolumeListFiles2Request, caller: Caller
    ) -> AsyncIterator[pb.VolumeListFiles2Response]:
        entries = self._entries(request.volume_id, request.path, recursive=request.recursive)
        yield pb.VolumeListFiles2Response(entries=entries)

    async def VolumeGetFile2(self, request: pb.VolumeGetFile2Request, caller: Caller) -> pb.VolumeGetFile2Response:
        path = self._path(request.volume_id, request.path)
        if path.is_dir():
            raise invalid(f"{request.path} is a directory")
        data = path.read_bytes()
        end = request.start + request.len if request.len else len(data)
        part = data[request.start : end]
        urls, position = [], request.start
        while position < request.start + len(part):
            stop = min((position // _BLOCK + 1) * _BLOCK, request.start + len(part))
            urls.append(self._blobs.url(self._blobs.put(data[position:stop])))
            position = stop
        return pb.VolumeGetFile2Response(get_urls=urls, size=len(data), start=request.start, len=len(part))

    async def VolumePutFiles(self, request: pb.VolumePutFilesRequest, caller: Caller) -> None:
        contents = {file.filename: self._mounts.content(file.sha256_hex) for file in request.files}
        self._write(request.volume_id, contents, keep=request.disallow_overwrite_existing_files)

    async def VolumePutFiles2(self, request: pb.VolumePutFiles2Request, caller: Caller) -> pb.VolumePutFiles2Response:
        missing = []
        for file_index, file in enumerate(request.files):
            for block_index, block in enumerate(file.blocks):
                if block.put_response and block.contents_sha256 not in self._blocks:
                    self._blocks[block.contents_sha256] = block.put_response
                if block.contents_sha256 not in self._blocks:
                    url = f"{self._blobs.base_url}/block"
                    missing.append(
                        pb.VolumePutFiles2Response.MissingBlock(
                            file_index=file_index, block_index=block_index, put_url=url
                        )
                    )
        if not missing:
            contents = {
                f.path: b"".join(self._blobs.read(self._blocks[b.contents_sha256].decode()) for b in f.blocks)
                for f in request.files
            }
            self._write(request.volume_id, contents, keep=request.disallow_overwrite_existing_files)
        return pb.VolumePutFiles2Response(missing_blocks=missing)

    def _write(self, volume_id: str, contents: dict[str, bytes], *, keep: bool) -> None:
        root = self.volumes.get(volume_id).root
        paths = {name: root / name.lstrip("/") for name in contents}
        if keep and (there := [name for name, path in paths.items() if path.exists()]):
            raise GRPCError(Status.ALREADY_EXISTS, f"{there[0]}: already exists")
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[name])

    async def VolumeRemoveFile(self, request: pb.VolumeRemoveFileRequest, caller: Caller) -> None:
        path = self._path(request.volume_id, request.path)
        if not path.is_dir():
            path.unlink()
        elif request.recursive:
            shutil.rmtree(path)
        else:
            raise invalid(f"{request.path} is a directory; it is removed only with recursive=True")

    async def VolumeRemoveFile2(self, request: pb.VolumeRemoveFile2Request, caller: Caller) -> None:
        old = pb.VolumeRemoveFileRequest(volume_id=request.volume_id, path=request.path, recursive=request.recursive)
        await self.VolumeRemoveFile(old, caller)


def _stat(root: Path) -> _Stat:
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            found[str(path.relative_to(root))] = (stat.st_mtime_ns, stat.st_size)
    return found


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _sync(source: Path, target: Path) -> None:
    """Make `target` like `source`."""
    there, here = _stat(source), _stat(target)
    for name, stat in there.items():
        if here.get(name) != stat:
            _copy_file(source / name, target / name)
    for name in here.keys() - there.keys():
        (target / name).unlink(missing_ok=True)
