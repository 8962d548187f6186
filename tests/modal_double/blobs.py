"""Blobs and mounts: bytes by id or by their SHA-256, and the directory trees made of them."""

import hashlib
import os
from pathlib import Path

from aiohttp import web
from modal_proto import api_pb2 as pb

from .ids import new_id
from .state import Workspace
from .wire import Caller, invalid, not_found


class BlobService:
    """BlobCreate, BlobGet, and the URLs behind them."""

    def __init__(self, workspace: Workspace) -> None:
        self.base_url = ""
        self._dir = workspace.directory("blobs")

    def read(self, blob_id: str) -> bytes:
        path = self._dir / blob_id
        if not path.is_file():
            raise not_found(f"blob {blob_id} does not exist")
        return path.read_bytes()

    async def BlobCreate(self, request: pb.BlobCreateRequest, caller: Caller) -> pb.BlobCreateResponse:
        blob_id = new_id("bl")
        url = self.url(blob_id)
        return pb.BlobCreateResponse(
            blob_id=blob_id,
            upload_url=url,
            blob_ids=[blob_id],
            upload_urls=pb.UploadUrlList(items=[url]),
        )

    async def BlobGet(self, request: pb.BlobGetRequest, caller: Caller) -> pb.BlobGetResponse:
        self.read(request.blob_id)
        return pb.BlobGetResponse(download_url=self.url(request.blob_id))

    def put(self, data: bytes) -> str:
        blob_id = new_id("bl")
        (self._dir / blob_id).write_bytes(data)
        return blob_id

    def url(self, blob_id: str) -> str:
        return f"{self.base_url}/blob/{blob_id}"

    async def http_put(self, request: web.Request) -> web.Response:
        digest = hashlib.md5(usedforsecurity=False)
        with (self._dir / os.path.basename(request.match_info["blob_id"])).open("wb") as file:
            async for chunk in request.content.iter_any():
                digest.update(chunk)
                file.write(chunk)
        return web.Response(headers={"ETag": f'"{digest.hexdigest()}"'})

    async def http_get(self, request: web.Request) -> web.FileResponse:
        path = self._dir / os.path.basename(request.match_info["blob_id"])
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)


class MountService:
    """Files by content, and mounts as directory trees that containers lay over their root."""

    def __init__(self, workspace: Workspace, blobs: BlobService) -> None:
        self._files = workspace.directory("files")
        self._trees = workspace.directory("mounts")
        self._known: set[str] = set()
        self._blobs = blobs

    def tree(self, mount_id: str) -> Path | None:
        """The directory of a mount; None for Modal's own client mount, which the host's packages stand in for."""
        if mount_id.startswith("mo-client"):
            return None
        if mount_id not in self._known:
            raise not_found(f"mount {mount_id} does not exist")
        return self._trees / mount_id

    def content(self, sha256_hex: str) -> bytes:
        path = self._files / sha256_hex
        if not path.is_file():
            raise not_found(f"file {sha256_hex} was never uploaded")
        return path.read_bytes()

    async def MountBatchedCheckExistence(
        self, request: pb.MountBatchedCheckExistenceRequest, caller: Caller
    ) -> pb.MountBatchedCheckExistenceResponse:
        missing = [sha for sha in request.sha256_hex_hashes if not (self._files / sha).is_file()]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: pb.MountPutFileRequest, caller: Caller) -> pb.MountPutFileResponse:
        which = request.WhichOneof("data_oneof")
        if which is not None:
            data = request.data if which == "data" else self._blobs.read(request.data_blob_id)
            if hashlib.sha256(data).hexdigest() != request.sha256_hex:
                raise invalid("the file does not have the hash it was announced with")
            (self._files / request.sha256_hex).write_bytes(data)
        return pb.MountPutFileResponse(exists=(self._files / request.sha256_hex).is_file())

    async def MountGetOrCreate(
        self, request: pb.MountGetOrCreateRequest, caller: Caller
    ) -> pb.MountGetOrCreateResponse:
        if request.deployment_name:
            if not request.deployment_name.startswith("modal-client-mount"):
                raise not_found(f"mount '{request.deployment_name}' does not exist")
            return pb.MountGetOrCreateResponse(
                mount_id="mo-client0000000000000000", handle_metadata=pb.MountHandleMetadata()
            )
        summary = "\n".join(sorted(f"{f.filename} {f.sha256_hex} {f.mode}" for f in request.files))
        checksum = hashlib.sha256(summary.encode()).hexdigest()
        mount_id = f"mo-{checksum[:22]}"
        if mount_id not in self._known:
            for file in request.files:
                path = self._trees / mount_id / file.filename.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.content(file.sha256_hex))
                path.chmod(file.mode & 0o777 if file.mode else 0o644)
            (self._trees / mount_id).mkdir(exist_ok=True)
            self._known.add(mount_id)
        return pb.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=pb.MountHandleMetadata(content_checksum_sha256_hex=checksum)
        )
