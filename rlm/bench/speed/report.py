"""What a benchmark found: rows of figures, with their targets and what a peer reached in the same run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PLAIN_WIDTH_CHARS = 1_000  # a line for each row


def machine() -> dict[str, Any]:
    """What the figures were measured on. `load` is the load average over the last minute, before the benchmark."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, in `unit`. `target` None has none; `peer_measured` None was not measured, or cannot be."""

    what: str
    measured: float
    unit: str
    target: float | None = None
    more_is_better: bool = False
    note: str = ""
    peer_measured: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.more_is_better else self.measured <= self.target

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; under 1, the peer is better."""
        if not self.peer_measured or not self.measured:
            return None
        return self.measured / self.peer_measured if self.more_is_better else self.peer_measured / self.measured

    def as_json(self) -> dict[str, Any]:
        """The row as --json prints it."""
        return {
            "what": self.what,
            "measured": _rounded(self.measured),
            "unit": self.unit,
            "target": _rounded(self.target),
            "met": self.met,
            "more_is_better": self.more_is_better,
            "peer_measured": _rounded(self.peer_measured),
            "ratio": _rounded(self.ratio),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one benchmark found. `peer` is the name and version of the peer; `counts` are for whoever doubts."""

    benchmark: str
    rows: Sequence[Row]
    peer: str | None
    counts: Sequence[Mapping[str, Any]] = ()
    machine: Mapping[str, Any] = field(default_factory=machine)

    def as_json(self) -> dict[str, Any]:
        """The object that --json prints."""
        return {
            "benchmark": self.benchmark,
            "peer": self.peer,
            "machine": dict(self.machine),
            "rows": [row.as_json() for row in self.rows],
            "counts": [dict(count) for count in self.counts],
        }

    def show(self) -> None:
        """Print a table on stdout: with rules on a terminal, plain in a pipe."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        terminal = sys.stdout.isatty()
        console = Console(file=sys.stdout, width=None if terminal else PLAIN_WIDTH_CHARS, highlight=False)
        table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, title_justify="left")
        table.add_column(f"{self.benchmark}, {describe(self.machine)}", overflow="fold")
        for heading in ("measured", "target", "met"):
            table.add_column(heading, justify="right", no_wrap=True)
        if self.peer is not None:
            table.add_column(self.peer, justify="right", no_wrap=True)
            table.add_column("times better", justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for row in self.rows:
            bound = "at least " if row.more_is_better else "at most "
            cells = [row.what, _figure(row.measured, row.unit)]
            cells.append("" if row.target is None else bound + _figure(row.target, row.unit))
            cells.append("" if row.met is None else "yes" if row.met else "NO")
            if self.peer is not None:
                cells.append("" if row.peer_measured is None else _figure(row.peer_measured, row.unit))
                cells.append("" if row.ratio is None else f"{row.ratio:.3g}")
            table.add_row(*cells, row.note, style="red" if row.met is False else None)
        console.print(table)


def describe(of: Mapping[str, Any]) -> str:
    """The same in a few words."""
    return f"{of['cores']} cores, load {of['load']}"


def _figure(value: float, unit: str) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
