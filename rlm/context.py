"""The context of a run, as files: what a user names, or hands over as a value, before a REPL reads it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from rlm.errors import InputError
from rlm.folder import Skipped, text_files
from rlm.formats import SNIFF_BYTES, format_of
from rlm.streams import read_some, save

Kind = Literal["text", "json", "jsonl", "files"]
STDIN = "-"
CHUNK_CHARS = 1 << 20
SKIPPED_TOLD = 5
_KIND_BY_SUFFIX: dict[str, Kind] = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Files that become the variable `context`, and how they are to be read.

    "text" is one str, "json" any JSON value, "jsonl" a list of them, "files" a dict of name to str. `skipped`
    are what a folder held besides.
    """

    kind: Kind
    files: tuple[tuple[str, Path], ...]
    skipped: tuple[Skipped, ...] = ()

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

    One file is its text or its JSON value; a folder, or several names, are a dict of name to text. A link that is
    named is followed, a pipe is read to its end. Hidden files of a folder are left out; what else of it is left
    out is in `skipped`.

    Raises: InputError when a name cannot be read, is not text, or there is nothing in what is named.
    """
    _check_names(names)
    files: dict[str, Path] = {}
    skipped: list[Skipped] = []
    for name in names:
        path = Path(name)
        if name == STDIN:
            files["stdin"] = _standard_input(scratch)
        elif _is_folder(path):
            for found in text_files(path):
                label = found.name if isinstance(found, Skipped) else found[0]
                label = label if len(names) == 1 else (path / label).as_posix()
                if isinstance(found, Skipped):
                    skipped.append(replace(found, name=label))
                else:
                    files[label] = found[1]
        else:
            files[name if len(names) > 1 else path.name] = _named_file(path, scratch)
    context = Context(kind="files", files=tuple(files.items()), skipped=tuple(skipped))
    if context.size_bytes == 0:
        left_out = "".join(f"; {one.name} {one.why}" for one in skipped[:SKIPPED_TOLD])
        raise InputError(f"there is no text in {', '.join(names)}: name a file, or a folder with text files{left_out}")
    if len(names) == 1 and (names[0] == STDIN or not _is_folder(Path(names[0]))):
        ((name, _),) = context.files
        return replace(context, kind=_KIND_BY_SUFFIX.get(Path(name).suffix.lower(), "text"))
    return context


def without(context: Context, secret: Path) -> Context:
    """The context but for the file `secret`, by whatever name or link it is there: model-written code must not see it.

    Raises: InputError when nothing else is there, or a file cannot be read.
    """
    try:
        kept = tuple((name, path) for name, path in context.files if not path.samefile(secret))
    except OSError as exc:
        raise _unreadable(exc.filename, exc) from exc
    if not kept:
        raise InputError(f"{secret} holds the key, so it cannot be the context")
    names = {name for name, _ in context.files} - {name for name, _ in kept}
    skipped = tuple(Skipped(name, "holds the key") for name in sorted(names))
    return replace(context, files=kept, skipped=(*skipped, *context.skipped))


def _check_names(names: Sequence[str]) -> None:
    if list(names).count(STDIN) > 1:
        raise InputError("standard input (-) can be read once only")
    if {STDIN, "stdin"} <= set(names):
        raise InputError("standard input (-) is called 'stdin': name the file of that name ./stdin")
    if "" in names:
        raise InputError("the name of a context is empty")  # as an unset variable is, and not the folder one is in


def context_from_text(text: str, kind: Kind, scratch: Path) -> Context:
    """The context that is one text, to be read as `kind`, written to `scratch`.

    Raises: UnicodeEncodeError when it holds lone surrogates that stand for no byte; InputError when there is no
    place for it.
    """
    path = _new_file(scratch)
    try:
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            for start in range(0, len(text), CHUNK_CHARS):  # so that it is not encoded whole
                file.write(text[start : start + CHUNK_CHARS])
    except UnicodeEncodeError:
        path.unlink()
        raise
    except OSError as exc:
        raise _cannot_write(exc) from exc
    return Context(kind=kind, files=(("context", path),))


def context_from_value(value: object, scratch: Path) -> Context:
    """The context that a Python value makes, written to `scratch`.

    A Path is a file or a folder; a list of Paths is what several names are. Of other values comes JSON, with pydantic
    models as dicts, dates and times as ISO 8601, and sets as lists, sorted where they can be.

    Raises: InputError when the value is neither text, nor paths, nor JSON, or there is no place for it.
    """
    if isinstance(value, Context):
        return value
    if isinstance(value, Path):
        return context_from_paths([str(value.absolute())], scratch)
    if isinstance(value, list | tuple) and value and all(isinstance(item, Path) for item in value):
        # "./-" is a file, and "-" would be standard input
        return context_from_paths([f"./{item}" if str(item) == STDIN else str(item) for item in value], scratch)
    if isinstance(value, str):
        with contextlib.suppress(UnicodeEncodeError):  # lone surrogates: JSON brings them over
            return context_from_text(value, "text", scratch)
    path = _new_file(scratch)
    try:
        with path.open("w", encoding="ascii") as file:
            json.dump(value, file, default=_json_of)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"the context must be a str, a Path, a list of Paths or a JSON value: {exc}") from exc
    except OSError as exc:
        raise _cannot_write(exc) from exc
    return Context(kind="json", files=(("context", path),))


def _json_of(value: object) -> object:
    """What stands in JSON for a value that JSON does not know.

    Raises: TypeError where nothing does.
    """
    if isinstance(value, set | frozenset):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "model_dump"):  # of pydantic, which is not imported for that
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc


def _standard_input(scratch: Path) -> Path:
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed")
    try:
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:  # it is no path
            return _copy(stream, "standard input", scratch)
    except OSError as exc:
        raise _unreadable("standard input", exc) from exc


def _named_file(path: Path, scratch: Path) -> Path:
    """The file, or a copy of what comes out of a pipe or device."""
    try:
        with path.open("rb", buffering=0) as file:
            if path.is_file() and path.stat().st_size:
                _refuse_what_is_not_text(file.read(SNIFF_BYTES), str(path))
                return path.resolve()
            return _copy(file, str(path), scratch)  # files in /proc have a size of 0, too
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc


def _copy(stream: BinaryIO, name: str, scratch: Path) -> Path:
    begin = read_some(stream, SNIFF_BYTES)
    _refuse_what_is_not_text(begin, name)
    path = _new_file(scratch)
    try:
        save(stream, path, name, begin=begin)
    except OSError as exc:
        raise _cannot_write(exc) from exc
    return path


def _new_file(scratch: Path) -> Path:
    """An empty file of its own: a run's children keep their contexts in the same folder."""
    try:
        number, name = tempfile.mkstemp(prefix="context-", dir=scratch)
    except OSError as exc:
        raise _cannot_write(exc) from exc
    os.close(number)
    return Path(name)


def _cannot_write(exc: OSError) -> InputError:
    return InputError(f"cannot write the context: {exc.strerror or exc}; set TMPDIR to a folder with room")


def _refuse_what_is_not_text(sample: bytes, name: str) -> None:
    known = format_of(sample)
    if known is not None:
        raise InputError(f"{name} is {known.name}, and there is no reader for that: {known.remedy}")


def _unreadable(path: object, exc: OSError | ValueError) -> InputError:
    return InputError(f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}")
