"""The REPL as a subprocess of this machine, isolated as far as the machine allows."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rlm.config import ReplLimits
from rlm.context import Context
from rlm.errors import ReplBrokenError, ReplDiedError
from rlm.repl.session import SIGNAL_STATUS, ReplProcess, how_it_ended
from sandbox_image import driver_path

ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")
STDERR_KEPT_CHARS = 4_000
STREAM_LIMIT_BYTES = 1 << 20
PROBE_TIMEOUT_S = 10
EXIT_TIMEOUT_S = 1

# A shell stands between the namespace and Python: the first process of a PID namespace cannot be killed from
# inside it, and `unshare` reports a killed child as exit status 1. What the shell says of its child is dropped.
_AS_CHILD = ("sh", "-c", 'exec 3>&2 2>/dev/null; "$@" 2>&3 3>&-; exit $?', "sh")
_NAMESPACES = ("unshare", "--user", "--map-current-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_NO_PRIVILEGES = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")
_UNSHARE = (*_DIE_WITH_US, *_NAMESPACES, *_NO_PRIVILEGES)

_NOTICES = {
    "unshare": "bwrap is not installed: model-written code has no network and sees no process of yours, but it can "
    "read and write your files",
    None: "this machine cannot isolate the REPL (neither bwrap nor unshare works): model-written code runs as you, "
    "with your files, your processes and your network",
}


def _bubblewrap(scratch: Path) -> tuple[str, ...]:
    """The file system read-only but for `scratch`; no network, processes, users or IPC of the host."""
    read_only = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", str(scratch), str(scratch))
    return ("bwrap", *read_only, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--")


def _works(prefix: tuple[str, ...]) -> bool:
    try:
        probe = subprocess.run([*prefix, "true"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


@functools.cache
def _working_tool() -> str | None:
    """The best this machine has to keep a REPL apart. Looked for once in a process."""
    if _works(_bubblewrap(Path(tempfile.gettempdir()))):
        return "bwrap"
    return "unshare" if _works(_UNSHARE) else None


class LocalReplLauncher:
    """Starts drivers as subprocesses, each with its own temporary folder. No variable of ours reaches them."""

    async def notice(self) -> str | None:
        """What the user is to be told, once, of how well this machine keeps model-written code apart."""
        return _NOTICES.get(await asyncio.to_thread(_working_tool))

    async def start(self, context: Context, limits: ReplLimits) -> ReplProcess:
        """A new driver."""
        del context, limits
        tool = await asyncio.to_thread(_working_tool)
        environment = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}
        scratch = Path(tempfile.mkdtemp(prefix="rlm-repl-"))
        prefix = {"bwrap": (*_bubblewrap(scratch), *_AS_CHILD), "unshare": (*_UNSHARE, *_AS_CHILD), None: ()}[tool]
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, "-I", "-X", "utf8", str(driver_path())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=scratch,
                env=environment | {"HOME": str(scratch), "TMPDIR": str(scratch)},
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
                limit=STREAM_LIMIT_BYTES,
            )
        )
        try:
            return LocalReplProcess(await asyncio.shield(starting), scratch)
        except asyncio.CancelledError:  # asyncio 3.11 waits for ever when a start is cancelled, so let it finish
            await LocalReplProcess(await starting, scratch).close()
            raise
        except OSError as exc:
            shutil.rmtree(scratch, ignore_errors=True)
            raise ReplBrokenError(f"cannot start the REPL: {exc}") from exc


class LocalReplProcess:
    """A driver that is a subprocess."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.reader = process.stdout
        self._stdin = process.stdin
        self._process = process
        self._scratch = scratch
        self._stderr_start = ""
        self._stderr = asyncio.create_task(self._drain_stderr(process.stderr))
        self._closing: asyncio.Task[str] | None = None

    async def write(self, data: bytes) -> None:
        """Send `data`."""
        try:
            self._stdin.write(data)
            await self._stdin.drain()
        except (ConnectionError, RuntimeError) as exc:  # RuntimeError: uvloop, when it is closed
            raise ReplDiedError from exc

    async def place(self, path: Path) -> str:
        """A file of this machine is readable where it is."""
        return str(path)

    async def close(self) -> str:
        """Kill the process, its group and, where it has one, its PID namespace. Goes on when it is cancelled."""
        if self._closing is None:
            ended_by_itself = self.reader.at_eof()
            if not ended_by_itself:
                self._kill()
            self._closing = asyncio.create_task(self._close(ended_by_itself=ended_by_itself))
        return await asyncio.shield(self._closing)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _close(self, *, ended_by_itself: bool) -> str:
        if ended_by_itself:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), EXIT_TIMEOUT_S)
            ended_by_itself = self._process.returncode is not None
            self._kill()
        self._stdin.close()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._process.wait()
                await self._stderr
        except TimeoutError:  # asyncio waits for the pipes, too, and a process that escaped us may hold them
            self._process._transport.close()  # type: ignore[attr-defined]
            self._stderr.cancel()
        status = await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        if not ended_by_itself:
            return "it was killed"
        return how_it_ended(SIGNAL_STATUS - status if status < 0 else status, self._stderr_start)

    async def _drain_stderr(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(STREAM_LIMIT_BYTES):
            self._stderr_start = (self._stderr_start + data.decode(errors="replace"))[:STDERR_KEPT_CHARS]
