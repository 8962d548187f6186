"""Where no namespaces can be had: Landlock, which keeps files, signals and abstract sockets from a process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct

from rlm.local.confined import kernel, seccomp
from rlm.local.confined.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

NR_CREATE_RULESET, NR_ADD_RULE, NR_RESTRICT_SELF = 444, 445, 446  # on every machine
ASK_VERSION = 1
NEEDED_VERSION = 6  # the first to keep signals and abstract sockets
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 2, 4, 8, 1 << 14, 1 << 15
MAKE_CHARACTER_DEVICE, MAKE_BLOCK_DEVICE = 1 << 6, 1 << 11
ALL_OF_FILES = (1 << 16) - 1
ALL_OF_TCP = 3
SCOPES = 3  # abstract Unix sockets; signals
ON_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
OWN = ALL_OF_FILES & ~(IOCTL_DEV | MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE)
SYSTEM = ("/proc/loadavg", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys/devices/system/cpu")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SIGNAL_STATUS = 128


def enter(plan: Plan) -> None:
    """Return in a child that reaches the files that the plan shows, its home, and nothing else of this machine.

    The caller stays behind: when the child ends, and on SIGTERM, it ends all that the child has started.

    Raises: OSError when the system cannot keep what we promise.
    """
    version = kernel.syscall(NR_CREATE_RULESET, None, 0, ASK_VERSION)
    if version < NEEDED_VERSION or not seccomp.can_filter():
        raise OSError(f"the kernel's Landlock has version {version}, and {NEEDED_VERSION} is needed")
    kernel.die_with(plan.host_pid, signal.SIGTERM)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    if child := os.fork():
        keep(child)
    kernel.die_with(keeper)
    os.setpgid(0, 0)
    restrict(plan)


def keep(child: int) -> None:
    """Wait for the child's end, end its group, and end as it did. Its group holds all that it starts: seccomp."""
    os.closerange(0, 3)

    def end_group() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def on_term(_number: int, _frame: FrameType | None) -> None:
        end_group()

    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(child, child)  # the child does so too: whoever is first
    signal.signal(signal.SIGTERM, on_term)
    code = 0
    try:
        while True:
            pid, status = os.wait()
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                end_group()
    except ChildProcessError:
        os._exit(code if code >= 0 else SIGNAL_STATUS - code)


def restrict(plan: Plan) -> None:
    """Let this process reach nothing but what the plan shows. Raises: OSError."""
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    handled = ctypes.create_string_buffer(struct.pack("QQQ", ALL_OF_FILES, ALL_OF_TCP, SCOPES), 24)
    rules = kernel.syscall(NR_CREATE_RULESET, handled, 24, 0)
    allow(rules, plan.home, OWN)
    for source, _ in plan.shown:
        allow(rules, source, READ)
    for path in SYSTEM:
        if os.path.exists(path):
            allow(rules, path, READ)
    for path in DEVICES:
        allow(rules, path, READ_FILE | WRITE_FILE)
    own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)  # stays open: the rule is for this very entry
    allow(rules, f"/proc/self/fd/{own}", READ)
    kernel.syscall(NR_RESTRICT_SELF, rules, 0)
    os.close(rules)


def allow(rules: int, path: str, rights: int) -> None:
    """Allow these rights on a file, or on a folder and all below it."""
    number = os.open(path, os.O_PATH)
    try:
        if not os.path.isdir(path):
            rights &= ON_A_FILE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, number), 12)
        kernel.syscall(NR_ADD_RULE, rules, PATH_BENEATH, rule, 0)
    finally:
        os.close(number)
