"""How fast a cell's sub-LLM calls are, all the way: cell, frames, pool, worker process, HTTP, the offline model."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlm.backend import local_backend
from rlm.bench.speed.offline import checked_counts, offline_llm
from rlm.bench.speed.peers import Peer
from rlm.bench.speed.report import Report, Row
from rlm.budget import Budget
from rlm.calls import CallAnswerer
from rlm.config import Limits, Provider, ReplLimits, RunConfig
from rlm.context import context_from_value
from rlm.engine import ignore
from rlm.errors import InputError, RLMError, SubLLMError
from rlm.offline.sub import NOT_FOUND
from rlm.repl.session import ReplSession
from rlm.state import RunState
from rlm.usage import Price, PriceList
from rlm.workers.base import Completion
from rlm.workers.pool import WorkerPool

MODEL = "scripted-sub"
TABLE_POOL_SIZE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Prompts in one call of `parallel_llm_query`, the model's time for each, and what the batch is held to."""

    prompts: int
    latency_s: float
    goal: Literal["slowest call", "seconds", "peer"] | None = None
    goal_s: float | None = None

    def __str__(self) -> str:
        latency = f"{self.latency_s:g} s each" if self.latency_s else "no latency"
        return f"{self.prompts:,} prompts, {latency}"


TABLE = (
    Case(prompts=78, latency_s=0.76, goal="slowest call"),
    Case(prompts=1_000, latency_s=0.5, goal="seconds", goal_s=3.0),
    Case(prompts=1_000, latency_s=0.0, goal="peer"),
)
SLOWEST_CALLS, PEER_RATES = 1.5, 2.0


@dataclass(frozen=True, slots=True)
class Round:
    """One batch: seconds till the cell was over, and of the slowest call in it as the pool saw it."""

    seconds: float
    slowest_call_s: float


class TimedPool(WorkerPool):
    """A pool that remembers how long its slowest call took."""

    slowest_call_s = 0.0

    async def map(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Completion | SubLLMError, None]:  # noqa: ANN401
        """As in a WorkerPool."""
        async with contextlib.aclosing(super().map(*args, **kwargs)) as results:
            async for result in results:
                if isinstance(result, Completion):
                    self.slowest_call_s = max(self.slowest_call_s, result.latency_s)
                yield result


def measure(cases: Sequence[Case], *, pool_size: int, warm_rounds: int, peer: Peer | None) -> Report:
    """Every case in turn, each with workers, REPL and server of its own; then the same cells through the peer.

    Raises: RLMError when a prompt was not answered exactly once, so that the figures would say nothing.
    """
    if pool_size < 1 or warm_rounds < 1 or any(case.prompts < 1 or case.latency_s < 0 for case in cases):
        raise InputError("prompts, rounds and the pool's size must be 1 or more, the latency 0 or more")
    rows: list[Row] = []
    counts = []
    for case in cases:
        with offline_llm(case.latency_s) as base_url:
            rounds = asyncio.run(run_rounds(case, base_url, pool_size, 1 + warm_rounds))
            counts.append({"case": str(case), **checked_counts(base_url, case.prompts * (1 + warm_rounds))})
        theirs = peer_rounds(case, peer) if peer is not None else (None, None)
        cold, warm = rounds[0], sorted(rounds[1:], key=lambda r: r.seconds)[warm_rounds // 2]
        held = pool_size == TABLE_POOL_SIZE
        rows.append(batch_row(case, "cold", cold, theirs[0], held=held))
        rows.append(batch_row(case, "warm", warm, theirs[1], held=held))
        rows.append(Row(what=f"{case}: slowest call, warm", measured=warm.slowest_call_s, unit="s"))
    return Report(benchmark="fanout", rows=rows, peer=peer.name if peer else None, counts=counts)


def batch_row(case: Case, state: str, found: Round, peer_s: float | None, *, held: bool) -> Row:
    """The row of a batch: seconds, or calls a second where the model takes no time. `held` to the case's goal."""
    what = f"{case}: {state}"
    note = "no worker runs yet" if state == "cold" else ""
    if case.latency_s == 0:
        peer_rate = None if peer_s is None else case.prompts / peer_s
        target = None if peer_rate is None or case.goal != "peer" or not held else PEER_RATES * peer_rate
        rate = case.prompts / found.seconds
        return Row(
            what=what,
            measured=rate,
            unit="calls/s",
            target=target,
            more_is_better=True,
            note=note or ("target: twice the peer" if target else ""),
            peer_measured=peer_rate,
        )
    target = case.goal_s if held else None
    if case.goal == "slowest call" and held:
        target = SLOWEST_CALLS * found.slowest_call_s
        note = f"{note}{'; ' * bool(note)}{found.seconds / found.slowest_call_s:.2f} times its slowest call"
    return Row(what=what, measured=found.seconds, unit="s", target=target, note=note, peer_measured=peer_s)


async def run_rounds(case: Case, base_url: str, pool_size: int, rounds: int) -> list[Round]:
    """One REPL, one pool, a batch a round. The first finds no worker."""
    backend = local_backend(Provider(api_key="none", base_url=base_url, scripted=True))
    prices = PriceList({MODEL: Price(input=0.0, output=0.0, cached_input=0.0)})
    found = []
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        context = context_from_value("nothing", Path(folder))
        async with TimedPool(backend.worker_launcher, backend.registry, size=pool_size) as pool:
            state, config = RunState(run_id="bench", max_iterations=1), RunConfig(model=MODEL, recursive_model=MODEL)
            calls = CallAnswerer(state, config, pool, Budget(Limits(), prices), ignore, ask_child=None)
            async with ReplSession(backend.repl_launcher, context, ReplLimits(), calls) as repl:
                for number in range(rounds):
                    pool.slowest_call_s = 0.0
                    started = time.perf_counter()
                    result = await repl.run(cell("parallel_llm_query", case.prompts, f"round {number}"))
                    seconds = time.perf_counter() - started
                    check_answers(result.error or result.stdout, case.prompts)
                    found.append(Round(seconds, pool.slowest_call_s))
    return found


def peer_rounds(case: Case, peer: Peer) -> tuple[float | None, float | None]:
    """Seconds of the peer's batch, as the first thing it does and after another call; each with a fresh server.

    Each in a process of its own: rlms 0.1.3 loses answers of a second batch ("Event loop is closed").
    """
    first = "print(int(llm_query('Is there anything?') == " + repr(NOT_FOUND) + "))"
    batch = cell("llm_query_batched", case.prompts, "round 0")
    seconds = []
    for before in ([], [first]):
        with offline_llm(case.latency_s) as base_url:
            found = peer.run("fanout", base_url=base_url, cells=[*before, batch])
            if not found:
                return None, None
            checked_counts(base_url, case.prompts + len(before))
        check_answers(found["rounds"][-1]["stdout"], case.prompts)
        seconds.append(found["rounds"][-1]["seconds"])
    return seconds[0], seconds[1]


def cell(function: str, prompts: int, name: str) -> str:
    """The cell: one batch, no prompt twice, and how many of the answers are the model's."""
    return (
        f"replies = {function}([f'Of {name}: is there anything in text {{i}}?' for i in range({prompts})])\n"
        f"print(sum(reply == {NOT_FOUND!r} for reply in replies))"
    )


def check_answers(printed: str, prompts: int) -> None:
    """Raises: RLMError unless the cell saw the model's answer to each prompt."""
    if printed.strip() != str(prompts):
        raise RLMError(f"a cell was to see {prompts} answers, but printed: {printed.strip()[-200:]}")
