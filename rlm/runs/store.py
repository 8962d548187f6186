"""Runs that go on without whoever asked for them: started, looked at, cancelled by their id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rlm.events import JsonValue
from rlm.runs.request import RunRequest

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset(("succeeded", "failed", "cancelled"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """How a run stands. What is not known yet is None; `value` is what `answer` is the text of, `error` tells why a
    run has failed."""

    id: str
    state: State
    answer: str | None = None
    value: JsonValue = None
    stopped_by: str | None = None
    iterations: int | None = None
    usage: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cost_usd: float | None = None
    error: str | None = None


class RunStore(Protocol):
    """Starts runs and remembers them."""

    async def submit(self, request: RunRequest) -> None:
        """Start the run, known by the request's `run_id` from now on."""

    async def get(self, run_id: str) -> RunRecord | None:
        """How the run stands, or None if there is none of that id."""

    async def cancel(self, run_id: str) -> RunRecord | None:
        """End the run, if it has not ended yet; how it stands then, or None if there is none of that id."""
