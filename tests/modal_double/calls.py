"""Function calls: the inputs, what became of them, and the data channels of generators and web Functions."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from modal_proto import api_pb2 as pb

from .ids import new_id

if TYPE_CHECKING:
    from .containers import Container
    from .functions import FunctionState


class InputStatus(Enum):
    PENDING = auto()
    RUNNING = auto()
    DONE = auto()


class DataChannel:
    """Numbered chunks, from 1 on; it never ends by itself, since the client would only come back at once.

    A chunk put again under its number replaces the first, so an input that is run again goes on where it was.
    """

    def __init__(self) -> None:
        self.chunks: dict[int, pb.DataChunk] = {}
        self._news = asyncio.Event()

    def put(self, chunk: pb.DataChunk) -> None:
        self.chunks[chunk.index] = chunk
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, last_index: int) -> AsyncIterator[pb.DataChunk]:
        while True:
            while (chunk := self.chunks.get(last_index + 1)) is not None:
                yield chunk
                last_index += 1
            await self._news.wait()


@dataclass(eq=False)
class Input:
    """One input of a call. `attempt` counts the runs that the client was told of, `crashes` the others."""

    call: "Call"
    idx: int
    payload: pb.FunctionInput
    input_id: str = field(default_factory=lambda: new_id("in"))
    status: InputStatus = InputStatus.PENDING
    attempt: int = 0
    crashes: int = 0
    cancelled: bool = False
    started_at: float = 0.0
    container: "Container | None" = None
    deadline: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class Call:
    """A `.remote`, `.spawn` or `.map` with its inputs and outputs."""

    function: "FunctionState"
    invocation: "pb.FunctionCallInvocationType.ValueType" = pb.FUNCTION_CALL_INVOCATION_TYPE_UNSPECIFIED
    call_id: str = field(default_factory=lambda: new_id("fc"))
    created_at: float = field(default_factory=time.time)
    inputs: list[Input] = field(default_factory=list)
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)
    cleared: int = 0
    data_in: DataChannel = field(default_factory=DataChannel)
    data_out: DataChannel = field(default_factory=DataChannel)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def unfinished(self) -> int:
        return sum(i.status is not InputStatus.DONE for i in self.inputs)

    def finish(self, item: Input, result: pb.GenericResult, data_format: int) -> None:
        """The result of an input."""
        if item.status is InputStatus.DONE:
            return
        item.status = InputStatus.DONE
        if item.deadline is not None:
            item.deadline.cancel()
        self.outputs.append(
            pb.FunctionGetOutputsItem(
                result=result,
                idx=item.idx,
                input_id=item.input_id,
                data_format=data_format,  # type: ignore[arg-type]
                task_id=item.container.task_id if item.container else "",
                input_started_at=item.started_at,
                output_created_at=time.time(),
                retry_count=item.attempt,
            )
        )
        self._news.set()
        self._news = asyncio.Event()

    async def get_outputs(self, request: pb.FunctionGetOutputsRequest) -> pb.FunctionGetOutputsResponse:
        """What there is past `last_entry_id` and within the indices asked for; waits for it as long as asked to."""
        until = time.monotonic() + request.timeout
        after = int((request.last_entry_id or "0").split("-")[0])
        while True:
            found = list(self.outputs[after:])
            if request.HasField("start_idx"):
                found = [o for o in self.outputs if request.start_idx <= o.idx <= request.end_idx]
            if request.max_values:
                found = found[: request.max_values]
            left_s = until - time.monotonic()
            if found or left_s <= 0:
                break
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                continue
        last = f"{len(self.outputs)}-0" if found else request.last_entry_id
        return pb.FunctionGetOutputsResponse(
            outputs=found, idxs=[o.idx for o in found], last_entry_id=last, num_unfinished_inputs=self.unfinished
        )

    async def done(self) -> None:
        """Wait until every input has its output."""
        while self.unfinished:
            await self._news.wait()
