"""How long it takes to start: whole processes, from fork to exit."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rlm.bench.speed.peers import Peer
from rlm.bench.speed.report import Report, Row
from rlm.errors import InputError, RLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Arguments of a Python, ours and, where it can do the same, the peer's (which is kept from our folder)."""

    what: str
    arguments: tuple[str, ...]
    target_s: float | None = None
    peer_can: bool = True


STARTS = (
    Start(what="python, with nothing to do", arguments=("-c", "pass")),
    Start(what="import rlm", arguments=("-c", "import rlm"), target_s=0.1),
    Start(what="from rlm import RLM", arguments=("-c", "from rlm import RLM")),
    Start(what="rlm --help", arguments=("-m", "rlm", "--help"), target_s=0.3, peer_can=False),
)


def measure(runs: int, *, peer: Peer | None) -> Report:
    """The median of so many runs of each, taken in turns. One run of each goes before and is not counted."""
    if runs < 1:
        raise InputError(f"--runs must be 1 or more: {runs}")
    ours: dict[Start, list[float]] = {start: [] for start in STARTS}
    theirs: dict[Start, list[float]] = {start: [] for start in STARTS if peer is not None and start.peer_can}
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        for _ in range(1 + runs):
            for start in STARTS:
                ours[start].append(process_s([sys.executable, *start.arguments], folder=None))
                if peer is not None and start in theirs:
                    python = str(peer.python.absolute())
                    theirs[start].append(process_s([python, "-I", *start.arguments], folder=folder))
    rows = [
        Row(
            what=start.what,
            measured=statistics.median(ours[start][1:]),
            unit="s",
            target=start.target_s,
            peer_measured=statistics.median(theirs[start][1:]) if start in theirs else None,
        )
        for start in STARTS
    ]
    return Report(benchmark="startup", rows=rows, peer=peer.name if peer else None, counts=[{"runs": runs}])


def process_s(command: Sequence[str], *, folder: str | None) -> float:
    """Seconds of a whole process.

    Raises: RLMError when it fails.
    """
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise RLMError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return seconds
