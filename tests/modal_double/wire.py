"""gRPC in, one method call out: every RPC of both services goes through `Dispatcher`.

An implementation is a method named like the RPC: `async def DictGet(self, request, caller)` returns the reply (None
stands for an empty one); the streaming ones are async generators. An RPC nobody implements is UNIMPLEMENTED, with its
name in the log.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Stream

from .faults import Faults

log = logging.getLogger("modal_double")

TASK_HEADER = "x-modal-double-task"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the task id of a Function container, or None for a client outside."""

    task_id: str | None
    authorization: str


class _Base(Protocol):
    def __mapping__(self) -> dict[str, Handler]: ...


class _Names:
    """Every attribute is its own name: turns a generated `__mapping__` into a table of names."""

    def __getattr__(self, name: str) -> str:
        return name


class Dispatcher:
    """Routes RPCs to the services, counts them, and lets the faults have their turn."""

    def __init__(self, faults: Faults) -> None:
        self.counts: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._faults = faults
        self._services: list[object] = []

    def register(self, *services: object) -> None:
        self._services.extend(services)

    def servable(self, base: type[_Base]) -> "_Servable":
        """The grpclib handler table of `base` (a generated `*Base` class)."""
        table = base.__mapping__(_Names())  # type: ignore[arg-type]
        handlers = {}
        for path, spec in table.items():
            name = str(spec.func)
            impl = next((fn for s in self._services if (fn := getattr(s, name, None)) is not None), None)
            handlers[path] = Handler(
                self._handler(name, spec, impl), spec.cardinality, spec.request_type, spec.reply_type
            )
        return _Servable(handlers)

    def _handler(
        self, name: str, spec: Handler, impl: Callable[..., Any] | None
    ) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def handle(stream: Stream[Any, Any]) -> None:
            self.counts[name] += 1
            if impl is None:
                self.unknown[name] += 1
                log.error("%s is not implemented by the double", name)
                raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not implemented by the Modal double")
            await self._faults.before(name)
            meta: Mapping[str, str | bytes] = stream.metadata or {}
            caller = Caller(
                task_id=str(meta[TASK_HEADER]) if TASK_HEADER in meta else None,
                authorization=str(meta.get("authorization", "")),
            )
            if spec.cardinality is Cardinality.STREAM_UNARY:
                reply = await impl(stream, caller)
            else:
                request = await stream.recv_message()
                if request is None:
                    raise GRPCError(Status.INVALID_ARGUMENT, f"{name} came without a message")
                if spec.cardinality is Cardinality.UNARY_STREAM:
                    items: AsyncIterator[Any] = impl(request, caller)
                    async for item in items:
                        await stream.send_message(item)
                    return
                reply = await impl(request, caller)
            self._faults.after(name)
            await stream.send_message(spec.reply_type() if reply is None else reply)

        return handle


class _Servable:
    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    def __mapping__(self) -> dict[str, Handler]:
        return self._handlers


def not_found(what: str) -> GRPCError:
    return GRPCError(Status.NOT_FOUND, what)


def invalid(what: str) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, what)


def conflict(what: str) -> GRPCError:
    return GRPCError(Status.FAILED_PRECONDITION, what)
