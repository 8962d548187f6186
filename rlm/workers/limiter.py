"""How many calls at once the provider bears."""

from __future__ import annotations

import time
from collections.abc import Callable

RECOVERY_ROUNDS = 16  # rounds of calls without a refusal until the limit is back from nothing to its maximum


class AdaptiveLimit:
    """How many calls may be in flight: halved when the provider refuses for its rate limit, raised by success.

    Additive increase, multiplicative decrease, as TCP does it. Refusals of calls sent before the last cut say
    nothing about the limit since, so a burst of them halves once.
    """

    def __init__(self, maximum: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = maximum
        self._limit = float(maximum)
        self._clock = clock
        self._cut_at = self._resume_at = -float("inf")

    @property
    def limit(self) -> int:
        """Calls that may be in flight now, a pause left aside. At least 1."""
        return int(self._limit)

    def paused_s(self) -> float:
        """Seconds until calls may be sent again, as the provider asked; 0 is now."""
        return max(0.0, self._resume_at - self._clock())

    def succeeded(self) -> None:
        """Count a call that was answered."""
        if self._limit < self._maximum:
            step = max(1.0, self._maximum / RECOVERY_ROUNDS)
            self._limit = min(self._maximum, self._limit + step / self._limit)

    def refused(self, *, sent_at: float, in_flight: int) -> None:
        """Count a call, sent at `sent_at` of the clock, that the provider refused for its rate."""
        if sent_at > self._cut_at:
            self._limit = max(1.0, min(self._limit, in_flight) / 2)
            self._cut_at = self._clock()

    def pause(self, seconds: float) -> None:
        """Send nothing for `seconds` from now."""
        self._resume_at = max(self._resume_at, self._clock() + seconds)
