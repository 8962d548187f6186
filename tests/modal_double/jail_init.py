"""The first process of a container: builds its file system, then starts and reaps processes for the double.

Runs as a script under `python -IS` (standard library only). `argv[1]` is the number of the control socket; the first
message on it is the plan, see `jail.py`. The double holds the other end: when that closes, for whatever reason, this
process leaves, and with it, as PID 1 of its namespace, everything it ever started.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(done, f"mount {source} on {target}")


def bind(source: str, target: str, *, read_only: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "wb").close()
    mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        mount("none", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def build_root(plan: dict[str, Any]) -> None:
    """An overlay over the host's `/`: the plan's layers above it, the masked directories empty, writes in memory."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    scratch = plan["scratch"]
    mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
    mask, upper, work, root = (f"{scratch}/{name}" for name in ("mask", "upper", "work", "root"))
    for path in (mask, upper, work, root):
        os.mkdir(path)
    for path in plan["masked"]:
        os.makedirs(mask + path, exist_ok=True)
        os.setxattr(mask + path, "trusted.overlay.opaque", b"y")
    lower = ":".join([*plan["layers"], mask, "/"])
    mount("overlay", root, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    for path in ("/root", "/tmp", "/proc", "/sys", "/dev"):
        os.makedirs(root + path, exist_ok=True)
    os.chmod(root + "/tmp", 0o1777)
    for path in plan["shown"]:
        bind(path, root + path, read_only=True)
    mount("proc", root + "/proc", "proc")
    mount("/sys", root + "/sys", "", MS_BIND | MS_REC)
    mount("/dev", root + "/dev", "", MS_BIND | MS_REC)
    mount("tmpfs", root + "/dev/shm", "tmpfs", 0, "mode=1777")
    for source, target, read_only in plan["binds"]:
        bind(source, root + target, read_only=read_only)
    os.chroot(root)
    os.chdir("/")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def run(spec: dict[str, Any], fds: list[int], errors: int) -> NoReturn:
    """In the child: become the program, or say through `errors` why not."""
    try:
        os.setsid()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.makedirs(spec["cwd"], exist_ok=True)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as exc:
        os.write(errors, f"{exc.strerror}: {spec['argv'][0]}".encode())
    finally:
        os._exit(127)


class Init:
    """Serves the control socket until it closes."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: set[int] = set()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([json.dumps(message).encode()], ancillary)

    def spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        with open(fds[0], "rb") as file:
            file.seek(0)
            spec = json.load(file)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            run(spec, fds[1:], writer)
        for fd in (*fds[1:], writer):
            os.close(fd)
        self.children.add(pid)
        with open(reader, "rb") as file:
            error = file.read().decode(errors="replace")
        self.send({"id": message["id"], "pid": pid} if not error else {"id": message["id"], "error": error})

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        match message["op"]:
            case "spawn":
                self.spawn(message, fds)
            case "signal":
                for target in (-message["pid"], message["pid"]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(target, message["signal"])
                        break
            case "socket":
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
                    self.send({"id": message["id"]}, (sock.fileno(),))

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.children:
                self.children.remove(pid)
                self.send({"exit": pid, "status": os.waitstatus_to_exitcode(status)})

    def serve(self) -> None:
        try:
            self.loop()
        finally:
            signal.set_wakeup_fd(-1)

    def loop(self) -> None:
        wake_reader, wake_writer = socket.socketpair()
        wake_reader.setblocking(False)
        wake_writer.setblocking(False)
        signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.send({"ready": True})
        poll = select.poll()  # not select: a descriptor that was high when it was inherited stays so
        for readable_one in (self.control, wake_reader):
            poll.register(readable_one, select.POLLIN)
        while True:
            readable = {fd for fd, _ in poll.poll()}
            if wake_reader.fileno() in readable:
                wake_reader.recv(4096)
                self.reap()
            if self.control.fileno() in readable:
                data, ancillary, _, _ = self.control.recvmsg(65536, 4096)
                if not data:
                    return
                fds: list[int] = []
                for _level, _kind, raw in ancillary:
                    fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
                for fd in fds:
                    os.set_inheritable(fd, False)
                self.handle(json.loads(data), fds)

    def kill_all(self) -> None:
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    plan = json.loads(control.recv(1 << 20))
    if plan["isolated"]:
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWPID | (CLONE_NEWNET if plan["own_network"] else 0)), "unshare")
        pid = os.fork()
        if pid:
            control.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            build_root(plan)
            if plan["own_network"]:
                loopback_up()
        except OSError as exc:
            control.send(json.dumps({"failed": str(exc)}).encode())
            os._exit(1)
    init = Init(control)
    try:
        init.serve()
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    finally:
        init.kill_all()


if __name__ == "__main__":
    main()
