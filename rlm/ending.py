"""How a command ends: what it prints, and its exit status."""

from __future__ import annotations

import contextlib
import json
import sys
from asyncio import CancelledError
from collections.abc import Iterator
from typing import TextIO

from rlm import report
from rlm.bench.niah import HaystackLines
from rlm.errors import RLMError, exit_status, in_one_line
from rlm.interrupts import INTERRUPTED, Interrupted
from rlm.run import RunResult
from rlm.terminal import deliver, say

ANSWERED, UNPRINTED, NO_ANSWER = 0, 1, 3


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """End the process for what is raised on purpose: with a line on stderr, and 2 for bad input, 3 for everything else.

    When interrupted it is 130, 129 after SIGHUP and 131 after SIGQUIT.
    """
    try:
        yield
    except (KeyboardInterrupt, CancelledError) as exc:
        say("rlm: interrupted")
        sys.exit(exc.status if isinstance(exc, Interrupted) else INTERRUPTED)
    except RLMError as exc:
        say(in_one_line(exc))
        sys.exit(exit_status(exc))


def show_answer(result: RunResult, *, as_json: bool, out: TextIO | None = None) -> int:
    """Print the answer alone on standard output, or on `out`; the exit status."""
    if as_json:
        return _status(result, delivered=deliver(json.dumps(report.as_json(result)), out))
    say(report.summary(result))
    return _status(result, delivered=result.answer is None or deliver(result.answer, out))


def show_needle(result: RunResult, haystack: HaystackLines, *, as_json: bool, out: TextIO | None = None) -> int:
    """Print what a run of the needle-in-a-haystack benchmark found; the exit status."""
    expected, seed = haystack.expected, haystack.seed
    if as_json:
        text = json.dumps(report.niah_as_json(result, expected=expected, seed=seed))
    else:
        text = report.niah_lines(result, expected=expected, seed=seed)
    return _status(result, delivered=deliver(text, out))


def _status(result: RunResult, *, delivered: bool) -> int:
    if result.answer is None:
        return NO_ANSWER
    return ANSWERED if delivered else UNPRINTED
