"""Where containers and Sandboxes live: one `Jail` each, with a file system and, if asked, a network of its own.

The work inside is done by `jail_init.py`; this is the double's end of its control socket. Sockets of the inside are
made there and handed out, so the double connects to a Sandbox's port, or listens inside it, without being in it.
"""

import array
import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("modal_double")

_INIT = Path(__file__).with_name("jail_init.py")


class JailError(Exception):
    """The container could not be made, or is gone."""


class SpawnError(Exception):
    """The program could not be started inside a living container."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A host directory or file shown at a path inside."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class JailPlan:
    """How a container looks.

    `layers` are directories laid over the host's root, the first on top; `masked` are host directories shown empty,
    except for the paths in `shown`.
    """

    layers: Sequence[Path] = ()
    binds: Sequence[Bind] = ()
    masked: Sequence[str] = ()
    shown: Sequence[str] = ()
    own_network: bool = False


@functools.cache
def isolation() -> bool:
    """Whether this machine lets us have namespaces and overlays; found out by trying."""
    if os.environ.get("MODAL_DOUBLE_NO_ISOLATION") == "1" or not Path("/dev/shm").is_dir():
        return False
    if shutil.which("unshare") is None:
        return False
    script = (
        "mount -t tmpfs t /dev/shm && cd /dev/shm && mkdir u w r"
        " && mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w r"
    )
    done = subprocess.run(["unshare", "-m", "-n", "-p", "-f", "sh", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


class Jail:
    """One running container. Make it with `start`, end it with `close`; `gone` is set when it is over."""

    def __init__(self, popen: "subprocess.Popen[bytes]", control: socket.socket, scratch: Path) -> None:
        self.gone = asyncio.Event()
        self._popen = popen
        self._control = control
        self._scratch = scratch
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, plan: JailPlan, scratch: Path) -> "Jail":
        """Raises JailError when the machine does not allow what the plan asks for."""
        os.makedirs(scratch)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            spec = {
                "isolated": isolation(),
                "own_network": plan.own_network,
                "scratch": str(scratch),
                "layers": [str(path) for path in plan.layers],
                "masked": list(plan.masked),
                "shown": list(plan.shown),
                "binds": [[str(b.source), b.target, b.read_only] for b in plan.binds],
            }
            ours.send(json.dumps(spec).encode())
            popen = subprocess.Popen(  # noqa: ASYNC220 - a vfork of a millisecond, and no child watcher is needed
                [sys.executable, "-IS", str(_INIT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},  # seen from inside
                start_new_session=True,
                close_fds=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        jail = cls(popen, ours, scratch)
        asyncio.get_running_loop().add_reader(ours.fileno(), jail._on_readable)
        try:
            await jail._ready
        except BaseException:
            await jail.close()
            raise
        return jail

    async def spawn(self, argv: Sequence[str], env: Mapping[str, str], cwd: str, fds: Sequence[int]) -> int:
        """Start a program inside; `fds` become its 0, 1 and 2, and stay open here. Returns its pid inside.

        Raises:
            SpawnError: there is no such program, or it may not be run.
            JailError: the container is gone.
        """
        spec_fd = os.memfd_create("spec")
        try:
            os.write(spec_fd, json.dumps({"argv": list(argv), "env": dict(env), "cwd": cwd}).encode())
            reply, _ = await self._ask({"op": "spawn"}, [spec_fd, *fds])
        finally:
            os.close(spec_fd)
        if "error" in reply:
            raise SpawnError(reply["error"])
        pid = int(reply["pid"])
        self._exit_of(pid)
        return pid

    async def wait(self, pid: int) -> int:
        """The exit status of a spawned process: negative for a signal. -9 when the container went first."""
        return await asyncio.shield(self._exit_of(pid))

    def signal(self, pid: int, number: signal.Signals) -> None:
        if not self.gone.is_set():
            self._send({"op": "signal", "pid": pid, "signal": int(number)}, [])

    async def socket(self) -> socket.socket:
        """A TCP socket of the network inside. Raises JailError."""
        _, fds = await self._ask({"op": "socket"}, [])
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        return sock

    async def close(self) -> None:
        """End everything inside. Safe to call more than once."""
        self._lose()
        try:
            await asyncio.to_thread(self._popen.wait, 2.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            await asyncio.to_thread(self._popen.wait)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def kill(self) -> None:
        """End everything inside at once, as a dying machine would."""
        self._popen.kill()

    def _exit_of(self, pid: int) -> asyncio.Future[int]:
        if pid not in self._exits:
            self._exits[pid] = asyncio.get_running_loop().create_future()
            if self.gone.is_set():
                self._exits[pid].set_result(-signal.SIGKILL)
        return self._exits[pid]

    async def _ask(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        if self.gone.is_set():
            raise JailError("the container is gone")
        number = next(self._ids)
        reply: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        self._send({**message, "id": number}, fds)
        return await reply

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._control.sendmsg([json.dumps(message).encode()], ancillary)
        except OSError as exc:
            self._lose()
            raise JailError("the container is gone") from exc

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._control.recvmsg(65536, 256)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._lose()
            return
        fds: list[int] = []
        for _level, _kind, raw in ancillary:
            fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
        message = json.loads(data)
        if "ready" in message:
            self._ready.set_result(None)
        elif "failed" in message:
            self._ready.set_exception(JailError(message["failed"]))
        elif "exit" in message:
            self._exit_of(message["exit"]).set_result(message["status"])
        elif (reply := self._replies.pop(message["id"], None)) is not None and not reply.done():
            reply.set_result((message, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _lose(self) -> None:
        if self.gone.is_set():
            return
        self.gone.set()
        with contextlib.suppress(ValueError):
            asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        if not self._ready.done():
            self._ready.set_exception(JailError("the container ended while it was made"))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(JailError("the container is gone"))
        for waiter in self._exits.values():
            if not waiter.done():
                waiter.set_result(-signal.SIGKILL)
