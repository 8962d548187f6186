"""What a run looks like while it goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO, cast

from rlm import events
from rlm.events import Event
from rlm.standing import WAITING, Standing
from rlm.terminal import Outlet, in_one_line, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

OUTPUT_LINES_SHOWN = 12
CODE_LINES_SHOWN = 30
LINE_CHARS = 500
PLAIN_LINE_CHARS = 200
BAR_CHARS = 20
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


def cell_output(event: events.CellFinished) -> str:
    """What a cell gave, made harmless."""
    result = event.result
    if result is None:
        return visible(f"the REPL died: {event.error}")
    final = "" if result.final is None else f"answer: {result.final.text}"
    parts = [result.stdout, result.stderr, result.value, result.error or "", final]
    return visible("\n".join(part.rstrip("\n") for part in parts if part))


def has_failed(event: events.CellFinished) -> bool:
    """Whether a cell went wrong."""
    return event.result is None or event.result.error is not None


def some_lines(text: str, most: int) -> str:
    """The first and last lines of `text`, made harmless, and how many are left out between them."""
    lines = visible(text).split("\n")
    if len(lines) > most:
        half = most // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half:,} more lines ...", *lines[-half:]]
    return "\n".join(line[:LINE_CHARS] for line in lines)


def code_in_short(code: str) -> tuple[str, str]:
    """The first line of a cell's code that is no import, and words for the lines beside it."""
    lines = _lines_with_words(visible(code))
    telling = (line for line in lines if not line.startswith(("import ", "from ")))
    return next(telling, lines[0] if lines else ""), _others(len(lines) - 1)


def output_in_short(event: events.CellFinished) -> tuple[str, str]:
    """The first line of what a cell gave, or the last of its traceback; and words for the lines beside it."""
    lines = _lines_with_words(cell_output(event))
    is_traceback = event.result is not None and event.result.error is not None
    return lines[-1 if is_traceback else 0] if lines else "(no output)", _others(len(lines) - 1)


def _lines_with_words(text: str) -> list[str]:
    return [line.strip()[:LINE_CHARS] for line in text.split("\n") if line.strip()]


def _others(count: int) -> str:
    return f" (+{count:,} line{'' if count == 1 else 's'})" if count > 0 else ""


def cell_cost(event: events.CellFinished) -> str:
    """How long a cell took, and how many sub-LLMs it asked."""
    return f"{event.seconds:.1f} s" + (f", {event.cost.calls:,} sub-calls" if event.cost.calls else "")


class QuietView:
    """Notices alone."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = Outlet(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, events.Notice):
            self._out.write(f"note: {in_one_line(event.text)}\n")
            self._out.flush()


class PlainView:
    """Lines on a pipe or in a file: one for each step, and one every other second while sub-calls are under way.

    `heading` is the first of them. `verbose`: with the code of cells, and more of what they gave.
    """

    def __init__(self, out: TextIO | None, *, heading: str = "", verbose: bool = False) -> None:
        self._out = Outlet(out)
        self._heading = heading
        self._verbose = verbose
        self._standing = Standing()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._heading:
            self._say(self._heading)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._standing.hear(event)
        match event:
            case events.SubCallFinished():
                if time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
                    self._say(self._standing.line())
            case events.RunStarted() | events.Spent():
                self._say(self._standing.line())
            case events.Notice():
                self._say(f"note: {event.text}")
            case events.CellStarted() if self._verbose:
                self._say(f"cell {event.cell}:")
                self._show(some_lines(event.code, CODE_LINES_SHOWN))
            case events.CellFinished():
                self._say_how_it_went(event)

    def _say_how_it_went(self, event: events.CellFinished) -> None:
        how = f"cell {event.cell} {'failed' if has_failed(event) else 'done'} in {cell_cost(event)}"
        if self._verbose:
            self._say(f"{how}:")
            self._show(some_lines(cell_output(event), OUTPUT_LINES_SHOWN))
            return
        first, others = output_in_short(event)
        shown = first if len(first) <= PLAIN_LINE_CHARS else f"{first[:PLAIN_LINE_CHARS]}..."
        self._say(f"{how}: {shown}{others}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._out.write(f"[{self._standing.elapsed_s:6.1f} s] {in_one_line(text)}\n")
        self._out.flush()

    def _show(self, lines: str) -> None:
        self._out.write("".join(f"    {line}\n" for line in lines.split("\n")))
        self._out.flush()


class TerminalView:
    """Live lines of figures at the bottom of the terminal; cells and what they gave scroll by above them.

    `heading` is the first line. `verbose`: cells and what they gave in many lines, else one line for each.
    """

    def __init__(self, out: TextIO, *, heading: str = "", verbose: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._heading = heading
        self._verbose = verbose
        self._standing = Standing()
        self._console = Console(file=cast("TextIO", Outlet(out)), highlight=False)
        self._spinner = Spinner("line" if self._console.options.ascii_only else "dots", style="cyan")
        self._live = Live(get_renderable=self._status, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._heading:
            self._console.print(in_one_line(self._heading), style="dim", markup=False)
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
        """What goes on, and below it the sub-calls, each cut to the terminal's width."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        standing = self._standing
        frame = cast("Text", self._spinner.render(self._console.get_time()))
        steps = _cut_to_width(frame, " ", f"{standing.elapsed_s:.0f} s · {standing.steps()}")
        if not (calls := standing.calls()):
            return steps
        if standing.doing != WAITING:
            return Group(steps, _cut_to_width("  ", calls))
        bar = ProgressBar(total=standing.asked, completed=standing.finished, width=BAR_CHARS)
        row = Table.grid(padding=(0, 0, 0, 2))  # a bar has no line end of its own
        row.add_row(bar, _cut_to_width(calls))
        return Group(steps, row)

    def _show_code(self, event: events.CellStarted) -> None:
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.syntax import Syntax

        depth = self._standing.depths.get(event.run_id, 0)
        if not self._verbose:
            self._print_in_a_line(f"{self._margin(event)}[{event.cell}] ", *code_in_short(event.code), style="")
            return
        title = f"{'child run, ' if depth else ''}iteration {event.iteration}"
        self._console.print(Rule(title, align="left", style="dim"))
        code = Syntax(some_lines(event.code, CODE_LINES_SHOWN), "python", background_color="default", word_wrap=True)
        self._console.print(Padding(code, (0, 0, 0, 2 + 2 * depth)))

    def _show_output(self, event: events.CellFinished) -> None:
        from rich.text import Text

        style = "red" if has_failed(event) else "dim"
        if not self._verbose:
            first, others = output_in_short(event)
            margin = self._margin(event) + " " * len(f"[{event.cell}] ")
            self._print_in_a_line(margin, first, f"{others} · {cell_cost(event)}", style=style)
        elif output := some_lines(cell_output(event), OUTPUT_LINES_SHOWN):
            self._console.print(Text(output, style=style))

    def _margin(self, event: events.CellStarted | events.CellFinished) -> str:
        depth = self._standing.depths.get(event.run_id, 0)
        return "    " * depth + ("child " if depth else "")

    def _print_in_a_line(self, margin: str, words: str, end: str, *, style: str) -> None:
        """One line of the terminal: what does not fit is cut from the words."""
        from rich.text import Text

        text = Text(words.expandtabs(4))
        text.truncate(max(1, self._console.width - len(margin) - len(end)), overflow="ellipsis")
        line = Text.assemble(margin, text, (end, "dim"), style=style, no_wrap=True, overflow="ellipsis")
        self._console.print(line)


def _cut_to_width(*parts: str | Text) -> Text:
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
