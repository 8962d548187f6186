"""The time limit of a cell."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator

OWN_FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib costs the start 10 ms
CELL_NAME = "<cell "
ASYNCIO_FOLDER = os.path.join(os.path.dirname(os.__file__), "asyncio", "")  # noqa: PTH118, PTH120
THEIR_CODE = (CELL_NAME, ASYNCIO_FOLDER)  # a cell that awaits is not on the stack: its event loop is
AGAIN_S = 0.25
RETRY_S = 0.001
SOON_S = 0.000_001  # 0 would stop the timer
PATIENCE = 4
INSIST_UP_TO_US = 200


class CellTimeoutError(KeyboardInterrupt):
    """The cell ran longer than it may. A KeyboardInterrupt, so that `except Exception` does not swallow it."""

    __module__ = "builtins"  # so that a traceback names it without ours


class CellClock:
    """Interrupts the cell at its time limit. Stands still while the cell waits for sub-LLMs.

    The interrupt is an exception raised by a signal handler in the cell's own code, or in a library that it
    called, never in ours. A cell that swallows it gets it again; after a few times a few microseconds later, now
    more, now less, until it strikes in the `except` clause.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cell = 0
        self._running = False
        self._waiting = 0
        self._limit_s = 0.0
        self._left_s = 0.0
        self._interrupts = 0
        self._is_due = False

    def start(self, limit_s: float) -> None:
        """A new cell of `limit_s` seconds."""
        with self._lock:
            self._cell, self._waiting, self._limit_s = self._cell + 1, 0, limit_s
            self._interrupts, self._is_due, self._running = 0, False, True
            signal.signal(signal.SIGALRM, self._interrupt)  # the cell before may have put its own
            signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)

    def stop(self) -> None:
        """The cell is over; waits that outlive it no longer matter."""
        with self._lock:
            self._cell, self._running = self._cell + 1, False
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count, as long as the cell that runs is the one that ran on entry."""
        with self._lock:
            cell = self._cell
            self._waiting += 1
            if self._waiting == 1:
                self._left_s = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        try:
            yield
        finally:
            with self._lock:
                if cell == self._cell:
                    self._waiting -= 1
                    if self._waiting == 0 and self._running:
                        signal.setitimer(signal.ITIMER_REAL, max(self._left_s, SOON_S), AGAIN_S)
        if self._is_due and threading.current_thread() is threading.main_thread():
            raise self._timeout()

    def _interrupt(self, _signal: int, frame: types.FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(OWN_FOLDER):
            if frame.f_code.co_filename.startswith(THEIR_CODE):
                raise self._timeout()
            frame = frame.f_back
        if self._running and not self._waiting:  # we are at work for the cell: try again when it is back
            self._is_due = True
            signal.setitimer(signal.ITIMER_REAL, RETRY_S, AGAIN_S)

    def _timeout(self) -> CellTimeoutError:
        self._is_due = False
        self._interrupts += 1
        insist_s = (1 + self._interrupts % INSIST_UP_TO_US) / 1_000_000
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S if self._interrupts < PATIENCE else insist_s, AGAIN_S)
        return CellTimeoutError(f"the cell ran longer than {self._limit_s:g} s and was interrupted")
