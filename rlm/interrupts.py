"""Ctrl-C and the signals that end a program: what was started is ended in order, then the program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

import uvloop

from rlm.exits import INTERRUPTED, Interrupted

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], None]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def interrupted(number: int) -> Interrupted:
    """What a signal is told as. The contract is 130 for the two that mean "end", 128 and its number for the others."""
    status = INTERRUPTED if number in (signal.SIGINT, signal.SIGTERM) else 128 + number
    return Interrupted(signal.Signals(number).name, status)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Work outside an event loop that the signals end by Interrupted. Those that are ignored stay ignored (nohup)."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise interrupted(number)

    with _handled_by(interrupt):
        yield


def run_interruptibly(main: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop; the signals cancel it.

    Raises: Interrupted when it has ended by that.
    """
    received: list[int] = []

    async def cancelled_by_signals() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel = task.cancel

        def note(number: int, _: FrameType | None) -> None:
            received.append(number)
            loop.call_soon_threadsafe(cancel)

        with _handled_by(note):
            return await main

    try:
        return uvloop.run(cancelled_by_signals())
    except asyncio.CancelledError:
        if not received:
            raise
        raise interrupted(received[0]) from None


@contextlib.contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    kept = (None, signal.SIG_IGN)  # not ours to handle, or not wanted
    before = {number: known for number in SIGNALS if (known := signal.getsignal(number)) not in kept}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)
