"""How long a cell with nothing in it takes, there and back, and how long a REPL takes to start."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rlm.bench.speed.peers import Peer
from rlm.bench.speed.report import Report, Row
from rlm.config import ReplLimits
from rlm.context import Context, context_from_value
from rlm.errors import InputError, RLMError
from rlm.local.repl import LocalReplLauncher
from rlm.repl.frames import Call
from rlm.repl.session import ReplSession

TARGET_P50_S = 0.001
STARTS = 5
MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Times in seconds: of the first start in a process, of the later ones, and of each cell."""

    first_start_s: float
    later_starts_s: list[float]
    cells_s: list[float]


def measure(cells: int, *, peer: Peer | None) -> Report:
    """Run that many cells, then the same through the peer."""
    if cells < 2:
        raise InputError(f"--cells must be 2 or more: {cells}")
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        found = asyncio.run(run_cells(cells, context_from_value("nothing", Path(folder))))
    theirs = peer.run("cells", cells=cells) if peer is not None else {}

    def row(what: str, seconds: float, peer_field: str, *, target_s: float | None = None, note: str = "") -> Row:
        peer_s = theirs.get(peer_field)
        return Row(
            what=what,
            measured=seconds * MS,
            unit="ms",
            target=None if target_s is None else target_s * MS,
            note=note,
            peer_measured=None if peer_s is None else peer_s * MS,
        )

    percentiles = statistics.quantiles(found.cells_s, n=100, method="inclusive")
    rows = [
        row(
            "a cell with nothing in it, p50",
            statistics.median(found.cells_s),
            "p50_s",
            target_s=TARGET_P50_S,
            note=theirs.get("note", ""),
        ),
        row("a cell with nothing in it, p99", percentiles[98], "p99_s"),
        row("start of the first REPL", found.first_start_s, "start_s", note="it finds out how to isolate"),
        row("start of a later REPL, p50", statistics.median(found.later_starts_s), "none"),
    ]
    return Report(benchmark="cells", rows=rows, peer=peer.name if peer else None, counts=[{"cells": cells}])


async def run_cells(cells: int, context: Context) -> Found:
    """Start REPLs; run the cells in the last one."""
    starts_s: list[float] = []
    cells_s: list[float] = []
    for number in range(STARTS):
        started = time.perf_counter()
        async with ReplSession(LocalReplLauncher(), context, ReplLimits(), no_calls) as repl:
            starts_s.append(time.perf_counter() - started)
            for _ in range(cells if number == STARTS - 1 else 0):
                started = time.perf_counter()
                result = await repl.run("")
                cells_s.append(time.perf_counter() - started)
                if result.error is not None:
                    raise RLMError(f"a cell with nothing in it failed: {result.error}")
    return Found(first_start_s=starts_s[0], later_starts_s=starts_s[1:], cells_s=cells_s)


async def no_calls(call: Call) -> list[object]:
    """Nothing in a cell asks nothing."""
    raise RLMError(f"a cell with nothing in it made a call: {call}")
