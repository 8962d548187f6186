"""Functions: their definitions and the callers' side of their calls."""

import hashlib
import pickle
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from modal_proto import api_pb2 as pb

from .apps import App, AppService
from .calls import Call, DataChannel, Input
from .containers import Container, Housing
from .ids import new_id
from .scheduler import Scheduler
from .wire import Caller, not_found

_OUTSTANDING = 1000


@dataclass(eq=False)
class FunctionState:
    """A Function of an App. `definition` is what was published; `offered` becomes it with the next publish."""

    function_id: str
    app: App
    name: str
    functions: "FunctionService"
    metadata: pb.FunctionHandleMetadata = field(default_factory=pb.FunctionHandleMetadata)
    definition: pb.Function | None = None
    offered: pb.Function | None = None
    serialized_params: bytes = b""
    pending: deque[Input] = field(default_factory=deque)
    containers: list[Container] = field(default_factory=list)

    def layout(self) -> pb.AppLayout:
        return self.functions.layout(self.app)


class FunctionService:
    """Function* and Class* as a client outside, or a Function that calls another, sees them."""

    def __init__(self, apps: AppService, scheduler: Scheduler, housing: Housing) -> None:
        self.functions: dict[str, FunctionState] = {}
        self.classes: dict[str, tuple[App, str]] = {}
        self.calls: dict[str, Call] = {}
        self._apps = apps
        self._scheduler = scheduler
        self._images = housing.images
        self._secrets = housing.secrets
        self._volumes = housing.volumes
        self._web_urls: dict[str, str] = {}
        self._free_urls: deque[str] = deque()
        apps.on_publish.append(self._publish)

    # For the rest of the double

    def get(self, function_id: str) -> FunctionState:
        if function_id not in self.functions:
            raise not_found(f"Function {function_id} does not exist")
        return self.functions[function_id]

    def find(self, app_name: str, tag: str) -> FunctionState:
        app = self._apps.find(app_name)
        if tag not in app.function_ids:
            raise not_found(f"App '{app_name}' has no Function '{tag}'")
        return self.get(app.function_ids[tag])

    def offer_urls(self, urls: Iterable[str]) -> None:
        """Loopback addresses that web Functions may have."""
        self._free_urls.extend(urls)

    def by_url(self, url: str) -> FunctionState | None:
        function_id = self._web_urls.get(url)
        return self.functions.get(function_id) if function_id else None

    def call(self, function: FunctionState, payload: pb.FunctionInput) -> Call:
        """One input, as if a client had called."""
        call = self._new_call(function, pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC)
        self._put(call, [pb.FunctionPutInputsItem(idx=0, input=payload)])
        return call

    def layout(self, app: App) -> pb.AppLayout:
        objects = [
            pb.Object(object_id=i, function_handle_metadata=self.get(i).metadata) for i in app.function_ids.values()
        ]
        objects += [
            pb.Object(object_id=i, class_handle_metadata=self._class_metadata(i)) for i in app.class_ids.values()
        ]
        depended = {
            dep.object_id
            for function_id in app.function_ids.values()
            if (definition := self.get(function_id).definition) is not None
            for dep in definition.object_dependencies
        }
        for object_id in sorted(depended):
            meta = self._volumes.metadata(object_id) if object_id.startswith("vo-") else None
            objects.append(pb.Object(object_id=object_id, volume_metadata=meta))
        return pb.AppLayout(objects=objects, function_ids=app.function_ids, class_ids=app.class_ids)

    async def _publish(self, app: App) -> None:
        wanted = set(app.function_ids.values())
        for function in [f for f in self.functions.values() if f.app is app]:
            if function.offered is not None:
                function.definition, function.offered = function.offered, None
            self._scheduler.renew(function, keep=function.function_id in wanted)

    # Definitions

    async def FunctionPrecreate(
        self, request: pb.FunctionPrecreateRequest, caller: Caller
    ) -> pb.FunctionPrecreateResponse:
        app = self._apps.get(request.app_id)
        function = self.functions.get(request.existing_function_id)
        if function is None:
            function = FunctionState(new_id("fu"), app, request.function_name, self)
            self.functions[function.function_id] = function
        function.metadata = pb.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            web_url=self._web_url(function) if request.webhook_config.type else "",
            function_schema=request.function_schema,
            definition_id=f"de-{function.function_id}",
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            app_id=app.app_id,
        )
        for name, method in request.method_definitions.items():
            function.metadata.method_handle_metadata[name].CopyFrom(
                pb.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    is_method=True,
                    use_method_name=name,
                    function_schema=method.function_schema,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                    app_id=app.app_id,
                )
            )
        return pb.FunctionPrecreateResponse(function_id=function.function_id, handle_metadata=function.metadata)

    async def FunctionCreate(self, request: pb.FunctionCreateRequest, caller: Caller) -> pb.FunctionCreateResponse:
        function = self.get(request.existing_function_id)
        definition = pb.Function()
        if request.HasField("function"):
            definition.CopyFrom(request.function)
        else:
            definition.CopyFrom(request.function_data.ranked_functions[0].function)
        self._images.spec(definition.image_id)
        for secret_id in definition.secret_ids:
            self._secrets.env(secret_id)
        definition.web_url = function.metadata.web_url
        function.offered = definition
        if definition.is_class:
            function.metadata.class_parameter_info.CopyFrom(definition.class_parameter_info)
        return pb.FunctionCreateResponse(
            function_id=function.function_id,
            function=definition,
            handle_metadata=function.metadata,
            function_data=_function_data(definition),
        )

    async def FunctionGet(self, request: pb.FunctionGetRequest, caller: Caller) -> pb.FunctionGetResponse:
        app = self._apps.deployed(request.app_name)
        if app is None:
            raise not_found(f"App '{request.app_name}' is not deployed")
        if request.object_tag not in app.function_ids:
            raise not_found(f"App '{request.app_name}' has no Function '{request.object_tag}'")
        function = self.get(app.function_ids[request.object_tag])
        assert function.definition is not None
        return pb.FunctionGetResponse(
            function_id=function.function_id,
            handle_metadata=function.metadata,
            function=_function_data(function.definition),
        )

    async def FunctionGetById(self, request: pb.FunctionGetByIdRequest, caller: Caller) -> pb.FunctionGetByIdResponse:
        function = self.get(request.function_id)
        definition = function.definition or function.offered or pb.Function()
        return pb.FunctionGetByIdResponse(handle_metadata=function.metadata, function=_function_data(definition))

    async def FunctionBindParams(
        self, request: pb.FunctionBindParamsRequest, caller: Caller
    ) -> pb.FunctionBindParamsResponse:
        base = self.get(request.function_id)
        options = request.function_options
        key = hashlib.sha256(request.serialized_params + options.SerializeToString(deterministic=True)).hexdigest()
        bound_id = "fu-" + hashlib.sha256((base.function_id + key).encode()).hexdigest()[:22]
        if bound_id not in self.functions:
            bound = FunctionState(bound_id, base.app, base.name, self, serialized_params=request.serialized_params)
            bound.metadata.CopyFrom(base.metadata)
            bound.definition = pb.Function()
            bound.definition.CopyFrom(base.definition or base.offered or pb.Function())
            _apply(options, bound.definition)
            self.functions[bound_id] = bound
        return pb.FunctionBindParamsResponse(
            bound_function_id=bound_id, handle_metadata=self.functions[bound_id].metadata
        )

    async def FunctionUpdateSchedulingParams(
        self, request: pb.FunctionUpdateSchedulingParamsRequest, caller: Caller
    ) -> pb.FunctionUpdateSchedulingParamsResponse:
        function = self.get(request.function_id)
        assert function.definition is not None
        function.definition.autoscaler_settings.MergeFrom(request.settings)
        self._scheduler.pump(function)
        return pb.FunctionUpdateSchedulingParamsResponse(current_settings=function.definition.autoscaler_settings)

    async def ClassCreate(self, request: pb.ClassCreateRequest, caller: Caller) -> pb.ClassCreateResponse:
        class_id = request.existing_class_id or new_id("cs")
        self.classes[class_id] = (self._apps.get(request.app_id), "")
        return pb.ClassCreateResponse(class_id=class_id, handle_metadata=self._class_metadata(class_id))

    async def ClassGet(self, request: pb.ClassGetRequest, caller: Caller) -> pb.ClassGetResponse:
        app = self._apps.deployed(request.app_name)
        if app is None or request.object_tag not in app.class_ids:
            raise not_found(f"App '{request.app_name}' has no Cls '{request.object_tag}'")
        class_id = app.class_ids[request.object_tag]
        return pb.ClassGetResponse(class_id=class_id, handle_metadata=self._class_metadata(class_id))

    async def AppGetLayout(self, request: pb.AppGetLayoutRequest, caller: Caller) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=self.layout(self._apps.get(request.app_id)))

    def _class_metadata(self, class_id: str) -> pb.ClassHandleMetadata:
        return pb.ClassHandleMetadata()

    def _web_url(self, function: FunctionState) -> str:
        known = next((url for url, fid in self._web_urls.items() if fid == function.function_id), None)
        if known is None:
            if not self._free_urls:
                raise not_found("the double has no address left for a web Function; see Settings.web_functions")
            known = self._free_urls.popleft()
            self._web_urls[known] = function.function_id
        return known

    # Calls

    def _new_call(self, function: FunctionState, invocation: "pb.FunctionCallInvocationType.ValueType") -> Call:
        call = Call(function, invocation)
        self.calls[call.call_id] = call
        return call

    def get_call(self, call_id: str) -> Call:
        if call_id not in self.calls:
            raise not_found(f"function call {call_id} does not exist")
        return self.calls[call_id]

    def _put(self, call: Call, items: Iterable[pb.FunctionPutInputsItem]) -> list[pb.FunctionPutInputsResponseItem]:
        if not call.function.app.alive:
            raise not_found(f"App {call.function.app.app_id} is stopped")
        new = [Input(call, item.idx, item.input) for item in items]
        call.inputs.extend(new)
        self._scheduler.enqueue(new)
        return [pb.FunctionPutInputsResponseItem(idx=i.idx, input_id=i.input_id, input_jwt=i.input_id) for i in new]

    async def FunctionMap(self, request: pb.FunctionMapRequest, caller: Caller) -> pb.FunctionMapResponse:
        function = self.get(request.function_id)
        call = self._new_call(function, request.function_call_invocation_type)
        inputs = self._put(call, request.pipelined_inputs)
        return pb.FunctionMapResponse(
            function_call_id=call.call_id,
            pipelined_inputs=inputs,
            retry_policy=function.definition.retry_policy if function.definition else None,
            function_call_jwt=call.call_id,
            max_inputs_outstanding=_OUTSTANDING,
        )

    async def FunctionPutInputs(
        self, request: pb.FunctionPutInputsRequest, caller: Caller
    ) -> pb.FunctionPutInputsResponse:
        call = self.get_call(request.function_call_id)
        return pb.FunctionPutInputsResponse(inputs=self._put(call, request.inputs))

    async def FunctionFinishInputs(self, request: pb.FunctionFinishInputsRequest, caller: Caller) -> None:
        self.get_call(request.function_call_id)

    async def FunctionGetOutputs(
        self, request: pb.FunctionGetOutputsRequest, caller: Caller
    ) -> pb.FunctionGetOutputsResponse:
        return await self.get_call(request.function_call_id).get_outputs(request)

    async def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest, caller: Caller) -> None:
        call = self.get_call(request.function_call_id)
        for item in call.inputs:
            self._scheduler.cancel(item, kill=request.terminate_containers)

    async def FunctionCallFromId(
        self, request: pb.FunctionCallFromIdRequest, caller: Caller
    ) -> pb.FunctionCallFromIdResponse:
        call = self.get_call(request.function_call_id)
        meta = pb.FunctionCallHandleMetadata(app_id=call.function.app.app_id, function_id=call.function.function_id)
        return pb.FunctionCallFromIdResponse(function_call_id=call.call_id, num_inputs=len(call.inputs), metadata=meta)

    async def FunctionGetCurrentStats(
        self, request: pb.FunctionGetCurrentStatsRequest, caller: Caller
    ) -> pb.FunctionStats:
        function = self.get(request.function_id)
        return pb.FunctionStats(
            backlog=len(function.pending),
            num_total_tasks=len(function.containers),
            num_running_inputs=sum(len(c.running) for c in function.containers),
        )

    async def FunctionCallGetDataOut(
        self, request: pb.FunctionCallGetDataRequest, caller: Caller
    ) -> AsyncIterator[pb.DataChunk]:
        async for chunk in self._channel(request, "data_out").read(request.last_index):
            yield chunk

    async def FunctionCallGetDataIn(
        self, request: pb.FunctionCallGetDataRequest, caller: Caller
    ) -> AsyncIterator[pb.DataChunk]:
        async for chunk in self._channel(request, "data_in").read(request.last_index):
            yield chunk

    async def FunctionCallPutDataOut(self, request: pb.FunctionCallPutDataRequest, caller: Caller) -> None:
        channel = self.get_call(request.function_call_id).data_out
        for chunk in request.data_chunks:
            channel.put(chunk)

    def _channel(self, request: pb.FunctionCallGetDataRequest, which: str) -> DataChannel:
        channel: DataChannel = getattr(self.get_call(request.function_call_id), which)
        return channel

    async def run_now(self, app_name: str, tag: str) -> pb.FunctionGetOutputsItem:
        """Call a Function with no arguments, as its schedule would, and wait for the output."""
        payload = pb.FunctionInput(args=pickle.dumps(((), {})), data_format=pb.DATA_FORMAT_PICKLE)
        call = self.call(self.find(app_name, tag), payload)
        await call.done()
        return call.outputs[0]


def _function_data(definition: pb.Function) -> pb.FunctionData:
    """The newer shape of a definition; the client wants at least one ranked Function in it."""
    data = pb.FunctionData()
    known = {f.name: f for f in pb.Function.DESCRIPTOR.fields}
    for spec, value in definition.ListFields():
        twin = pb.FunctionData.DESCRIPTOR.fields_by_name.get(spec.name)
        if twin is None or twin.type != known[spec.name].type:
            continue
        if spec.is_repeated or spec.message_type is not None:
            getattr(data, spec.name).MergeFrom(value)
        else:
            setattr(data, spec.name, value)
    data.ranked_functions.add(rank=0, function=definition)
    return data


def _apply(options: pb.FunctionOptions, definition: pb.Function) -> None:
    """What `with_options` changes."""
    given = {spec.name: value for spec, value in options.ListFields()}
    scalars = ("concurrency_limit", "timeout_secs", "task_idle_timeout_secs", "max_concurrent_inputs")
    for name in scalars:
        if name in given:
            setattr(definition, name, given[name])
    if options.HasField("concurrency_limit"):
        definition.autoscaler_settings.max_containers = options.concurrency_limit
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    if options.replace_secret_ids:
        del definition.secret_ids[:]
    definition.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        del definition.volume_mounts[:]
    definition.volume_mounts.extend(options.volume_mounts)
