"""Temporary folders that go with the process that made them: at its end, or, when it was killed, at a later start.

Such a folder is locked while its process lives. A folder of ours that can be locked has lost its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rlm.errors import InputError

PREFIX = "rlm-"
ALL = ("context", "repl")


class Scratch:
    """A new temporary folder, for what `purpose` (one of ALL) says.

    Raises: InputError when none can be made.
    """

    def __init__(self, purpose: str) -> None:
        assert purpose in ALL
        sweep_once()
        while True:
            try:
                self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
            except OSError as exc:
                raise InputError(f"there is no room for temporary files: {exc}") from exc
            lock = _lock(self.path)
            if lock is not None:  # or else another process has swept it away between the two
                self._lock = lock
                return

    def remove(self) -> str:
        """Remove the folder and what is in it. Says in one line what would not go; may be called again."""
        if self._lock < 0:
            return ""
        lock, self._lock = self._lock, -1
        try:
            return remove(self.path)
        finally:
            os.close(lock)


@contextlib.contextmanager
def folder(purpose: str, tell: Callable[[str], None] | None = None) -> Iterator[Path]:
    """A `Scratch` for a while. What cannot be removed at its end is told, and tried again at a later start.

    Raises: InputError when none can be made.
    """
    scratch = Scratch(purpose)
    try:
        yield scratch.path
    finally:
        trouble = scratch.remove()
        if trouble and tell is not None:
            tell(trouble)


@functools.cache
def sweep_once() -> None:
    """Remove what processes that were killed have left: at the first use in this process."""
    for purpose in ALL:
        for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}{purpose}-*"):
            lock = _lock(path)
            if lock is not None:
                remove(path)
                os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the folder locked; None when it is another user's, no folder, in use, or gone."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(number).st_uid != os.geteuid():
            raise PermissionError
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(number), path.lstat()):
            raise FileNotFoundError
    except OSError:
        os.close(number)
        return None
    return number


def remove(path: Path) -> str:
    """Remove a folder, however deep it is nested and whatever its modes are; follows no symlink.

    Every folder in it is first moved to the top, so that neither a path nor a recursion grows long. Says in one
    line what would not go.
    """
    troubles: list[OSError] = []
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as exc:
        return _told(path, [exc])
    try:
        _empty(top, top, troubles)
        while inner := [entry.name for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False)]:
            for name in inner:
                _remove_inner(name, top, troubles)
            if troubles:
                break
        path.rmdir()
    except OSError as exc:
        troubles.append(exc)
    finally:
        os.close(top)
    return _told(path, troubles)


def _remove_inner(name: str, top: int, troubles: list[OSError]) -> None:
    try:
        _open_up(name, top)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        try:
            _empty(inner, top, troubles)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)
    except OSError as exc:
        troubles.append(exc)


def _empty(folder: int, top: int, troubles: list[OSError]) -> None:
    """Delete the files in an open folder; move its folders to the top."""
    with os.scandir(folder) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in listed:
        try:
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif folder != top:
                _open_up(name, folder)
                os.rename(name, os.urandom(8).hex(), src_dir_fd=folder, dst_dir_fd=top)
        except OSError as exc:  # one that stays must not keep the others
            troubles.append(exc)


def _open_up(name: str, folder: int) -> None:
    """Let us list, empty and move a folder (for its new ".." one must be allowed to write in it)."""
    number = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        Path(f"/proc/self/fd/{number}").chmod(stat.S_IRWXU)
    finally:
        os.close(number)


def _told(path: Path, troubles: list[OSError]) -> str:
    return f"{path} could not be removed: {troubles[0].strerror or troubles[0]}" if troubles else ""
