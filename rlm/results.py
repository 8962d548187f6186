"""What a command prints of a result, and the exit status that follows from it."""

from __future__ import annotations

import json
from typing import TextIO

from rlm import report
from rlm.bench.niah import HaystackLines
from rlm.run import RunResult
from rlm.terminal import deliver, say

ANSWERED, UNPRINTED, NO_ANSWER = 0, 1, 3


def show_answer(result: RunResult, *, as_json: bool, quiet: bool = False, out: TextIO | None = None) -> int:
    """Print the answer alone on standard output, or on `out`, its figures on standard error; the exit status."""
    if as_json:
        return _status(result, delivered=deliver(json.dumps(report.as_json(result)), out))
    if not quiet:
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
