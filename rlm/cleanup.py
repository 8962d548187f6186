"""Clean-up that costs no answer: what fails of it is told, and what was found stands."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

from rlm.errors import InputError

T = TypeVar("T")
Tell = Callable[[str], None]


@contextlib.asynccontextmanager
async def forgiving(resource: AbstractAsyncContextManager[T], tell: Tell) -> AsyncIterator[T]:
    """The resource, entered; an error of leaving it is told in a line and goes no further."""
    held = await resource.__aenter__()
    try:
        yield held
    except BaseException as exc:
        await _leave(resource, exc, tell)
        raise
    else:
        await _leave(resource, None, tell)


async def _leave(resource: AbstractAsyncContextManager[T], exc: BaseException | None, tell: Tell) -> None:
    try:
        await resource.__aexit__(None if exc is None else type(exc), exc, None if exc is None else exc.__traceback__)
    except Exception as failure:  # noqa: BLE001  # whatever it is, the answer is there
        tell(trouble(failure))


@contextlib.contextmanager
def scratch_folder(tell: Tell) -> Iterator[Path]:
    """A folder for the time of a run; if it cannot be removed, that is told.

    Raises: InputError when it cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="rlm-context-")
    except OSError as exc:
        raise InputError(f"no folder can be made for the context in {tempfile.gettempdir()}: {exc.strerror}") from exc
    try:
        yield Path(folder.name)
    finally:
        try:
            folder.cleanup()
        except (OSError, RecursionError) as exc:
            tell(trouble(exc))


def trouble(exc: Exception) -> str:
    """One line on a clean-up that failed."""
    return f"the run has ended, but cleaning up failed: {type(exc).__name__}: {' '.join(str(exc).split())[:500]}"
