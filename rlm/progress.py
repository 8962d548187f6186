"""What a run looks like while it goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO, cast

from rlm import events
from rlm.events import Event
from rlm.terminal import Outlet, in_one_line, visible
from rlm.usage import TokenUsage

if TYPE_CHECKING:
    from rich.console import RenderableType

OUTPUT_LINES_SHOWN = 12
CODE_LINES_SHOWN = 30
PLAIN_LINE_EVERY_S = 2.0


class View(Protocol):
    """Shows events as they happen. Use as `with`."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen in order."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


@dataclass(slots=True)
class Standing:
    """How far a run has come, gathered from its events and those of its child runs."""

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

    def hear(self, event: Event) -> None:  # noqa: C901  # a table of events
        """Take one event in."""
        depth = self.depths.get(event.run_id, 0)
        match event:
            case events.RunStarted():
                self.depths[event.run_id] = event.depth
                self.doing = "asking the root LM"
                if event.depth == 0:
                    self.max_iterations = event.max_iterations
            case events.RootReplied():
                self.tokens += event.usage
                if depth == 0:
                    self.iteration = event.iteration
            case events.CellStarted():
                self.doing = "running a cell"
            case events.CellFinished():
                self.doing = "asking the root LM"
            case events.SubCallsStarted():
                self.asked += event.count
                self.doing = "waiting for sub-LLMs"
            case events.SubCallFinished():
                self.finished += 1
                self.in_flight = event.in_flight
                self.errors += event.error is not None
                self.tokens += event.usage
            case events.SubCallRetried():
                self.retries += 1
            case events.Spent() if depth == 0:
                self.cost = "cost unknown" if event.cost_usd is None else f"${event.cost_usd:.4f}"

    def line(self) -> str:
        """All of it in a line."""
        parts = [f"iteration {self.iteration}/{self.max_iterations}", self.doing]
        if self.asked:
            parts.append(f"sub-calls {self.finished:,}/{self.asked:,} ({self.in_flight} in flight)")
        parts += [f"{count} {name}" for name, count in (("retries", self.retries), ("errors", self.errors)) if count]
        parts.append(f"{self.tokens.total_tokens:,} tokens")
        if self.cost:
            parts.append(self.cost)
        return " · ".join(parts)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


def cell_output(event: events.CellFinished) -> tuple[str, bool]:
    """What a cell gave, cut to a few lines for the eye, and whether it went wrong."""
    result = event.result
    if result is None:
        return visible(f"the REPL died: {event.error}"), True
    final = "" if result.final is None else f"answer: {result.final.text}"
    parts = [result.stdout, result.stderr, result.value, result.error or "", final]
    return some_lines(
        "\n".join(part.rstrip("\n") for part in parts if part), OUTPUT_LINES_SHOWN
    ), result.error is not None


def some_lines(text: str, most: int) -> str:
    """The first and last lines of `text`, made harmless, and how many are left out between them."""
    lines = visible(text).split("\n")
    if len(lines) > most:
        half = most // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half:,} more lines ...", *lines[-half:]]
    return "\n".join(line[:500] for line in lines)


class PlainView:
    """Lines on a pipe or in a file: one for each step, and one every other second while sub-calls are under way."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = Outlet(out)
        self._standing = Standing()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._standing.hear(event)
        now = time.monotonic()
        match event:
            case events.SubCallFinished():
                if now - self._last_line >= PLAIN_LINE_EVERY_S:
                    self._say(self._standing.line())
            case events.RunStarted() | events.Spent():
                self._say(self._standing.line())
            case events.Notice():
                self._say(f"note: {event.text}")
            case events.CellFinished():
                output, failed = cell_output(event)
                self._say(f"cell {'failed' if failed else 'done'} in {event.seconds:.1f} s: {output.strip()[-200:]!r}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._out.write(f"[{self._standing.elapsed_s:6.1f} s] {in_one_line(text)}\n")
        self._out.flush()


class TerminalView:
    """A live line of figures at the bottom of the terminal; cells and what they gave scroll by above it."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._standing = Standing()
        self._console = Console(file=cast("TextIO", Outlet(out)), highlight=False)
        self._live = Live(get_renderable=self._status, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._standing.hear(event)
        match event:
            case events.CellStarted():
                self._show_code(event)
            case events.CellFinished():
                self._show_output(event)
            case events.Notice():
                self._console.print(f"note: {in_one_line(event.text)}", style="yellow", markup=False)

    def _status(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner

        standing = self._standing
        line = Spinner("dots", f"{standing.line()} · {standing.elapsed_s:.0f} s", style="cyan")
        if standing.finished < standing.asked:
            return Group(ProgressBar(total=standing.asked, completed=standing.finished), line)
        return line

    def _show_code(self, event: events.CellStarted) -> None:
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.syntax import Syntax

        depth = self._standing.depths.get(event.run_id, 0)
        title = f"{'child run, ' if depth else ''}iteration {event.iteration}"
        self._console.print(Rule(title, align="left", style="dim"))
        code = Syntax(some_lines(event.code, CODE_LINES_SHOWN), "python", background_color="default", word_wrap=True)
        self._console.print(Padding(code, (0, 0, 0, 2 + 2 * depth)))

    def _show_output(self, event: events.CellFinished) -> None:
        from rich.text import Text

        output, failed = cell_output(event)
        if output:
            self._console.print(Text(output, style="red" if failed else "dim"))
