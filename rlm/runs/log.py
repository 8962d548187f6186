"""The run log: a file of JSON lines, one event each, written as it happens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rlm.errors import InputError
from rlm.events import Event, as_json


class RunLog:
    """Appends events to a file. Each line: `event` (its name in snake case), `time` (Unix seconds), its fields.

    Raises: InputError when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a", encoding="ascii", buffering=1)
        except OSError as exc:
            raise InputError(f"cannot write the log {path}: {exc.strerror or exc}") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Write one event."""
        line = {"event": event_name(event), "time": round(time.time(), 3), **as_json(event)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def event_name(event: Event) -> str:
    """RootReplied → root_replied."""
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
