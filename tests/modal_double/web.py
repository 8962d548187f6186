"""HTTP for web Functions: a request becomes an input and ASGI events, the events of the answer become HTTP."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2 as pb

from .blobs import BlobService
from .calls import Call, InputStatus
from .faults import Faults
from .functions import FunctionService, FunctionState
from .scheduler import Scheduler
from .wire import log

_CALL_PARAM = "__modal_function_call_id"
_HOP = {"transfer-encoding", "connection", "keep-alive"}


class WebFront:
    """The handler behind every address of a web Function."""

    def __init__(
        self,
        functions: FunctionService,
        scheduler: Scheduler,
        blobs: BlobService,
        proxy_tokens: Mapping[str, str],
        faults: Faults,
    ) -> None:
        self._functions = functions
        self._scheduler = scheduler
        self._blobs = blobs
        self._proxy_tokens = proxy_tokens
        self._faults = faults
        self._feeders: dict[str, asyncio.Task[None]] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("sockname")[1]
        function = self._functions.by_url(f"http://127.0.0.1:{port}")
        if function is None or function.definition is None or not function.app.alive:
            return web.Response(status=404, text="modal-http: invalid function call")
        if function.definition.webhook_config.requires_proxy_auth and not self._authorized(request):
            return web.Response(status=401, text="modal-http: missing or wrong credentials for proxy authorization")
        waiting_for = request.query.get(_CALL_PARAM)
        if waiting_for:
            call = self._functions.get_call(waiting_for)
        else:
            call = self._begin(function, request)
            self._feeders[call.call_id] = asyncio.get_running_loop().create_task(_feed(call, request))
        return await self._answer(call, request)

    def _authorized(self, request: web.Request) -> bool:
        key, secret = request.headers.get("Modal-Key", ""), request.headers.get("Modal-Secret", "")
        return bool(secret) and self._proxy_tokens.get(key) == secret

    def _begin(self, function: FunctionState, request: web.Request) -> Call:
        payload = pb.FunctionInput(args=pickle.dumps(((_scope(request),), {})), data_format=pb.DATA_FORMAT_PICKLE)
        return self._functions.call(function, payload)

    async def _answer(self, call: Call, request: web.Request) -> web.StreamResponse:
        finished = False
        try:
            events = self._events(call)
            try:
                async with asyncio.timeout(self._faults.web_cut_s):
                    start = await anext(events)
            except TimeoutError:
                finished = True
                raise web.HTTPSeeOther(str(request.url.update_query({_CALL_PARAM: call.call_id}))) from None
            except StopAsyncIteration:
                finished = True
                return web.Response(status=500, text="modal-http: internal error: the Function failed")
            response = web.StreamResponse(status=start["status"])
            for name, value in start.get("headers", []):
                if name.decode("latin-1").lower() not in _HOP:
                    response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
            await response.prepare(request)
            async for event in events:
                if event.get("body"):
                    await response.write(event["body"])
                if not event.get("more_body", False):
                    finished = True
                    break
            if not finished:
                log.warning("the answer of %s ended early", call.function.name)
                if request.transport is not None:
                    request.transport.abort()
            await response.write_eof()
            return response
        finally:
            if (feeder := self._feeders.pop(call.call_id, None)) is not None:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
            if not finished:
                self._disconnect(call)

    def _disconnect(self, call: Call) -> None:
        """The client went away: the app is told so."""
        message = serialize_data_format({"type": "http.disconnect"}, pb.DATA_FORMAT_ASGI)
        index = max(call.data_in.chunks, default=0) + 1
        call.data_in.put(pb.DataChunk(data_format=pb.DATA_FORMAT_ASGI, data=message, index=index))

    async def _events(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """ASGI events of the answer; ends when the input is done and everything was seen."""
        done = asyncio.get_running_loop().create_task(call.done())
        last, reader = 0, call.data_out.read(0)
        pending: asyncio.Task[pb.DataChunk] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(reader))
                await asyncio.wait([pending, done], return_when=asyncio.FIRST_COMPLETED)
                if not pending.done() and last >= max(call.data_out.chunks, default=0):
                    return
                chunk = await pending
                pending, last = None, chunk.index
                data = self._blobs.read(chunk.data_blob_id) if chunk.data_blob_id else chunk.data
                yield deserialize_data_format(data, chunk.data_format, None)
        finally:
            done.cancel()
            if pending is not None:
                pending.cancel()

    async def close(self) -> None:
        for task in self._feeders.values():
            task.cancel()
        await asyncio.gather(*self._feeders.values(), return_exceptions=True)


async def _feed(call: Call, request: web.Request) -> None:
    """Put the body of the request into the input's channel, as it comes."""
    index = 0

    def put(body: bytes, *, more: bool) -> None:
        nonlocal index
        index += 1
        event = {"type": "http.request", "body": body, "more_body": more}
        data = serialize_data_format(event, pb.DATA_FORMAT_ASGI)
        call.data_in.put(pb.DataChunk(data_format=pb.DATA_FORMAT_ASGI, data=data, index=index))

    held = b""
    async for chunk in request.content.iter_any():
        if held:
            put(held, more=True)
        held = chunk
    if all(item.status is not InputStatus.DONE for item in call.inputs):
        put(held, more=False)


def _scope(request: web.Request) -> dict[str, Any]:
    path, _, query = request.raw_path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": (request.remote or "127.0.0.1", 0),
        "server": ("127.0.0.1", request.url.port),
    }
