"""Clean-up that costs no answer: what fails of it is told, and what was found stands."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

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


def trouble(exc: Exception) -> str:
    """One line on a clean-up that failed."""
    return f"the run has ended, but cleaning up failed: {type(exc).__name__}: {' '.join(str(exc).split())[:500]}"
