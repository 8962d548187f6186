"""How long a large context takes until the first cell has run, and the memory of REPL and host.

`python -m rlm.bench.speed.context FILE` is the part that is measured: a fresh process, so that its memory is that of a
run and of nothing else. Memory is as Linux tells it, the peak (VmHWM).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rlm.bench.speed.peers import Peer
from rlm.bench.speed.report import Report, Row

MIB = 1 << 20
KIB = 1 << 10
MB = 1_000_000
TARGET_S_PER_GIB = 5.0
TARGET_REPL_TIMES = 1.2
TARGET_HOST_MB = 200.0
GIB_IN_MIB = 1 << 10
LINE = "é à ü ñ: une ligne de texte latin, comme il y en a dans les vraies données, déjà vue.\n"
CELL = (
    "print(len(context), *(line.split()[1] for line in open('/proc/self/status') "
    "if line.startswith(('VmHWM', 'VmRSS'))))"
)


def measure(mib: int, *, peer: Peer | None) -> Report:
    """Write a Latin text of that many MiB, and load it here and in the peer. It is in the page cache for both."""
    from rlm.errors import InputError, RLMError

    if mib < 1:
        raise InputError(f"--mib must be 1 or more: {mib}")
    if not Path("/proc/self/status").exists():
        raise InputError("memory is read from /proc: this benchmark needs Linux")
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        path = Path(folder) / "context.txt"
        chars = write_latin_text(path, mib)
        started = time.perf_counter()
        command = [sys.executable, "-m", "rlm.bench.speed.context", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        process_s = time.perf_counter() - started
        if done.returncode != 0:
            raise RLMError(f"the context could not be measured: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout)
        theirs = peer.run("context", path=str(path)) if peer is not None else {}
    read = [found["chars"], *([int(theirs["stdout"])] if theirs else [])]
    if any(seen != chars for seen in read):
        raise RLMError(f"the context has {chars} characters, but a cell saw {read}")
    rows = rows_of(mib, found, process_s, theirs)
    counts = [{"mib": mib, "chars": chars, **found}]
    return Report(benchmark="context", rows=rows, peer=peer.name if peer else None, counts=counts)


def rows_of(mib: int, found: dict[str, Any], process_s: float, theirs: dict[str, Any]) -> list[Row]:
    """The rows. The targets are those for 1 GiB: a small text is small beside the interpreter."""
    held = mib >= GIB_IN_MIB
    text_kib = found["chars"] / KIB  # as a Latin str: a byte a character
    peer_kib = theirs.get("peak_kib")
    name = f"{mib:,} MiB"
    return [
        Row(
            what=f"{name}, until the first cell has run",
            measured=found["first_cell_s"],
            unit="s",
            target=TARGET_S_PER_GIB * mib / GIB_IN_MIB if held else None,
            note="the file is in the page cache",
            peer_measured=theirs.get("first_cell_s"),
        ),
        Row(what=f"{name}, the whole process", measured=process_s, unit="s", note="with imports and all it ends"),
        Row(
            what=f"{name}, peak memory of the REPL",
            measured=found["repl_peak_kib"] / text_kib,
            unit="x text",
            target=TARGET_REPL_TIMES if held else None,
            note=f"{found['repl_now_kib'] / text_kib:.3f} x text after loading",
            peer_measured=None if peer_kib is None else peer_kib / text_kib,
        ),
        Row(
            what=f"{name}, peak memory of the host",
            measured=found["host_peak_kib"] * KIB / MB,
            unit="MB",
            target=TARGET_HOST_MB if held else None,
            note="" if peer_kib is None else "the peer's host is its REPL",
            peer_measured=None if peer_kib is None else peer_kib * KIB / MB,
        ),
    ]


def write_latin_text(path: Path, mib: int) -> int:
    """Write lines with é and the like from the first character on, `mib` MiB in UTF-8; the characters in it."""
    line = LINE.encode()
    block = line * (MIB // len(line))
    block += b"." * (MIB - len(block) - 1) + b"\n"
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(block)
    return len(block.decode()) * mib


async def load_and_run(path: Path) -> dict[str, Any]:
    """Load the file as the context and run the first cell, with all that a run imports."""
    from rlm.backend import local_backend
    from rlm.bench.speed.cells import no_calls
    from rlm.config import Provider, ReplLimits
    from rlm.context import context_from_paths
    from rlm.errors import RLMError
    from rlm.repl.session import ReplSession

    launcher = local_backend(Provider(api_key="none")).repl_launcher
    started = time.perf_counter()
    context = context_from_paths([str(path)], path.parent)
    async with ReplSession(launcher, context, ReplLimits(), no_calls) as repl:
        result = await repl.run(CELL)
        first_cell_s = time.perf_counter() - started
    if result.error is not None:
        raise RLMError(f"the first cell failed: {result.error}")
    chars, repl_peak_kib, repl_now_kib = map(int, result.stdout.split())
    return {
        "first_cell_s": first_cell_s,
        "chars": chars,
        "repl_peak_kib": repl_peak_kib,
        "repl_now_kib": repl_now_kib,
    }


def main() -> None:
    """The fresh process: measure, and print one JSON object."""
    found = asyncio.run(load_and_run(Path(sys.argv[1])))
    peak = Path("/proc/self/status").read_text("ascii").split("VmHWM:")[1]
    sys.stdout.write(json.dumps({**found, "host_peak_kib": int(peak.split()[0])}) + "\n")


if __name__ == "__main__":
    main()
