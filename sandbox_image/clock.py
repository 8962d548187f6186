"""The time limit of a cell."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
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
    """Interrupts the cell at its time limit.

    While a call of the cell's own threads waits for its answer, time does not count, but for what the main thread
    computes meanwhile: a cell that fans out and waits is not interrupted, and one that leaves a thread calling
    while it loops is. Calls of threads that older cells left running stop no clock. `max_s` bounds the cell with
    all its waits.

    The interrupt is an exception raised by a signal handler in the cell's own code, or in a library that it
    called, never in ours. A cell that swallows it gets it again; after a few times a few microseconds later, now
    more, now less, until it strikes in the `except` clause.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._note_main_thread()
        os.register_at_fork(after_in_child=self._note_main_thread)
        self._cell = 0
        self._running = False
        self._waiting = 0
        self._limit_s = self._left_s = 0.0
        self._end = self._max_s = 0.0
        self._now = self._cpu_now = 0.0
        self._interrupts = 0
        self._is_due = False

    def _note_main_thread(self) -> None:
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())

    def start(self, cell: int, limit_s: float, max_s: float) -> None:
        """Cell number `cell` begins."""
        with self._lock:
            self._cell, self._waiting, self._interrupts, self._is_due = cell, 0, 0, False
            self._limit_s = self._left_s = limit_s
            self._now, self._cpu_now = self._clocks()
            self._max_s, self._end = max_s, self._now + max_s
            self._running = True
            signal.signal(signal.SIGALRM, self._interrupt)  # the cell before may have put its own
            signal.setitimer(signal.ITIMER_REAL, min(limit_s, max_s), AGAIN_S)

    def stop(self) -> None:
        """The cell is over; waits that outlive it no longer matter."""
        with self._lock:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextlib.contextmanager
    def paused(self, cell: int) -> Iterator[None]:
        """A call of that cell waits in here. The timer goes on: when it fires, what did not count is added."""
        with self._lock:
            counts = self._running and cell == self._cell
            if counts:
                self._account()
                self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                if counts and self._running and cell == self._cell:
                    self._account()
                    self._waiting -= 1
        if self._is_due and threading.current_thread() is threading.main_thread():
            raise self._timeout()

    def _clocks(self) -> tuple[float, float]:
        return time.monotonic(), time.clock_gettime(self._cpu_clock)

    def _account(self) -> None:
        """Take what has been used since the last time off what is left."""
        now, cpu_now = self._clocks()
        self._left_s -= cpu_now - self._cpu_now if self._waiting else now - self._now
        self._now, self._cpu_now = now, cpu_now

    def _interrupt(self, _signal: int, frame: types.FrameType | None) -> None:
        if not self._running:
            return
        if not self._lock.acquire(blocking=False):  # it may be ours, in what this has interrupted
            signal.setitimer(signal.ITIMER_REAL, RETRY_S, AGAIN_S)
            return
        try:
            self._account()
            left_s = min(self._left_s, self._end - self._now)
        finally:
            self._lock.release()
        if left_s > 0:
            signal.setitimer(signal.ITIMER_REAL, max(left_s, SOON_S), AGAIN_S)
            return
        while frame is not None and not frame.f_code.co_filename.startswith(OWN_FOLDER):
            if frame.f_code.co_filename.startswith(THEIR_CODE):
                raise self._timeout()
            frame = frame.f_back
        self._is_due = True  # we are at work for the cell: try again when it is back
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S if self._waiting else RETRY_S, AGAIN_S)

    def _timeout(self) -> CellTimeoutError:
        self._is_due = False
        self._interrupts += 1
        insist_s = (1 + self._interrupts % INSIST_UP_TO_US) / 1_000_000
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S if self._interrupts < PATIENCE else insist_s, AGAIN_S)
        if self._left_s > 0:
            return CellTimeoutError(f"the cell and its calls took longer than {self._max_s:g} s: it was interrupted")
        return CellTimeoutError(f"the cell ran longer than {self._limit_s:g} s and was interrupted")
