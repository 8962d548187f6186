"""How far a run has come, gathered from its events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rlm import events
from rlm.events import Event
from rlm.usage import TokenUsage

ASKING, RUNNING, WAITING = "asking the root LM", "running a cell", "waiting for sub-LLMs"


@dataclass(slots=True, kw_only=True)
class Standing:
    """How far a run has come, gathered from its events and those of its child runs.

    `iteration` is the one that goes on: its reply is waited for, or its cells run.
    """

    iteration: int = 0
    max_iterations: int = 0
    asked: int = 0
    finished: int = 0
    in_flight: int = 0
    retries: int = 0
    errors: int = 0
    tokens: TokenUsage = field(default_factory=TokenUsage)
    cost: str = ""
    doing: str = "starting"
    started: float = field(default_factory=time.monotonic)
    depths: dict[str, int] = field(default_factory=dict)
    _has_replied: bool = False

    def hear(self, event: Event) -> None:  # noqa: C901  # a table of events
        """Take one event in."""
        depth = self.depths.get(event.run_id, 0)
        match event:
            case events.RunStarted():
                self.depths[event.run_id] = event.depth
                self.doing = ASKING
                if event.depth == 0:
                    self.iteration, self.max_iterations = 1, event.max_iterations
            case events.MessageSent() if depth == 0 and self._has_replied:  # the next request follows
                self._has_replied = False
                self.doing = ASKING if self.iteration < self.max_iterations else "asking for the answer alone"
                self.iteration = min(self.iteration + 1, self.max_iterations)
            case events.RootReplied():
                self.tokens += event.usage
                self.doing = "the root LM has replied"
                if depth == 0:
                    self.iteration, self._has_replied = event.iteration, True
            case events.CellStarted():
                self.doing = RUNNING
            case events.CellFinished():
                self.doing = "a cell has run"
            case events.SubCallsStarted():
                self.asked += event.count
                self.doing = WAITING
            case events.SubCallFinished():
                self.finished += 1
                self.in_flight = event.in_flight
                self.errors += event.error is not None
                self.tokens += event.usage
                self.doing = WAITING if self.finished < self.asked else RUNNING
            case events.SubCallRetried():
                self.retries += 1
            case events.Spent() if depth == 0:
                self.cost = "cost unknown" if event.cost_usd is None else f"${event.cost_usd:.4f}"

    def steps(self) -> str:
        """What goes on, and what was spent."""
        iteration = f"iteration {self.iteration}/{self.max_iterations}" if self.iteration else ""
        return _joined(iteration, self.doing, f"{self.tokens.total_tokens:,} tokens", self.cost)

    def calls(self) -> str:
        """How far the sub-calls have come; nothing when there were none."""
        counts = ((self.in_flight, "in flight"), (self.retries, "retries"), (self.errors, "errors"))
        done = f"sub-calls {self.finished:,}/{self.asked:,}" if self.asked else ""
        return _joined(done, *(f"{count:,} {name}" for count, name in counts if count))

    def line(self) -> str:
        """All of it in a line."""
        return _joined(self.steps(), self.calls())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
