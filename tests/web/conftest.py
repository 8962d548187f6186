"""The API behind uvicorn on loopback, over a store that only remembers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import uvicorn

from rlm.runs.request import RunRequest
from rlm.runs.store import RunRecord
from rlm.web.app import routes
from rlm.web.door import Door

TOKEN = "the-tökén"


@dataclass
class Remembered:
    """A `RunStore` of runs that are never made."""

    requests: list[RunRequest] = field(default_factory=list)
    records: dict[str, RunRecord] = field(default_factory=dict)

    async def submit(self, request: RunRequest) -> None:
        self.requests.append(request)
        self.records[request.run_id] = RunRecord(id=request.run_id, state="queued")

    async def get(self, run_id: str) -> RunRecord | None:
        return self.records.get(run_id)

    async def cancel(self, run_id: str) -> RunRecord | None:
        record = self.records.get(run_id)
        if record is not None:
            self.records[run_id] = record = replace(record, state="cancelled")
        return record


@dataclass(frozen=True)
class Served:
    """The API as it is served."""

    port: int
    store: Remembered

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(token: str = TOKEN, **limits: float) -> Iterator[Served]:
    """Serve the API in a thread."""
    store = Remembered()
    config = uvicorn.Config(Door(routes(store), token=token, **limits), log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Served(listener.getsockname()[1], store)
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as served:
        yield served
