"""`rlm` as a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

RLM = (sys.executable, "-m", "rlm")


def rlm(*arguments, env=None, **options):
    """Run it to its end."""
    return subprocess.run(
        [*RLM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
        **{"input": "", **options},
    )


def in_shell(script, *arguments, env=None, **options):
    """Run a line of shell in which `rlm` is the program, with these arguments in "$@"."""
    function = f'rlm() {{ {sys.executable} -m rlm "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", function + script, "bash", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, **(env or {})},
        check=False,
        **{"input": b"", **options},
    )


@contextmanager
def started(*arguments, env=None, before=(), **options):
    """Start it, perhaps by another program; it has ended when the block has."""
    with subprocess.Popen(
        [*before, *RLM, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        env={**os.environ, **(env or {})},
    ) as running:
        try:
            yield running
        finally:
            running.kill()
