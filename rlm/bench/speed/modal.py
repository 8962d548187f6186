"""How long the parts of a run take on Modal's wire: on a stand-in of loopback, so without Modal's own latencies."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from rlm import events
from rlm.bench.speed.report import Report, Row
from rlm.config import RunConfig
from rlm.errors import InputError, RLMError
from rlm.modal.app import modal_app
from rlm.modal.runs import follow
from rlm.offline.server import OfflineSettings, serve_offline
from rlm.runs.request import Inline, RunRequest

WARM_RUNS = 5
CELLS_EACH = 30
MS = 1_000
EMPTY, CALL = "", "llm_query('a')"


def script() -> tuple[str, ...]:
    """What the root LM replies: empty cells, cells with one sub-LLM call, the answer."""
    empty, calls = ("".join(f"```repl\n{code}\n```\n" for _ in range(CELLS_EACH)) for code in ("pass", CALL))
    return empty, calls, "FINAL(done)"


def measure() -> Report:
    """Make a run on a fresh App, then some more on the same.

    Raises: InputError unless Modal is the stand-in: another could not reach the offline model of this machine.
    """
    if urlsplit(os.environ.get("MODAL_SERVER_URL", "")).hostname != "127.0.0.1":
        raise InputError("this is for the stand-in: python -m tests.modal_double -- rlm bench modal")
    with serve_offline(OfflineSettings(script=script())) as server, env_file(server.base_url):
        app_module = modal_app()  # reads the file; talks to Modal, so before there is an event loop
        runs = asyncio.run(make_runs(app_module, 1 + WARM_RUNS))
    cold, warm = runs[0], runs[1:]
    cells = [seconds for run in runs for seconds in run.cells_s[EMPTY]]
    calls = [seconds for run in warm for seconds in run.cells_s[CALL]]
    rows = [
        Row(what="run starting until the first root-LM call, first run", measured=cold.starting_s * MS, unit="ms"),
        Row(
            what="run starting until the first root-LM call, later runs, p50",
            measured=statistics.median(run.starting_s for run in warm) * MS,
            unit="ms",
            note="a REPL Sandbox is made for every run",
        ),
        Row(what="a cell with nothing in it, p50", measured=statistics.median(cells) * MS, unit="ms"),
        Row(
            what="a cell with the first llm_query, cold",
            measured=cold.cells_s[CALL][0] * MS,
            unit="ms",
            note="starts a worker Sandbox",
        ),
        Row(
            what="a cell with the first llm_query of a later run, p50",
            measured=statistics.median(run.cells_s[CALL][0] for run in warm) * MS,
            unit="ms",
            note="finds the worker in the registry",
        ),
        Row(what="a cell with one llm_query, warm, p50", measured=statistics.median(calls) * MS, unit="ms"),
    ]
    return Report(benchmark="modal", rows=rows, peer=None, counts=[{"runs": len(runs)}])


class Timed:
    """The times of one run, in seconds, gathered from its events."""

    def __init__(self) -> None:
        self.starting_s = 0.0
        self.cells_s: dict[str, list[float]] = {EMPTY: [], CALL: []}
        self._code = ""

    def __call__(self, event: events.Event) -> None:
        """Take one event in."""
        match event:
            case events.RunStarted():
                self.starting_s = event.starting_s
            case events.CellStarted():
                self._code = CALL if event.code == CALL else EMPTY
            case events.CellFinished():
                self.cells_s[self._code].append(event.seconds)


async def make_runs(app_module: ModuleType, count: int) -> list[Timed]:
    """So many runs, one after another, on one App."""
    runs = [Timed() for _ in range(count)]
    async with app_module.app.run():
        for run in runs:
            request = RunRequest(question="q", source=Inline("c"), config=RunConfig())
            result = await follow(request, app_module.solve_live, app_module.contexts, run)
            if result.answer != "done":
                raise RLMError(f"the run on the stand-in went wrong: {result}")
    return runs


@contextmanager
def env_file(base_url: str) -> Iterator[None]:
    """Name a file with the provider's variables on the command line, where the app looks for it."""
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        path = Path(folder) / "provider.env"
        path.write_text(f"OPENAI_API_KEY=none\nOPENAI_BASE_URL={base_url}\n", "utf-8")
        sys.argv += ["--env-file", str(path)]
        yield
