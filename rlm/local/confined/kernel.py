"""The system calls that Python 3.11 has no names for."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

LINUX_CAPABILITY_VERSION_3 = 0x20080522
LAST_CAPABILITY = 63
MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)
Argument = int | bytes | None | ctypes.Array[ctypes.c_char]


def check(result: int, what: str) -> int:
    """The result. Raises: OSError when it tells of an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: Argument) -> int:
    """The system call of that number. Raises: OSError."""
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return check(_libc.syscall(ctypes.c_long(number), *wide), f"system call {number}")


def prctl(option: int, *arguments: int) -> None:
    """prctl(2). Raises: OSError."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    check(_libc.prctl(option, *map(ctypes.c_ulong, padded)), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2). Raises: OSError."""
    check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises: OSError."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    check(_libc.mount(*texts, ctypes.c_ulong(flags), data.encode()), f"mount {kind or source} at {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2). Raises: OSError."""
    check(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), f"pivot_root to {new}")


def umount(target: str, flags: int) -> None:
    """umount2(2). Raises: OSError."""
    check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def die_with(parent: int, by: int = signal.SIGKILL) -> None:
    """Have this process sent a signal when its parent ends; end it now when that is another one already."""
    prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def drop_privileges() -> None:
    """Give up every capability, now and for whatever is executed later. Raises: OSError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(LAST_CAPABILITY + 1):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # the kernel has no more, or we have not even the right to drop them
    header = ctypes.create_string_buffer(LINUX_CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4), 8)
    check(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")
    prctl(PR_SET_DUMPABLE, 1)  # or else what is below /proc/self is not ours
