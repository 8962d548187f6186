"""Dict, Queue and Secret, in memory."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from .state import Named
from .wire import Caller, invalid, not_found

DICT_UPDATE_ENTRIES = 10_000
DICT_OBJECT_BYTES = 100 << 20
QUEUE_ITEMS = 5_000
QUEUE_ITEM_BYTES = 1 << 20


class DictService:
    """Each operation is atomic, since nothing is awaited in it."""

    def __init__(self) -> None:
        self.dicts: Named[dict[bytes, bytes]] = Named("Dict", "di", dict)

    async def DictGetOrCreate(self, request: pb.DictGetOrCreateRequest, caller: Caller) -> pb.DictGetOrCreateResponse:
        dict_id = self.dicts.get_or_create(request.deployment_name, request.object_creation_type)
        self.dicts.get(dict_id).update({entry.key: entry.value for entry in request.data})
        return pb.DictGetOrCreateResponse(dict_id=dict_id, metadata=self._metadata(dict_id))

    async def DictGetById(self, request: pb.DictGetByIdRequest, caller: Caller) -> pb.DictGetByIdResponse:
        self.dicts.get(request.dict_id)
        return pb.DictGetByIdResponse(dict_id=request.dict_id, metadata=self._metadata(request.dict_id))

    def _metadata(self, dict_id: str) -> pb.DictMetadata:
        return pb.DictMetadata(name=self.dicts.name_of(dict_id))

    async def DictHeartbeat(self, request: pb.DictHeartbeatRequest, caller: Caller) -> None:
        self.dicts.get(request.dict_id)

    async def DictDelete(self, request: pb.DictDeleteRequest, caller: Caller) -> None:
        self.dicts.delete(request.dict_id)

    async def DictClear(self, request: pb.DictClearRequest, caller: Caller) -> None:
        self.dicts.get(request.dict_id).clear()

    async def DictGet(self, request: pb.DictGetRequest, caller: Caller) -> pb.DictGetResponse:
        value = self.dicts.get(request.dict_id).get(request.key)
        return pb.DictGetResponse(found=value is not None, value=value)

    async def DictContains(self, request: pb.DictContainsRequest, caller: Caller) -> pb.DictContainsResponse:
        return pb.DictContainsResponse(found=request.key in self.dicts.get(request.dict_id))

    async def DictLen(self, request: pb.DictLenRequest, caller: Caller) -> pb.DictLenResponse:
        return pb.DictLenResponse(len=len(self.dicts.get(request.dict_id)))

    async def DictPop(self, request: pb.DictPopRequest, caller: Caller) -> pb.DictPopResponse:
        value = self.dicts.get(request.dict_id).pop(request.key, None)
        return pb.DictPopResponse(found=value is not None, value=value)

    async def DictUpdate(self, request: pb.DictUpdateRequest, caller: Caller) -> pb.DictUpdateResponse:
        data = self.dicts.get(request.dict_id)
        if len(request.updates) > DICT_UPDATE_ENTRIES:
            raise invalid(f"{len(request.updates)} entries in one update; at most {DICT_UPDATE_ENTRIES} are allowed")
        if any(len(entry.value) > DICT_OBJECT_BYTES for entry in request.updates):
            raise invalid(f"a value is larger than {DICT_OBJECT_BYTES} bytes")
        if request.if_not_exists and any(entry.key in data for entry in request.updates):
            return pb.DictUpdateResponse(created=False)
        data.update({entry.key: entry.value for entry in request.updates})
        return pb.DictUpdateResponse(created=True)

    async def DictContents(self, request: pb.DictContentsRequest, caller: Caller) -> AsyncIterator[pb.DictEntry]:
        for key, value in list(self.dicts.get(request.dict_id).items()):
            yield pb.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")


@dataclass
class _Queue:
    partitions: dict[bytes, deque[tuple[int, bytes]]] = field(default_factory=dict)
    serial: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class QueueService:
    def __init__(self) -> None:
        self.queues: Named[_Queue] = Named("Queue", "qu", _Queue)

    async def QueueGetOrCreate(
        self, request: pb.QueueGetOrCreateRequest, caller: Caller
    ) -> pb.QueueGetOrCreateResponse:
        queue_id = self.queues.get_or_create(request.deployment_name, request.object_creation_type)
        meta = pb.QueueMetadata(name=self.queues.name_of(queue_id))
        return pb.QueueGetOrCreateResponse(queue_id=queue_id, metadata=meta)

    async def QueueHeartbeat(self, request: pb.QueueHeartbeatRequest, caller: Caller) -> None:
        self.queues.get(request.queue_id)

    async def QueueDelete(self, request: pb.QueueDeleteRequest, caller: Caller) -> None:
        self.queues.delete(request.queue_id)

    async def QueueClear(self, request: pb.QueueClearRequest, caller: Caller) -> None:
        queue = self.queues.get(request.queue_id)
        if request.all_partitions:
            queue.partitions.clear()
        queue.partitions.pop(request.partition_key, None)

    async def QueuePut(self, request: pb.QueuePutRequest, caller: Caller) -> None:
        queue = self.queues.get(request.queue_id)
        items = queue.partitions.setdefault(request.partition_key, deque())
        if any(len(value) > QUEUE_ITEM_BYTES for value in request.values):
            raise invalid(f"an item is larger than {QUEUE_ITEM_BYTES} bytes")
        if len(items) + len(request.values) > QUEUE_ITEMS:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"the partition holds {len(items)} of {QUEUE_ITEMS} items")
        for value in request.values:
            queue.serial += 1
            items.append((queue.serial, value))
        queue.tell()

    async def QueueGet(self, request: pb.QueueGetRequest, caller: Caller) -> pb.QueueGetResponse:
        queue = self.queues.get(request.queue_id)
        until = time.monotonic() + request.timeout
        while not (items := queue.partitions.get(request.partition_key)):
            if not await _news(queue, until):
                return pb.QueueGetResponse()
        n = min(max(1, request.n_values), len(items))
        return pb.QueueGetResponse(values=[items.popleft()[1] for _ in range(n)])

    async def QueueLen(self, request: pb.QueueLenRequest, caller: Caller) -> pb.QueueLenResponse:
        queue = self.queues.get(request.queue_id)
        if request.total:
            return pb.QueueLenResponse(len=sum(map(len, queue.partitions.values())))
        return pb.QueueLenResponse(len=len(queue.partitions.get(request.partition_key, ())))

    async def QueueNextItems(self, request: pb.QueueNextItemsRequest, caller: Caller) -> pb.QueueNextItemsResponse:
        queue = self.queues.get(request.queue_id)
        after = int(request.last_entry_id or 0)
        until = time.monotonic() + request.item_poll_timeout
        while True:
            items = [item for item in queue.partitions.get(request.partition_key, ()) if item[0] > after]
            if items or not await _news(queue, until):
                break
        found = [pb.QueueItem(value=value, entry_id=str(serial)) for serial, value in items]
        return pb.QueueNextItemsResponse(items=found)


async def _news(queue: _Queue, until: float) -> bool:
    left_s = until - time.monotonic()
    if left_s <= 0:
        return False
    try:
        async with asyncio.timeout(left_s):
            await queue.news.wait()
    except TimeoutError:
        return False
    return True


class SecretService:
    def __init__(self, initial: Mapping[str, Mapping[str, str]]) -> None:
        self.secrets: Named[dict[str, str]] = Named("Secret", "st", dict)
        for name, env in initial.items():
            self.put(name, env)

    def put(self, name: str, env: Mapping[str, str]) -> None:
        """Make or replace a Secret."""
        secret_id = self.secrets.get_or_create(name, pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING)
        self.secrets.objects[secret_id] = dict(env)

    def env(self, secret_id: str) -> dict[str, str]:
        return self.secrets.get(secret_id)

    def _metadata(self, secret_id: str) -> pb.SecretMetadata:
        keys = list(self.secrets.get(secret_id))
        return pb.SecretMetadata(name=self.secrets.name_of(secret_id), keys=keys, environment_name="main")

    async def SecretGetOrCreate(
        self, request: pb.SecretGetOrCreateRequest, caller: Caller
    ) -> pb.SecretGetOrCreateResponse:
        how = request.object_creation_type
        fresh = request.deployment_name not in self.secrets.ids
        secret_id = self.secrets.get_or_create(request.deployment_name, how)
        if request.env_dict and (fresh or how == pb.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS):
            self.secrets.objects[secret_id] = dict(request.env_dict)
        missing = [key for key in request.required_keys if key not in self.secrets.get(secret_id)]
        if missing:
            raise not_found(f"Secret '{request.deployment_name}' is missing key(s): {', '.join(missing)}")
        return pb.SecretGetOrCreateResponse(secret_id=secret_id, metadata=self._metadata(secret_id))

    async def SecretList(self, request: pb.SecretListRequest, caller: Caller) -> pb.SecretListResponse:
        items = [
            pb.SecretListItem(label=name, secret_id=secret_id, metadata=self._metadata(secret_id))
            for name, secret_id in self.secrets.ids.items()
        ]
        return pb.SecretListResponse(items=items, environment_name="main")

    async def SecretDelete(self, request: pb.SecretDeleteRequest, caller: Caller) -> None:
        self.secrets.delete(request.secret_id)
