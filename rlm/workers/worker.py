"""A worker as its pool sees it, and where it is in its life."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from rlm.workers.base import WorkerClient, WorkerEntry


class State(enum.Enum):
    """Where a worker is in its life.

    SOUGHT ─▶ STARTING ─▶ READY ⇄ RESTING ─▶ RETIRED
       └────────────────────▲ ⇅
                          SUSPECT ─▶ EVICTED
    """

    SOUGHT = enum.auto()
    """Looked for in the registry, or waited for while another run starts it."""
    STARTING = enum.auto()
    """This pool is starting it."""
    READY = enum.auto()
    """Takes prompts."""
    RESTING = enum.auto()
    """It said that it is full: takes none for a while."""
    SUSPECT = enum.auto()
    """Failed a call, or completes none: takes none while it is asked whether it is well."""
    RETIRED = enum.auto()
    """Near the end of its life: finishes what it has. Its slot is free."""
    EVICTED = enum.auto()
    """Found dead: it is terminated, and must not come back from the registry. Its slot is free."""


ON_THE_WAY = frozenset({State.SOUGHT, State.STARTING})
RUNNING = frozenset({State.READY, State.RESTING, State.SUSPECT})


@dataclass(slots=True, eq=False)
class Worker:
    """One worker of a pool. `entry` and `client` are there from READY on, `slot` once one was chosen."""

    state: State = State.SOUGHT
    slot: int = -1
    entry: WorkerEntry = field(init=False)
    client: WorkerClient = field(init=False)
    ours: bool = False  # started by this pool
    until: float = 0  # RESTING: takes no prompts until then. SOUGHT: is left its share till then. On a monotonic clock
    in_flight: int = 0
    completed: int = 0
    completed_at_last_watch: int = 0
    strikes: int = 0  # calls that failed since it completed one
    task: asyncio.Task[None] | None = None  # what is being done about it
