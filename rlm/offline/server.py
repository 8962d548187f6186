"""An OpenAI-compatible server on loopback that answers from rules instead of a model.

One program for three uses: the provider in tests (through the real `openai` client), the demo model of a run
without a key, and the server of `rlm offline-llm`. It can be slow, fail, refuse, hang and drop on demand, always
the same way for the same seed, and it counts what it was asked.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn

from rlm.errors import InputError
from rlm.offline.model import OfflineModel
from rlm.offline.settings import Fault, OfflineSettings, OfflineStats, WrongAnswer, read_script

__all__ = [
    "RELAY_NOTICE",
    "SCRIPTED_NOTICE",
    "Fault",
    "OfflineServer",
    "OfflineSettings",
    "OfflineStats",
    "WrongAnswer",
    "read_script",
    "run_offline",
    "serve_offline",
]

SCRIPTED_NOTICE = "Offline: these answers come from a scripted model that searches by rules; no LLM is asked."
RELAY_NOTICE = "Offline: whoever writes the reply files answers for the root LM."
HOST = "127.0.0.1"


class _ThreadServer(uvicorn.Server):
    """A uvicorn server that another thread starts and ends, both without waiting for a tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self.on_tick(0)
        self.up.set()
        await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the thread ended by itself
                self._loop.call_soon_threadsafe(self._end.set)


@dataclass(frozen=True, slots=True)
class OfflineServer:
    """A running server."""

    base_url: str
    """What a client of OpenAI takes: `http://127.0.0.1:PORT/v1`."""
    model: OfflineModel

    def stats(self) -> OfflineStats:
        """The counts up to now. Callable from any thread."""
        return self.model.stats()


@contextmanager
def serve_offline(settings: OfflineSettings | None = None) -> Iterator[OfflineServer]:
    """Serve on a free port of 127.0.0.1, in a thread with its own event loop, until the block ends.

    The thread keeps a caller's blocked event loop from delaying the answers. Ending cuts open requests off.
    Raises: OSError when no port can be had.
    """
    model = OfflineModel(settings or OfflineSettings())
    with _listen(0) as listener:
        server = _ThreadServer(_config(model))
        model.connections = server.server_state.connections
        thread = threading.Thread(target=server.run, args=([listener],), name="offline-model", daemon=True)
        thread.start()
        try:
            while not server.up.wait(0.5):
                if not thread.is_alive():
                    raise OSError("the offline model could not be started")
            yield OfflineServer(_url(listener), model)
        finally:
            server.end()
            thread.join()


def run_offline(settings: OfflineSettings, *, port: int, on_listening: Callable[[str], None]) -> None:
    """Serve in the foreground until SIGINT or SIGTERM. `on_listening` gets the base URL once requests can come.

    Raises: InputError when the port is taken.
    """
    model = OfflineModel(settings)
    try:
        listener = _listen(port)
    except OSError as exc:
        raise InputError(f"cannot listen on {HOST}:{port}: {exc.strerror}; name another port, or 0 for any") from exc
    with listener:
        server = uvicorn.Server(_config(model))
        model.connections = server.server_state.connections
        on_listening(_url(listener))
        server.run([listener])


def _listen(port: int) -> socket.socket:
    return socket.create_server((HOST, port), backlog=2048)


def _url(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}/v1"


def _config(model: OfflineModel) -> uvicorn.Config:
    return uvicorn.Config(
        model,
        lifespan="off",
        ws="none",
        http="httptools",
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_keep_alive=600,  # longer than any client keeps an idle connection
        timeout_graceful_shutdown=1,
    )
