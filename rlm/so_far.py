"""What a run leaves that ends without a result: what was spent, and what was found."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rlm import events
from rlm.events import Event
from rlm.run import RunResult


@dataclass(slots=True, kw_only=True)
class SoFar:
    """Gathered from the events of a run. `found` is its last cell that gave something."""

    started: events.RunStarted | None = None
    found: events.CellFinished | None = None
    _iterations: int = 0
    _spent: events.Spent | None = None
    _failed: events.RunFailed | None = None
    _began: float = field(default_factory=time.monotonic)

    def hear(self, event: Event) -> None:
        """Take one event in. Those of child runs do not count: what they spend is in their parent's figures."""
        if self.started is None and isinstance(event, events.RunStarted):
            self.started = event
        if self.started is None or event.run_id != self.started.run_id:
            return
        match event:
            case events.RootReplied():
                self._iterations = event.iteration
            case events.CellFinished(result=events.CellOutput() as output) if output.stdout or output.value:
                self.found = event
            case events.Spent():
                self._spent = event
            case events.RunFailed():
                self._failed = event

    def result(self, stopped_by: str) -> RunResult:
        """The same as a result that has no answer. Where the run could not tell its end, its usage is not known."""
        spent = self._failed or self._spent
        return RunResult(
            answer=None,
            value=None,
            stopped_by=stopped_by,
            iterations=self._iterations,
            sub_calls=0 if spent is None else spent.sub_calls,
            usage={} if self._failed is None else self._failed.usage,
            cost_usd=0.0 if spent is None else spent.cost_usd,
            run_id="" if self.started is None else self.started.run_id,
            elapsed_s=time.monotonic() - self._began,
            scripted=self.started is not None and self.started.scripted,
        )
