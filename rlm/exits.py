"""How a command ends for what is raised on purpose. Imports next to nothing: it is there before anything else is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rlm.errors import RLMError, exit_status, in_one_line
from rlm.terminal import say

INTERRUPTED = 130
ERROR_CHARS = 2_000


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end. `status` is what it exits with."""

    def __init__(self, signal_name: str, status: int) -> None:
        super().__init__(signal_name)
        self.status = status


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """End the process with a line on stderr: 2 for bad input, 3 for everything else that we raise.

    When interrupted it is 130, 129 after SIGHUP and 131 after SIGQUIT.
    """
    try:
        yield
    except KeyboardInterrupt as exc:
        say("rlm: interrupted")
        sys.exit(exc.status if isinstance(exc, Interrupted) else INTERRUPTED)
    except RLMError as exc:
        say(in_one_line(exc)[:ERROR_CHARS])
        sys.exit(exit_status(exc))
