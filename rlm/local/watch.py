"""The limits of a whole REPL, of all its processes together. Nothing but the host can see that they are kept.

RLIMIT_AS and RLIMIT_FSIZE bound one process and one file: five forks, or four files, took four and five times as
much. A cgroup would keep these limits, but only few users may make one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlm.config import ReplLimits
from rlm.repl.session import MIB

EVERY_S = 0.25
DISK_SHARE = 20  # a folder is measured for so little of the time
BLOCK_BYTES = 512
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
KIB = 1_024
SOCKET_BYTES = 416 * KIB  # the most that one holds unread, as Linux has it by default
OURS = 2  # what confines a driver has processes of its own before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A REPL: its first process, and where its cells can write.

    `in_memory` are folders of its own file system that are in memory, `home` its folder where they are not.
    `memory_bytes` is what its processes and what is in memory may take together.
    """

    pid: int
    in_memory: Sequence[str]
    home: Path
    limits: ReplLimits
    memory_bytes: int


class Watch:
    """Measures a REPL again and again."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._held: list[int] = []  # the folders in memory, once they are there
        self._next_disk_s = 0.0
        self._stopped = asyncio.Event()

    async def excess(self) -> str:
        """Wait until a limit is passed. Says which, in words that follow "it"; nothing when it is stopped."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._stopped.wait()
                if self._stopped.is_set():
                    return ""
                if found := await asyncio.to_thread(self._measure):  # page tables may be locked, folders large
                    return found
        finally:
            for number in self._held:
                os.close(number)

    def stop(self) -> None:
        """No more is to be measured; nothing is in excess."""
        self._stopped.set()

    def _measure(self) -> str:
        """Which limit is passed now, if any."""
        watched, limits = self._watched, self._watched.limits
        pids: list[int] = []
        tasks, resident = 0, 0
        for pid in processes(watched.pid):
            pids.append(pid)
            status = fields(f"/proc/{pid}/status", b"Threads", b"VmRSS", b"VmSwap")
            tasks += status[b"Threads"]
            resident += (status[b"VmRSS"] + status[b"VmSwap"]) * KIB
            if tasks > limits.processes + OURS + 1:
                return f"ran more than {limits.processes:,} processes and threads"
        others = self._files_in_memory(pids) + in_sockets(pids)
        if resident + others > watched.memory_bytes and proportional(pids) + others > watched.memory_bytes:
            return f"used more than {watched.memory_bytes // MIB:,} MiB of memory in all its processes"
        if not watched.in_memory and self._disk_bytes(pids) > limits.disk_mib * MIB:
            return f"used more than {limits.disk_mib:,} MiB of disk in all its files"
        return ""

    def _files_in_memory(self, pids: Sequence[int]) -> int:
        for pid in pids[OURS:] if not self._held else ():
            with contextlib.suppress(OSError):
                self._held = [os.open(f"/proc/{pid}/root{path}", os.O_PATH) for path in self._watched.in_memory]
                break
        found = map(os.statvfs, self._held)  # a file without content takes a KiB, too
        return sum((one.f_blocks - one.f_bfree) * one.f_frsize + (one.f_files - one.f_ffree) * KIB for one in found)

    def _disk_bytes(self, pids: Sequence[int]) -> int:
        """What the files in the folder take, and those that are deleted and still open. 0 when it is not yet time."""
        began = time.monotonic()
        if began < self._next_disk_s:
            return 0
        total = in_folder(self._watched.home) + deleted(pids)
        self._next_disk_s = time.monotonic() + DISK_SHARE * (time.monotonic() - began)
        return total


def in_sockets(pids: Sequence[int]) -> int:
    """What the Unix sockets of a network namespace of its own may hold: it is no process's memory."""
    for pid in pids[OURS:]:
        with contextlib.suppress(OSError):
            namespace = Path(f"/proc/{pid}/ns/net").readlink()
            if namespace == Path("/proc/self/ns/net").readlink():
                return 0
            return max(0, Path(f"/proc/{pid}/net/unix").read_bytes().count(b"\n") - 1) * SOCKET_BYTES
    return 0


def processes(first: int) -> Iterator[int]:
    """A process and all that it, and they, have started, parents first."""
    pids = [first]
    for pid in pids:
        yield pid
        pids += children(pid)


def children(pid: int) -> list[int]:
    """The processes that a process has started, and those that it took on; none when it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_bytes().split())
    return found


def fields(path: str, *names: bytes) -> dict[bytes, int]:
    """The numbers of these names in a file of /proc; 0 for what it does not have."""
    found = dict.fromkeys(names, 0)
    with contextlib.suppress(OSError):
        for line in Path(path).read_bytes().split(b"\n"):
            name, _, value = line.partition(b":")
            if name in found:
                found[name] = int(value.split()[0])
    return found


def proportional(pids: Sequence[int]) -> int:
    """The bytes that processes have in memory, those that they share counted once. Walks their page tables."""
    total = 0
    for pid in pids:
        rollup = fields(f"/proc/{pid}/smaps_rollup", b"Pss", b"SwapPss")
        if not any(rollup.values()):  # it may not be looked into
            rollup = fields(f"/proc/{pid}/status", b"VmRSS", b"VmSwap")
        total += sum(rollup.values()) * KIB
    return total


def in_folder(path: Path) -> int:
    """The bytes of the files in a folder, however deep: it goes down by descriptors and up by "..", not by paths."""
    here = os.open(path, FOLDER)
    try:
        total, folders = in_open_folder(here)
        levels = [folders]  # of each folder on the way down, those in it that are still to be counted
        while levels:
            step = levels[-1].pop() if levels[-1] else ".."
            if step == "..":
                levels.pop()
            with contextlib.suppress(OSError):  # it is gone, or closed to us
                there = os.open(step, FOLDER, dir_fd=here)
                os.close(here)
                here = there
                if step != "..":
                    size, folders = in_open_folder(here)
                    total += size
                    levels.append(folders)
    finally:
        os.close(here)
    return total


def in_open_folder(number: int) -> tuple[int, list[str]]:
    """The bytes that the entries of one folder take, and the folders among them."""
    total, folders = 0, []
    with os.scandir(number) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                total += status.st_blocks * BLOCK_BYTES
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
    return total, folders


def deleted(pids: Sequence[int]) -> int:
    """The bytes of deleted files that processes hold open."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        for opened in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                status = opened.stat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0:
                    found[status.st_dev, status.st_ino] = status.st_blocks * BLOCK_BYTES
    return sum(found.values())
