"""What a command prints of a result, and the exit status that follows from it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rlm import report
from rlm.bench.niah import HaystackLines
from rlm.errors import RLMError
from rlm.exits import ERROR_CHARS
from rlm.options import RunOptions
from rlm.progress import OUTPUT_LINES_SHOWN, cell_output, some_lines
from rlm.run import RunResult
from rlm.so_far import SoFar
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


@contextlib.contextmanager
def told(options: RunOptions) -> Iterator[SoFar]:
    """Tell what a run leaves that is ended by an error or a signal: its figures, and what was found so far.

    With --json an object on standard output tells of it, too. What was raised is raised on.
    """
    so_far = SoFar()
    try:
        yield so_far
    except RLMError as exc:
        _tell_of_failure(so_far, options, " ".join(str(exc).split())[:ERROR_CHARS], "error")
        raise
    except KeyboardInterrupt:
        _tell_of_failure(so_far, options, "interrupted", "interrupted")
        raise


def _tell_of_failure(so_far: SoFar, options: RunOptions, error: str, stopped_by: str) -> None:
    result = so_far.result(stopped_by)
    if so_far.started is not None:
        tell_what_was_found(so_far, options.log)
        say(report.summary(result))
    if options.as_json:
        show_failure(result, error)


def show_failure(result: RunResult, error: str) -> None:
    """Print the object that --json gives where an error or a signal ended the command."""
    deliver(json.dumps(report.as_json(result, error)), sys.__stdout__)


def tell_what_was_found(so_far: SoFar, log: Path | None) -> None:
    """Where there is no answer: what the last cell gave, and where the rest is."""
    if so_far.found is not None:
        say(f"found so far:\n{some_lines(cell_output(so_far.found), OUTPUT_LINES_SHOWN)}")
    say("with --log FILE, all that is said and paid for is kept" if log is None else f"all that was said is in {log}")


def _status(result: RunResult, *, delivered: bool) -> int:
    if result.answer is None:
        say(f"rlm: {report.no_answer(result)}")
        return NO_ANSWER
    return ANSWERED if delivered else UNPRINTED
