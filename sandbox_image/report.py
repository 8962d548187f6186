"""What the host is told of a cell: the value of its last expression, the traceback, within bounds."""

from __future__ import annotations

import ast
import reprlib
import traceback

from sandbox_image.clock import OWN_FOLDER

MAX_TRACEBACK_CHARS = 6_000
WRITE_OUT_CHARS = 200_000
ITEMS_SHOWN = 1_000
ITEM_CHARS = 3  # an item with its comma and space, at the least
COLLECTIONS = (list, tuple, set, frozenset, dict)
SIZED = (str, bytes, *COLLECTIONS)


def cap(text: str, max_chars: int, total_chars: int = 0) -> str:
    """`text` cut to its head and tail; `total_chars` is its true length where `text` has lost some already."""
    total_chars = max(total_chars, len(text))
    if total_chars <= max_chars:
        return text
    head, tail = text[: max_chars - max_chars // 2], text[len(text) - max_chars // 2 :]
    return f"{head}\n[... {total_chars - max_chars:,} characters left out ...]\n{tail}"


def show(value: object, max_chars: int) -> str:
    """`repr(value)`, capped; a huge text or collection is never written out whole."""
    kind = type(value)
    if kind in (str, bytes) and len(value) > 2 * max_chars:  # type: ignore[arg-type]
        assert isinstance(value, str | bytes)
        ends = repr(value[:max_chars])[:-1] + repr(value[-max_chars:])[1 + isinstance(value, bytes) :]
        return cap(ends, max_chars, len(ends) + len(value) - 2 * max_chars)
    if isinstance(value, COLLECTIONS) and is_larger(value, WRITE_OUT_CHARS):
        short = reprlib.Repr()
        short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = ITEMS_SHOWN
        short.maxstring = short.maxother = max_chars // 4
        return f"{cap(short.repr(value), max_chars)}\n[shortened: a {kind.__name__} of {len(value):,} items]"
    return cap(str.__str__(repr(value)), max_chars)


def is_larger(value: object, max_chars: int) -> bool:
    """Whether a collection's repr would have more than `max_chars` characters, going by the parts' lengths."""
    parts, room = [value], max_chars
    while parts and room >= 0:
        part = parts.pop()
        if isinstance(part, SIZED):
            room -= len(part) * (1 if isinstance(part, str | bytes) else ITEM_CHARS)
        if room < 0:
            break
        if isinstance(part, dict):
            parts += part.keys()
            parts += part.values()
        elif isinstance(part, COLLECTIONS):
            parts += part
    return room < 0


def format_error(exc: BaseException) -> str:
    """The traceback as the cell's author should see it: without our own frames, head and tail if it is long."""
    try:
        if isinstance(exc, SystemExit):
            code = show(exc.code, MAX_TRACEBACK_CHARS // 2)
            return f"SystemExit: sys.exit({code}) ended this cell; the REPL goes on"
        story = traceback.TracebackException.from_exception(exc)
        hide_own_frames(story)
        return cap("".join(story.format()).rstrip(), MAX_TRACEBACK_CHARS)
    except BaseException as broken:  # noqa: BLE001  # an exception of the cell may be of any make
        return cap(f"{type(exc).__name__} (it cannot be shown: {type(broken).__name__})", MAX_TRACEBACK_CHARS)


def hide_own_frames(story: traceback.TracebackException) -> None:
    """Take the driver's frames out of a traceback and all it is chained to."""
    stories = [story]
    while stories:
        story = stories.pop()
        story.stack = traceback.StackSummary.from_list(
            [frame for frame in story.stack if not frame.filename.startswith((OWN_FOLDER, ast.__file__))]
        )
        chained = (story.__cause__, story.__context__, *(getattr(story, "exceptions", None) or ()))
        stories += [other for other in chained if other is not None]
