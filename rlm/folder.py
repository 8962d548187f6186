"""The files in a folder that a user names, and nothing that lies elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlm.errors import InputError
from rlm.formats import SNIFF_BYTES, format_of

MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file of a folder that is not in the context, and why: words that follow its name."""

    name: str
    why: str


def text_files(folder: Path) -> Iterator[tuple[str, Path] | Skipped]:
    """The text files in a folder and the folders in it, by their names from there on, in order.

    Hidden files are left out without a word. What is told as skipped: files that are not text or cannot be read,
    pipes and devices, which are never opened, and links to what is not a text file of the same folder.

    Raises: InputError when there are more than MAX_FILES.
    """
    root = folder.resolve()
    for number, (relative, trouble) in enumerate(_names(root)):
        if number == MAX_FILES:
            raise InputError(f"{folder} holds more than {MAX_FILES:,} files: name a smaller folder")
        if trouble is not None:
            yield Skipped(relative, trouble)
            continue
        path = root / relative
        target = path
        if path.is_symlink():
            linked = _target(root, path)
            if isinstance(linked, str):
                yield Skipped(relative, linked)
                continue
            target = linked
        why = _why_not(target)
        yield Skipped(relative, why) if why is not None else (relative, target)


def _names(root: Path) -> Iterator[tuple[str, str | None]]:
    """What is in a folder and the folders in it, but for hidden things; what cannot be read comes with its trouble."""
    waiting = [("", True)]  # not recursive: folders may be nested deeper than Python's stack
    while waiting:
        name, is_folder = waiting.pop()
        if not is_folder:
            yield name, None
            continue
        try:
            with os.scandir(root / name) as listing:
                entries = [
                    (f"{name}/{entry.name}" if name else entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in sorted(listing, key=lambda entry: entry.name, reverse=True)
                    if not entry.name.startswith(".")
                ]
        except OSError as exc:
            yield name or str(root), f"cannot be read: {exc.strerror}"
        else:
            waiting += entries


def _target(root: Path, link: Path) -> Path | str:
    """The file that a link leads to, or why it is not followed."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a ring of links, up to Python 3.12
        return "is a link to nothing"
    if not target.is_relative_to(root):
        return "is a link that leaves the folder"
    if any(part.startswith(".") for part in target.relative_to(root).parts):
        return "is a link to a hidden file"
    return target


def _why_not(path: Path) -> str | None:
    """Why a file is left out; None for text. It is opened without waiting, and not through a link."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return "is not a file"
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:  # noqa: PTH123  # it is open already
            if not stat.S_ISREG(os.fstat(number).st_mode):
                return "is not a file"
            sample = file.read(SNIFF_BYTES)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    known = format_of(sample)
    if known is not None:
        return f"is {known.name}"
    return "is not text" if b"\0" in sample else None
