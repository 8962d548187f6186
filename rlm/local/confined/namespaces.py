"""Namespaces of a process's own: a file system of what is shown to it, its processes, no network."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct

from rlm.local.confined import kernel
from rlm.local.confined.plan import MEMORY, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
NR_MOUNT_SETATTR = 442  # on every machine
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SIGNAL_STATUS = 128
DEVICES = ("null", "zero", "full", "random", "urandom")
SHM = "/dev/shm"  # noqa: S108


def enter(plan: Plan) -> None:
    """Return in a process that sees what the plan shows, and nothing else of this machine.

    It is a grandchild: the caller itself and the first process of the new namespace, which nobody in it can kill,
    stay behind to wait, and end with the same status.

    Raises: OSError when the system does not allow it.
    """
    kernel.die_with(plan.host_pid)
    user, group = os.getuid(), os.getgid()
    kernel.unshare(NEW_NAMESPACES)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    alive, held = os.pipe()
    if first := os.fork():
        os.close(alive)
        leave_with(first)
    os.close(held)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:
        os._exit(1)  # the caller ended before that
    os.close(alive)
    build(plan)
    if driver := os.fork():
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # it keeps its rights in the namespace, so nobody may look inside
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        leave_with(driver)
    kernel.die_with(1)
    os.setsid()


def leave_with(child: int) -> NoReturn:
    """Wait for the end of a child, hands off its pipes, and end as it did."""
    os.closerange(0, 3)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else SIGNAL_STATUS - code)


def build(plan: Plan) -> None:
    """Make the file system, and make it the root."""
    kernel.mount("", "/", "", MS_REC | MS_SLAVE)
    root = plan.root
    size = f"size={plan.home_bytes}"
    tmpfs(root, "size=1m")
    for folder in ("/proc", "/dev", "/run", "/var", MEMORY):
        os.makedirs(root + folder)
    tmpfs(root + MEMORY, f"{size},mode=700")
    os.mkdir(root + plan.home)
    for path, target in plan.links:
        os.symlink(target, root + path)
    for source, path in plan.shown:
        bind(source, root + path)
        protect(root + path, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, AT_RECURSIVE)
    build_devices(root, size)
    kernel.mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for inner in ("/proc", "/dev", ""):
        protect(root + inner, ATTR_RDONLY | ATTR_NOSUID)
    os.chdir(root)
    kernel.pivot_root(".", ".")
    kernel.umount(".", MNT_DETACH)
    os.chdir(plan.home)


def build_devices(root: str, size: str) -> None:
    """The devices that only give or take bytes, and shared memory."""
    tmpfs(root + "/dev", "size=64k,mode=755")
    for name in DEVICES:
        bind(f"/dev/{name}", f"{root}/dev/{name}")
    protect_devices(root, DEVICES)
    for name, descriptor in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{descriptor}", f"{root}/dev/{name}")
    os.mkdir(root + SHM)
    tmpfs(root + SHM, f"{size},mode=1777")


def protect_devices(root: str, names: tuple[str, ...]) -> None:
    """Keep root, who owns the host's devices, from changing their modes: one may still read and write them."""
    for name in names:
        protect(f"{root}/dev/{name}", ATTR_RDONLY | ATTR_NOSUID)


def tmpfs(path: str, options: str) -> None:
    """An empty file system in memory."""
    kernel.mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options)


def bind(source: str, target: str) -> None:
    """Show a file or folder at `target`, which is made if need be."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    kernel.mount(source, target, "", MS_BIND | MS_REC)


def protect(path: str, attributes: int, flags: int = 0) -> None:
    """Set attributes of what is mounted there; those that it has stay."""
    wanted = ctypes.create_string_buffer(struct.pack("QQQQ", attributes, 0, 0, 0))
    kernel.syscall(NR_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, wanted, 32)
