"""What is told of the variables that cells make: in a word what each is, and a short look at plain ones."""

from __future__ import annotations

import itertools
import reprlib
import types
from collections.abc import Container, Mapping

from sandbox_image.report import cap

NAMES_SHOWN = 200
NEW_NAMES = 20
NEW_NAME_CHARS = 100
PREVIEW_CHARS = 80
PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, type(None))
SIZED = (bytes, list, tuple, dict, set, frozenset)
LENGTHS = frozenset(kind.__len__ for kind in SIZED)  # a subclass may have its own, which is not to be called


class Lines(str):
    """A text whose repr is the text, so that the last expression of a cell shows its lines."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def show_vars(names: Mapping[str, object]) -> Lines:
    """The variables, a line each."""
    lines = []
    for name in sorted(names)[:NAMES_SHOWN]:
        value, look = names[name], preview(names[name])
        lines.append(f"{cap(name, PREVIEW_CHARS)}: {what_it_is(value)}{look and f'  {look}'}")
    if len(names) > NAMES_SHOWN:
        lines.append(f"... and {len(names) - NAMES_SHOWN:,} more")
    return Lines("\n".join(lines) or "no variables yet")


def new_names(before: Container[str], names: Mapping[str, object]) -> list[str]:
    """Those of the variables that were not there before, with what each is; modules and names of a letter left out."""
    found = (
        f"{name}: {what_it_is(value)}"[:NEW_NAME_CHARS]
        for name, value in names.items()
        if len(name) > 1 and name not in before and not issubclass(type(value), types.ModuleType)
    )
    return list(itertools.islice(found, NEW_NAMES))


def what_it_is(value: object) -> str:
    """The value's type, with its size where it has one. Runs no code of the value but a library's `shape`."""
    kind = type(value)
    try:
        name, size = kind.__name__[:NEW_NAME_CHARS], ""
        if kind is str:
            size = f"{len(value):,} characters"  # type: ignore[arg-type]
        elif issubclass(kind, SIZED) and kind.__len__ in LENGTHS:
            size = f"{len(value):,}"  # type: ignore[arg-type]
        elif kind.__module__.partition(".")[0] in ("numpy", "pandas"):
            size = " x ".join(map(str, getattr(value, "shape", ())))[:NEW_NAME_CHARS]
    except Exception:  # noqa: BLE001  # a class of a cell may have any name, module or metaclass
        return "object"
    return f"{name} of {size}" if size else name


def preview(value: object) -> str:
    """The start of the repr of a plain value; nothing of others, whose repr may do anything."""
    if type(value) not in PLAIN:
        return ""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = PREVIEW_CHARS // 2
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = 4
    short.maxlevel = 2
    try:
        text = short.repr(value)
    except ValueError:  # an int of too many digits
        return ""
    return text if len(text) <= PREVIEW_CHARS else f"{text[: PREVIEW_CHARS - 3]}..."
