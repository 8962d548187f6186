"""Runs on Modal: made in the Function `solve`, remembered in a modal.Dict, their contexts brought by a Volume."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import modal

from rlm.cleanup import forgiving
from rlm.config import Provider
from rlm.context import Context
from rlm.engine import RLM, tell_notice, unfailing
from rlm.environment import environment_with
from rlm.errors import InputError, PlatformError, RLMError
from rlm.events import Emit
from rlm.run import RunResult
from rlm.runs.request import LocalFiles, RunRequest, Uploaded, make_run
from rlm.runs.store import ENDED, RunRecord
from rlm.terminal import in_one_line, say

UPLOADS = Path("/contexts")  # where the Functions see the Volume


async def upload(volume: modal.Volume, context: Context) -> Uploaded:
    """Bring the files of a context to the Volume; the source that finds them there.

    Raises: InputError when one cannot be read any more.
    """
    folder = uuid.uuid4().hex
    try:
        async with volume.batch_upload.aio() as batch:
            for number, (_, path) in enumerate(context.files):
                batch.put_file(path, f"/{folder}/{number}")
    except (FileNotFoundError, PermissionError) as exc:
        raise InputError(f"cannot read {exc.filename}: {exc.strerror or exc}") from exc
    return Uploaded(
        kind=context.kind,
        names=tuple(name for name, _ in context.files),
        folder=str(UPLOADS / folder),
        skipped=context.skipped,
    )


async def forget(volume: modal.Volume, source: Uploaded) -> None:
    """Take an uploaded context from the Volume again."""
    with contextlib.suppress(modal.exception.NotFoundError, FileNotFoundError):
        await volume.remove_file.aio(Path(source.folder).name, recursive=True)


async def follow(
    request: RunRequest, solve_live: modal.Function[Any, Any, Any], volume: modal.Volume, tell: Emit
) -> RunResult:
    """Have the run made by the generator Function `solve_live` and hear its events; files of ours go there first.

    Raises: InputError for files that cannot be read; what the run raises.
    """
    tell = unfailing(tell)
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(request.source, LocalFiles):
            files = uploaded(volume, request.source.context)
            notice = partial(tell_notice, tell, request.run_id)
            request = replace(request, source=await stack.enter_async_context(forgiving(files, notice)))
        items = await stack.enter_async_context(contextlib.aclosing(solve_live.remote_gen.aio(request)))
        async for item in items:
            if isinstance(item, RunResult):
                return item
            tell(item)
    raise PlatformError("the run on Modal ended without a result")


@contextlib.asynccontextmanager
async def uploaded(volume: modal.Volume, context: Context) -> AsyncIterator[Uploaded]:
    """The files of a context on the Volume, for a while."""
    source = await upload(volume, context)
    try:
        yield source
    finally:
        await forget(volume, source)


async def make_recorded(
    request: RunRequest,
    rlm: RLM,
    store: modal.Dict,
    volume: modal.Volume,
    deliver: Callable[[RunResult], None] = lambda _: None,
) -> RunResult:
    """Make the run in this container, and write down how it stands.

    The result is written down, and then given to `deliver`, before the pool is closed, which waits for workers on
    their way. Raises: as `make_run` does.
    """

    async def answered(result: RunResult) -> None:
        await remember(store, succeeded(request.run_id, result))
        deliver(result)

    await remember(store, RunRecord(id=request.run_id, state="running"))
    if isinstance(request.source, Uploaded):
        await volume.reload.aio()  # type: ignore[no-untyped-call]
    try:
        return await make_run(rlm, request, answered)
    except RLMError as exc:
        await remember(store, RunRecord(id=request.run_id, state="failed", error=str(exc)))
        raise


def secret_values(arguments: Sequence[str]) -> dict[str, str] | None:
    """The provider's variables from the file that --env-file names among the arguments; None if it names none.

    Raises: InputError when the file cannot be read, or names no provider.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env-file", type=Path)
    env_file = parser.parse_known_args(list(arguments))[0].env_file
    if env_file is None:
        return None
    return Provider.from_environment(environment_with(env_file)).environment()


def optional_secret(name: str) -> modal.Secret:
    """The Secret of that name, or an empty one where there is none: what needs it must then be closed."""
    secret = modal.Secret.from_name(name)
    if modal.is_local():
        try:
            secret.hydrate()
        except modal.exception.Error:
            return modal.Secret.from_dict({})
    return secret


@contextlib.contextmanager
def as_platform_error() -> Iterator[None]:
    """What Modal raises, as ours."""
    try:
        yield
    except modal.exception.Error as exc:
        raise PlatformError(f"Modal: {exc}") from exc


class DictRunStore:
    """A `RunStore`. What the web writes and what the run writes are different keys, so that no update is lost."""

    def __init__(self, store: modal.Dict, solve: modal.Function[Any, Any, Any]) -> None:
        self._store = store
        self._solve = solve

    async def submit(self, request: RunRequest) -> None:
        """Start the run."""
        call = await self._solve.spawn.aio(request)
        await self._store.put.aio(_call_key(request.run_id), call.object_id)

    async def get(self, run_id: str) -> RunRecord | None:
        """How the run stands. A call that ended without a word from the run has failed."""
        call_id = await self._store.get.aio(_call_key(run_id))
        record: RunRecord | None = await self._store.get.aio(_record_key(run_id))
        if record is not None and record.state in ENDED:
            return record
        if call_id is None:
            return record
        if await self._store.get.aio(_cancelled_key(run_id)):
            return RunRecord(id=run_id, state="cancelled")
        record = record or RunRecord(id=run_id, state="queued")
        try:
            result = await modal.FunctionCall.from_id(call_id).get.aio(timeout=0)
        except builtins.TimeoutError:
            return record
        except Exception as exc:  # noqa: BLE001  # whatever the Function raised, or Modal says of it
            return replace(record, state="failed", error=str(exc) or type(exc).__name__)
        return succeeded(run_id, result)

    async def cancel(self, run_id: str) -> RunRecord | None:
        """End the run's Function call; it ends its own REPL."""
        record = await self.get(run_id)
        if record is None or record.state in ENDED:
            return record
        await self._store.put.aio(_cancelled_key(run_id), value=True)
        call_id = await self._store.get.aio(_call_key(run_id))
        if call_id is not None:
            await modal.FunctionCall.from_id(call_id).cancel.aio()
        return await self.get(run_id)


async def remember(store: modal.Dict, record: RunRecord) -> None:
    """Write down how a run stands; the run's own part of it.

    A write that fails is told in the container's log and ends nothing: the Function call has the result, too.
    """
    try:
        await store.put.aio(_record_key(record.id), record)
    except Exception as exc:  # noqa: BLE001  # no trouble with the Dict is worth an answer
        say(f"run {record.id} is {record.state}, which could not be written down: {in_one_line(str(exc))[:500]}")


def succeeded(run_id: str, result: RunResult) -> RunRecord:
    """The record of a run that ended in order, with or without an answer."""
    return RunRecord(
        id=run_id,
        state="succeeded",
        answer=result.answer,
        value=result.value,
        stopped_by=result.stopped_by,
        iterations=result.iterations,
        usage=result.usage,
        cost_usd=result.cost_usd,
    )


def _call_key(run_id: str) -> str:
    return f"{run_id}/call"


def _record_key(run_id: str) -> str:
    return f"{run_id}/record"


def _cancelled_key(run_id: str) -> str:
    return f"{run_id}/cancelled"
