"""The context of a run, as files: what a user names, or hands over as a value, before a REPL reads it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rlm.errors import InputError

Kind = Literal["text", "json", "jsonl", "files"]
STDIN = "-"
SNIFF_BYTES = 8_192
CHUNK_CHARS = 1 << 20
_KIND_BY_SUFFIX: dict[str, Kind] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Files that become the variable `context`, and how they are to be read.

    "text" is one str, "json" any JSON value, "jsonl" a list of them, "files" a dict of name to str. `skipped`
    are files of a folder that are not text.
    """

    kind: Kind
    files: tuple[tuple[str, Path], ...]
    skipped: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """All files together.

        Raises: InputError when one is gone.
        """
        try:
            return sum(path.stat().st_size for _, path in self.files)
        except OSError as exc:
            raise _unreadable(exc.filename, exc) from exc


def context_from_paths(names: Sequence[str], scratch: Path) -> Context:
    """The context that files and folders make. "-" is standard input, kept in `scratch` meanwhile.

    One file is its text or its JSON value; a folder, or several names, are a dict of name to text. Hidden files
    and binary files in a folder are left out; a file that is named is taken as it is, a pipe is read to its end.

    Raises: InputError when a name cannot be read, or there is nothing in what is named.
    """
    if list(names).count(STDIN) > 1:
        raise InputError("standard input (-) can be read once only")
    if {STDIN, "stdin"} <= set(names):
        raise InputError("standard input (-) is called 'stdin': name the file of that name ./stdin")
    files: dict[str, Path] = {}
    skipped: list[str] = []
    for name in names:
        path = Path(name)
        if name != STDIN and path.is_dir():
            for relative in _in_folder(path):
                label = relative if len(names) == 1 else (path / relative).as_posix()
                if _is_text(path / relative):
                    files[label] = (path / relative).resolve()
                else:
                    skipped.append(label)
        elif name == STDIN:
            files["stdin"] = _save(sys.stdin.buffer, scratch)
        else:
            files[name if len(names) > 1 else path.name] = _readable(path, scratch)
    if not files:
        raise InputError(f"there is no text in {', '.join(names)}: name a file, or a folder with text files")
    if len(names) == 1 and (names[0] == STDIN or not Path(names[0]).is_dir()):
        ((name, path),) = files.items()
        return Context(kind=_KIND_BY_SUFFIX.get(Path(name).suffix.lower(), "text"), files=((name, path),))
    return Context(kind="files", files=tuple(files.items()), skipped=tuple(skipped))


def context_from_text(text: str, kind: Kind, scratch: Path) -> Context:
    """The context that is one text, to be read as `kind`, written to `scratch`.

    Raises: UnicodeEncodeError when it holds lone surrogates that stand for no byte.
    """
    path = _new_file(scratch)
    try:
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            for start in range(0, len(text), CHUNK_CHARS):  # so that it is not encoded whole
                file.write(text[start : start + CHUNK_CHARS])
    except UnicodeEncodeError:
        path.unlink()
        raise
    return Context(kind=kind, files=(("context", path),))


def context_from_value(value: object, scratch: Path) -> Context:
    """The context that a Python value makes, written to `scratch`. A Path is a file or a folder.

    Raises: InputError when the value is neither text, nor a path, nor JSON.
    """
    if isinstance(value, Context):
        return value
    if isinstance(value, Path):
        return context_from_paths([str(value.absolute())], scratch)
    if isinstance(value, str):
        with contextlib.suppress(UnicodeEncodeError):  # lone surrogates: JSON brings them over
            return context_from_text(value, "text", scratch)
    path = _new_file(scratch)
    try:
        with path.open("w", encoding="ascii") as file:
            json.dump(value, file)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"the context must be a str, a Path or a JSON value: {exc}") from exc
    return Context(kind="json", files=(("context", path),))


def _in_folder(folder: Path) -> Iterator[str]:
    """The files in a folder and the folders in it, but for hidden ones, in order."""
    for inner in sorted(folder.rglob("*")):
        relative = inner.relative_to(folder)
        if inner.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def _readable(path: Path, scratch: Path) -> Path:
    """The file, or a copy of what comes out of a pipe or device."""
    try:
        with path.open("rb") as file:
            return path.resolve() if path.is_file() else _save(file, scratch)
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc


def _save(stream: IO[bytes], scratch: Path) -> Path:
    path = _new_file(scratch)
    with path.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _new_file(scratch: Path) -> Path:
    """An empty file of its own: a run's children keep their contexts in the same folder."""
    number, name = tempfile.mkstemp(prefix="context-", dir=scratch)
    os.close(number)
    return Path(name)


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(SNIFF_BYTES)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: object, exc: OSError | ValueError) -> InputError:
    return InputError(f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}")
