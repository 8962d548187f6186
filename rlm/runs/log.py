"""The run log: a file of JSON lines, one event each, written as it happens."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rlm.errors import InputError
from rlm.events import Event, as_json


class RunLog:
    """Appends events to a file. Each line: `event` (its name in snake case), `time` (Unix seconds), its fields.

    A disk that fills never fails the run: `trouble` says what went wrong, and nothing more is written.

    Raises: InputError when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        try:
            self._file = path.open("ab", buffering=0)
        except (OSError, ValueError) as exc:
            raise InputError(f"cannot write the log {path}: {getattr(exc, 'strerror', None) or exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if self.trouble is not None:
            return
        line = {"event": event_name(event), "time": round(time.time(), 3), **as_json(event)}
        data = memoryview(f"{json.dumps(line)}\n".encode("ascii"))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as exc:
            self.trouble = exc.strerror or str(exc)


def event_name(event: Event) -> str:
    """RootReplied → root_replied."""
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
