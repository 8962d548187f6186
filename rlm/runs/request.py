"""A run to be made, here or elsewhere: the question, where its context comes from, how it is to be answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlm import scratch
from rlm.config import RunConfig
from rlm.context import Context, Kind, context_from_paths, context_from_value
from rlm.engine import RLM
from rlm.errors import InputError
from rlm.folder import Skipped
from rlm.run import RunResult, new_run_id


class ContextSource(Protocol):
    """Where a context comes from."""

    def open(self, scratch: Path) -> Context:
        """The context as files; what must be written goes to `scratch`.

        Raises: InputError when it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Inline:
    """A context that travels with the request: a text or a JSON value."""

    value: object

    def open(self, scratch: Path) -> Context:
        """Write it to a file."""
        return context_from_value(self.value, scratch)


@dataclass(frozen=True, slots=True)
class Paths:
    """Files and folders of this machine, as `--context` names them."""

    names: tuple[str, ...]

    def open(self, scratch: Path) -> Context:
        """The files where they are."""
        return context_from_paths(self.names, scratch)


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files of this machine that have been looked at already."""

    context: Context

    def open(self, scratch: Path) -> Context:
        """The files where they are."""
        del scratch
        return self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """Files that were brought to a folder that the run can see, each under its number in `names`."""

    kind: Kind
    names: tuple[str, ...]
    folder: str
    skipped: tuple[Skipped, ...] = ()

    def open(self, scratch: Path) -> Context:
        """The files where they are."""
        del scratch
        files = tuple((name, Path(self.folder, str(number))) for number, name in enumerate(self.names))
        return Context(kind=self.kind, files=files, skipped=self.skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """All that a run needs to know, but for who answers and where processes run."""

    question: str
    source: ContextSource
    config: RunConfig
    prices: str = ""
    """Prices that override or add to rlm/prices.toml, in its form."""
    run_id: str = field(default_factory=new_run_id)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InputError("the question is empty")


async def make_run(
    rlm: RLM, request: RunRequest, answered: Callable[[RunResult], Awaitable[None]] | None = None
) -> RunResult:
    """Answer the request with an RLM of its configuration that was not entered yet.

    `answered` is given the result as soon as it is there: what is waited for afterwards, such as workers on their
    way, keeps no answer back. Raises: as `RLM.run` does.
    """
    with scratch.folder("context") as folder:
        context = request.source.open(folder)
        async with rlm:
            result = await rlm.run(request.question, context, run_id=request.run_id)
            if answered is not None:
                await answered(result)
    return result
