"""Which input runs where: starts containers, hands out inputs, takes outputs, and picks up after the dead."""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as pb

from .apps import App, AppService
from .calls import Input, InputStatus
from .containers import Container, Housing
from .settings import Settings
from .wire import Caller, log, not_found

if TYPE_CHECKING:
    from .functions import FunctionState

_POLL_S = 30.0
_HEARTBEAT_S = 14.5
"""Just under the client's own interval, so that a cancellation hardly ever finds no heartbeat waiting."""


class Scheduler:
    """Container*, FunctionGetInputs, FunctionPutOutputs, TaskResult, TaskList: what containers say."""

    def __init__(self, settings: Settings, apps: AppService, housing: Housing) -> None:
        self.containers: dict[str, Container] = {}
        self._settings = settings
        self._apps = apps
        self._housing = housing
        self._tasks: set[asyncio.Task[None]] = set()
        apps.on_stop.append(self._stop_app)

    # Deciding

    def enqueue(self, items: Iterable[Input]) -> None:
        functions = {}
        for item in items:
            item.status = InputStatus.PENDING
            item.container = None
            item.call.function.pending.append(item)
            functions[item.call.function.function_id] = item.call.function
        for function in functions.values():
            self.pump(function)

    def pump(self, function: "FunctionState") -> None:
        """Wake the idle containers, and start one more while they cannot take what is pending."""
        definition = function.definition
        if definition is None or not function.app.alive:
            return
        living = [c for c in function.containers if not c.draining]
        for container in living:
            if container.waiting:
                container.wake()
        starting = [c for c in living if not c.started]
        concurrency = max(1, definition.max_concurrent_inputs)
        free = sum(concurrency - len(c.running) for c in living if c.started)
        limit = definition.autoscaler_settings.max_containers or definition.concurrency_limit
        wanted = definition.autoscaler_settings.min_containers
        while (
            len(living) < (limit or self._settings.max_containers)
            and len(starting) < self._settings.starting_at_once
            and (len(function.pending) > free + len(starting) * concurrency or len(living) < wanted)
        ):
            container = self._start(function)
            living.append(container)
            starting.append(container)

    def renew(self, function: "FunctionState", *, keep: bool) -> None:
        """After a publish: containers of an older definition leave when they are done, and new ones take over."""
        for container in function.containers:
            if not keep or container.definition is not function.definition:
                container.drain()
        if keep:
            self.pump(function)

    def _start(self, function: "FunctionState") -> Container:
        container = Container(function, function.app, self._housing)
        function.containers.append(container)
        self.containers[container.task_id] = container
        task = asyncio.get_running_loop().create_task(container.run(self._on_end))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return container

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a container task failed", exc_info=exc)

    def _on_end(self, container: Container) -> None:
        """Its inputs run again elsewhere, or fail when that has happened too often."""
        function = container.function
        function.containers.remove(container)
        del self.containers[container.task_id]
        again = []
        for item in list(container.running.values()):
            if item.cancelled or not container.app.alive:
                self._terminated(item)
                continue
            if not container.preempted:
                item.crashes += 1
            if item.crashes > self._settings.crash_retries:
                self._fail(item, pb.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, "The container kept dying")
            else:
                again.append(item)
        container.running.clear()
        if not container.started and not container.draining:
            result = container.failure or pb.GenericResult(
                status=pb.GenericResult.GENERIC_STATUS_INIT_FAILURE,
                exception=f"The container of Function {function.name} ended before it was ready; see its log",
            )
            while function.pending:
                item = function.pending.popleft()
                item.call.finish(item, result, pb.DATA_FORMAT_UNSPECIFIED)
        for item in reversed(again):
            item.status, item.container = InputStatus.PENDING, None
            if item.deadline is not None:
                item.deadline.cancel()
            function.pending.appendleft(item)
        self.pump(function)

    def cancel(self, item: Input, *, kill: bool = False) -> None:
        """A pending input is terminated at once; a running one is told through the heartbeat, or killed."""
        if item.status is InputStatus.DONE:
            return
        item.cancelled = True
        if item.status is InputStatus.PENDING:
            with contextlib.suppress(ValueError):
                item.call.function.pending.remove(item)
            self._terminated(item)
        elif item.container is not None:
            if kill:
                item.container.kill()
            else:
                item.container.to_cancel.append(item.input_id)
                item.container.wake()

    def _terminated(self, item: Input) -> None:
        self._fail(item, pb.GenericResult.GENERIC_STATUS_TERMINATED, "The input was cancelled")

    def _fail(self, item: Input, status: "pb.GenericResult.GenericStatus.ValueType", why: str) -> None:
        item.call.finish(item, pb.GenericResult(status=status, exception=why), pb.DATA_FORMAT_UNSPECIFIED)

    def _timed_out(self, item: Input) -> None:
        container = item.container
        if item.status is not InputStatus.RUNNING or container is None:
            return
        limit = container.definition.timeout_secs if container.definition else 0
        container.running.pop(item.input_id, None)
        self._fail(item, pb.GenericResult.GENERIC_STATUS_TIMEOUT, f"Task exceeded its timeout of {limit}s")
        container.draining = True
        container.kill()

    async def _stop_app(self, app: App) -> None:
        mine = [c for c in self.containers.values() if c.app is app]
        for function in {c.function.function_id: c.function for c in mine}.values():
            while function.pending:
                self._terminated(function.pending.popleft())
        await asyncio.gather(*(c.stop(self._settings.stop_grace_s) for c in mine))

    async def close(self) -> None:
        for container in list(self.containers.values()):
            container.draining = True
            container.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What containers say

    def _container(self, caller: Caller) -> Container:
        container = self.containers.get(caller.task_id or "")
        if container is None:
            raise not_found(f"there is no container {caller.task_id}")
        return container

    async def ContainerHello(self, request: object, caller: Caller) -> None:
        self._container(caller)

    async def ContainerHeartbeat(
        self, request: pb.ContainerHeartbeatRequest, caller: Caller
    ) -> pb.ContainerHeartbeatResponse:
        container = self._container(caller)
        try:
            async with asyncio.timeout(_HEARTBEAT_S):
                while not container.to_cancel and not container.ended.is_set():
                    await container.news.wait()
        except TimeoutError:
            pass
        if not container.to_cancel:
            return pb.ContainerHeartbeatResponse()
        event = pb.CancelInputEvent(input_ids=list(container.to_cancel))
        container.to_cancel.clear()
        return pb.ContainerHeartbeatResponse(cancel_input_event=event)

    async def ContainerStop(self, request: pb.ContainerStopRequest, caller: Caller) -> pb.ContainerStopResponse:
        container = self.containers.get(request.task_id)
        if container is not None:
            if request.graceful:
                container.drain()
            else:
                container.preempted = True
                await container.stop(self._settings.stop_grace_s)
        return pb.ContainerStopResponse()

    async def TaskResult(self, request: pb.TaskResultRequest, caller: Caller) -> None:
        container = self._container(caller)
        container.failure = request.result

    async def TaskList(self, request: pb.TaskListRequest, caller: Caller) -> pb.TaskListResponse:
        stats = [
            pb.TaskStats(
                task_id=c.task_id,
                app_id=c.app.app_id,
                app_description=c.app.description,
                enqueued_at=c.enqueued_at,
                started_at=c.enqueued_at,
            )
            for c in self.containers.values()
            if request.app_id in ("", c.app.app_id)
        ]
        return pb.TaskListResponse(tasks=stats)

    async def FunctionGetDynamicConcurrency(
        self, request: pb.FunctionGetDynamicConcurrencyRequest, caller: Caller
    ) -> pb.FunctionGetDynamicConcurrencyResponse:
        return pb.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency)

    async def FunctionGetInputs(
        self, request: pb.FunctionGetInputsRequest, caller: Caller
    ) -> pb.FunctionGetInputsResponse:
        container = self._container(caller)
        function = container.function
        if not container.started:
            container.started = True
            self.pump(function)
        if not await self._something_for(container):
            kill = pb.FunctionGetInputsItem(kill_switch=True)
            return pb.FunctionGetInputsResponse(inputs=[kill] if container.draining else [])
        if request.batch_max_size > 1 and len(function.pending) < request.batch_max_size:
            await asyncio.sleep(request.batch_linger_ms / 1000)
        items: list[pb.FunctionGetInputsItem] = []
        while function.pending and len(items) < max(1, request.batch_max_size):
            items.append(self._hand_out(function.pending.popleft(), container))
        return pb.FunctionGetInputsResponse(inputs=items)

    async def _something_for(self, container: Container) -> bool:
        """Wait for an input; False when it is time to leave, or nothing came for a while."""
        window_s = float(self._settings.scaledown_s)
        if container.definition is not None and container.definition.autoscaler_settings.scaledown_window:
            window_s = float(container.definition.autoscaler_settings.scaledown_window)
        idle_until = container.last_active + window_s
        until = time.monotonic() + _POLL_S
        container.waiting += 1
        try:
            while True:
                if container.draining or container.ended.is_set():
                    return False
                if container.function.pending:
                    return True
                now = time.monotonic()
                if now >= idle_until and not container.running and self._spare(container):
                    container.draining = True
                    return False
                if now >= until:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.05, min(idle_until, until) - now)):
                        await container.news.wait()
        finally:
            container.waiting -= 1

    def _spare(self, container: Container) -> bool:
        definition = container.definition
        least = definition.autoscaler_settings.min_containers if definition else 0
        return sum(not c.draining for c in container.function.containers) > least

    def _hand_out(self, item: Input, container: Container) -> pb.FunctionGetInputsItem:
        item.status = InputStatus.RUNNING
        item.container = container
        item.started_at = time.time()
        container.running[item.input_id] = item
        definition = container.definition
        if definition is not None and definition.timeout_secs:
            loop = asyncio.get_running_loop()
            item.deadline = loop.call_later(definition.timeout_secs, self._timed_out, item)
        return pb.FunctionGetInputsItem(
            input_id=item.input_id,
            input=item.payload,
            function_call_id=item.call.call_id,
            function_call_invocation_type=item.call.invocation,
            retry_count=item.attempt + item.crashes,
            function_map_idx=item.idx,
        )

    async def FunctionPutOutputs(self, request: pb.FunctionPutOutputsRequest, caller: Caller) -> None:
        container = self._container(caller)
        for output in request.outputs:
            item = container.running.get(output.input_id)
            if item is None:
                continue
            status = output.result.status
            terminated = status == pb.GenericResult.GENERIC_STATUS_TERMINATED
            if terminated and not item.cancelled and (container.preempted or container.draining):
                continue  # its end is the preemption's doing; `_on_end` runs it again
            del container.running[output.input_id]
            container.last_active = time.monotonic()
            if item.deadline is not None:
                item.deadline.cancel()
            if status == pb.GenericResult.GENERIC_STATUS_FAILURE and self._retry(item, container):
                continue
            if terminated and not output.result.exception:
                output.result.exception = "The input was cancelled"
            item.call.finish(item, output.result, output.data_format)
        self.pump(container.function)

    def _retry(self, item: Input, container: Container) -> bool:
        """Whether the Function's own retries allow another attempt; if so, it is on its way."""
        policy = container.definition.retry_policy if container.definition else None
        if policy is None or item.attempt >= policy.retries or item.cancelled:
            return False
        delay_ms = policy.initial_delay_ms * policy.backoff_coefficient**item.attempt
        item.attempt += 1
        item.status = InputStatus.PENDING
        item.container = None
        delay_s = min(delay_ms, policy.max_delay_ms or delay_ms) / 1000
        asyncio.get_running_loop().call_later(delay_s, self._requeue, item)
        return True

    def _requeue(self, item: Input) -> None:
        if item.status is InputStatus.PENDING and not item.cancelled:
            self.enqueue([item])

    # Faults

    async def fault_kill_container(self, task_id: str, after_s: float) -> None:
        container = self.containers.get(task_id)
        if container is None:
            raise not_found(f"there is no container {task_id}")
        asyncio.get_running_loop().call_later(after_s, container.kill)

    async def fault_preempt(self, function: str) -> int:
        chosen = [
            c for c in self.containers.values() if c.running and function in (c.function.name, c.function.function_id)
        ]
        for container in chosen:
            container.preempted = True
        await asyncio.gather(*(c.stop(self._settings.stop_grace_s) for c in chosen))
        return len(chosen)
