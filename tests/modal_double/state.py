"""Directories of the double's own, and named objects."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from .ids import new_id
from .wire import not_found

T = TypeVar("T")


class Workspace:
    """A directory in memory for everything the double writes; removed at the end.

    It is on /dev/shm because the layers of an overlay must not lie on the file system of its lower `/`.
    """

    def __init__(self) -> None:
        shm = Path("/dev/shm")
        base = shm if shm.is_dir() else Path(tempfile.gettempdir())
        for stale in base.glob("modal-double-*"):
            if not Path("/proc", stale.name.split("-")[2]).is_dir():  # its double was killed
                shutil.rmtree(stale, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"modal-double-{os.getpid()}-", dir=base))
        self._numbers = itertools.count()

    def fresh(self, name: str) -> Path:
        """A path that does not exist yet."""
        return self.path / f"{name}-{next(self._numbers)}"

    def directory(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Named(Generic[T]):
    """Objects with ids, and names for those that were deployed under one."""

    def __init__(self, kind: str, prefix: str, make: Callable[[], T]) -> None:
        self.kind = kind
        self.ids: dict[str, str] = {}
        self.objects: dict[str, T] = {}
        self._prefix = prefix
        self._make = make

    def get(self, object_id: str) -> T:
        if object_id not in self.objects:
            raise not_found(f"{self.kind} {object_id} does not exist")
        return self.objects[object_id]

    def name_of(self, object_id: str) -> str:
        return next((name for name, known in self.ids.items() if known == object_id), "")

    def get_or_create(self, name: str, how: "pb.ObjectCreationType.ValueType") -> str:
        """The id under the rules of `how`; raises NOT_FOUND or ALREADY_EXISTS."""
        if how in (pb.OBJECT_CREATION_TYPE_EPHEMERAL, pb.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP):
            return self.add("")
        known = self.ids.get(name)
        if known is None:
            if how == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise not_found(f"{self.kind} '{name}' does not exist in the environment 'main'")
            return self.add(name)
        if how == pb.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"{self.kind} '{name}' already exists")
        return known

    def add(self, name: str) -> str:
        object_id = new_id(self._prefix)
        self.objects[object_id] = self._make()
        if name:
            self.ids[name] = object_id
        return object_id

    def delete(self, object_id: str) -> None:
        self.get(object_id)
        del self.objects[object_id]
        self.ids = {name: known for name, known in self.ids.items() if known != object_id}
