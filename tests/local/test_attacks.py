"""What model-written code must not be able to do, tried under each tool that keeps it apart."""

import asyncio
import contextlib
import os
import pty
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm.config import ReplLimits
from rlm.context import Context
from rlm.local.confined import seccomp
from rlm.local.repl import LocalReplLauncher
from rlm.repl.session import ReplSession
from rlm.scratch import Scratch
from sandbox_image import worker_path
from tests.repl.conftest import Repl, shout

MARK = "sk-live-secret"
LARGE_BYTES = 2 << 20  # shown where it lies; a small file is copied

PRELUDE = """
    import ctypes, fcntl, glob, mmap, os, pathlib, resource, signal, socket, stat, subprocess, sys, termios
    libc = ctypes.CDLL(None, use_errno=True)
    def done(result):
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result
    def syscall(*arguments):
        return done(libc.syscall(*map(ctypes.c_long, arguments)))
    def connect(family, address, kind=socket.SOCK_STREAM):
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            s.connect(address)
            return s.send(b"x")
    def attempt(attack):
        try:
            return f"done: {attack()!r}"
        except (OSError, ValueError) as exc:
            return f"refused: {exc}"
"""

ATTACKS = {
    "read a key of the user": "open(SECRET).read()",
    "read it through /proc": "open(f'/proc/self/root{SECRET}').read()",
    "read it through the first process": "open(f'/proc/1/root{SECRET}').read()",
    "read it with another working folder": "os.chdir('../..' + os.path.dirname(SECRET)) or open('id_rsa').read()",
    "read the env file beside the context": "open(ENV_FILE).read()",
    "list the folder of the context": "os.listdir(os.path.dirname(ENV_FILE))",
    "change the context": "os.open(CONTEXT, os.O_WRONLY)",
    "change the large context": "os.open(LARGE, os.O_WRONLY)",
    "change the large context where it is placed": "os.open(PLACED, os.O_WRONLY)",
    "read passwords": "open('/etc/shadow').read()",
    "change the worker": "os.open(WORKER, os.O_WRONLY)",
    "truncate the worker": "os.truncate(WORKER, 0)",
    "remove the worker": "os.unlink(WORKER)",
    "replace the worker": "os.rename(__import__('tempfile').mkstemp()[1], WORKER)",
    "link to the worker": "os.link(WORKER, 'worker')",
    "put a file beside the worker": "open(WORKER + '.new', 'w')",
    "change Python": "open(os.__file__, 'a')",
    "read another run's context": "open(OTHER_CONTEXT).read()",
    "change another run's context": "open(OTHER_CONTEXT, 'w')",
    "write to another run's folder": "open(OTHER_HOME + '/planted', 'w')",
    "list another run's folder": "os.listdir(OTHER_HOME)",
    "write to the root": "os.mkdir('/planted')",
    "write to /var": "open('/var/planted', 'w')",
    "write to /var/tmp": "open('/var/tmp/planted', 'w')",
    "write to /run": "open('/run/planted', 'w')",
    "write to /dev": "open('/dev/planted', 'w')",
    "write to the terminal": "open('/dev/tty', 'w')",
    "write to the user's terminal": "open(TERMINAL, 'w')",
    "type into a terminal": "fcntl.ioctl(os.openpty()[1], termios.TIOCSTI, b'x')",
    "read a disk": "os.open('/dev/vda', os.O_RDONLY)",
    "make a disk": "os.mknod('disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
    "speak to a socket by path": "connect(socket.AF_UNIX, SOCKET)",
    "speak to a socket by abstract name": "connect(socket.AF_UNIX, ABSTRACT)",
    "speak to the host by TCP": "connect(socket.AF_INET, ('127.0.0.1', PORT))",
    "speak to the world by UDP": "connect(socket.AF_INET, ('192.0.2.1', 53), socket.SOCK_DGRAM)",
    "speak to what the virtual machine runs on": "socket.socket(socket.AF_VSOCK)",
    "use the kernel's ciphers": "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "speak to the kernel by netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "name the host": "open('/proc/sys/kernel/hostname', 'w').write('x')",
    "set where core files go": "open('/proc/sys/kernel/core_pattern', 'w')",
    "give the machine a command": "open('/proc/sysrq-trigger', 'w')",
    "write kernel settings elsewhere": "open('/sys/kernel/mm/transparent_hugepage/enabled', 'w')",
    "signal the host": "os.kill(HOST, 0)",
    "hold the host": "os.pidfd_open(HOST) and signal.pidfd_send_signal(os.pidfd_open(HOST), 0)",
    "read the host's environment": "open(f'/proc/{HOST}/environ').read()",
    "read the host's memory": "open(f'/proc/{HOST}/mem', 'rb')",
    "trace the host": "done(libc.ptrace(16, HOST, 0, 0))",
    "limit the host": "resource.prlimit(HOST, resource.RLIMIT_NOFILE, (9, 9))",
    "slow down the host": "os.setpriority(os.PRIO_PROCESS, HOST, 5)",
    "schedule the host": "os.sched_setaffinity(HOST, [0])",
    "trace the first process": "done(libc.ptrace(16, 1, 0, 0))",
    "write the first process's memory": "open('/proc/1/mem', 'r+b')",
    "mount": "done(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, b''))",
    "make a mount writable": "done(libc.mount(None, b'/usr/bin', None, 4096 | 32, None))",
    "unmount": "done(libc.umount2(b'/proc', 2))",
    "have namespaces again": "done(libc.unshare(0x10000000))",
    "have a child in namespaces": "syscall(CLONE, 0x10000011, 0, 0, 0, 0) or os._exit(0)",
    "chroot": "os.chroot('.')",
    "become another user": "os.setuid(12345)",
    "hide memory in a file without a name": "os.memfd_create('x')",
    "hide memory in System V's": "done(libc.shmget(0, 1 << 20, 0o1600))",
    "hide from the host": "done(libc.prctl(4, 0, 0, 0, 0))",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What an attack is after, on the host."""

    home: Path
    other_run: Scratch
    sleeper: subprocess.Popen[bytes]
    repl: Repl
    tool: str

    def try_to(self, expression: str) -> str:
        result = self.repl.run(f"attempt(lambda: {expression})")
        return (result.error or result.value).strip("'\"")


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, str, int]]:
    """Sockets of the user: by path, by abstract name, by port."""
    with contextlib.ExitStack() as stack:
        path = f"/tmp/rlm-test-agent-{os.getpid()}"
        abstract = f"\0rlm-test-agent-{os.getpid()}"
        for address in (path, abstract):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen(8)
        stack.callback(os.unlink, path)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield path, abstract, tcp.getsockname()[1]


@pytest.fixture(scope="module")
def target(tool, tmp_path_factory) -> Iterator[Target]:
    """A REPL over two files, with all around it that it must not reach."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_rsa").write_text(MARK)
    (home / "work").mkdir()
    (home / "work" / ".env").write_text(f"OPENAI_API_KEY={MARK}")
    (home / "work" / "context.txt").write_text("the context")
    (home / "work" / "large.txt").write_bytes(b"L" * LARGE_BYTES)
    files = tuple((name, home / "work" / name) for name in ("context.txt", "large.txt"))
    other_run = Scratch("context")
    (other_run.path / "context-1").write_text(MARK)
    (other_run.path / "home").mkdir()
    sleep = [sys.executable, "-c", "input()", MARK]
    with (
        asyncio.Runner() as runner,
        listening() as (path, abstract, port),
        subprocess.Popen(sleep, env={"MARK": MARK}, stdin=subprocess.PIPE) as sleeper,
        open_terminal() as terminal,
    ):
        session = ReplSession(LocalReplLauncher([tool]), Context(kind="files", files=files), ReplLimits(), shout)
        runner.run(session.__aenter__())
        repl = Repl(runner, session)
        names = {
            "SECRET": home / ".ssh" / "id_rsa",
            "ENV_FILE": home / "work" / ".env",
            "CONTEXT": files[0][1],
            "LARGE": files[1][1],
            "PLACED": runner.run(session._process.place(files[1][1])),
            "WORKER": worker_path(),
            "OTHER_CONTEXT": other_run.path / "context-1",
            "OTHER_HOME": other_run.path / "home",
            "TERMINAL": terminal,
            "SOCKET": path,
            "ABSTRACT": abstract,
        }
        clone = seccomp.CLONE[list(seccomp.AUDIT_ARCHITECTURE).index(os.uname().machine)]
        given = {name: str(value) for name, value in names.items()}
        given |= {"PORT": port, "HOST": sleeper.pid, "CLONE": clone}
        code = "\n".join(f"{name} = {value!r}" for name, value in given.items())
        assert repl.run(textwrap.dedent(PRELUDE) + code).error is None
        yield Target(home, other_run, sleeper, repl, tool)
        repl.close()
        sleeper.kill()
    other_run.remove()


@contextlib.contextmanager
def open_terminal() -> Iterator[str]:
    """A terminal of the user's."""
    ours, theirs = pty.openpty()
    yield os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("what", ATTACKS)
def test_model_written_code_cannot(target, what):
    assert target.try_to(ATTACKS[what]).startswith("refused: ")


def test_where_it_has_a_network_of_its_own_it_may_use_it(target):
    if target.tool == "landlock":
        pytest.skip("there is none")
    result = target.repl.run("""
        server = socket.socket(socket.AF_UNIX); server.bind("own"); server.listen()
        client = socket.socket(socket.AF_UNIX); client.connect("own"); client.send(b"x")
        [socket.socket(family).close() for family in (socket.AF_INET, socket.AF_INET6)]
        server.accept()[0].recv(1)
    """)
    assert result.value == "b'x'"


def test_the_context_is_there_all_the_same(target):
    assert target.repl.run("{name: len(text) for name, text in context.items()}").value == (
        f"{{'context.txt': 11, 'large.txt': {LARGE_BYTES}}}"
    )


def test_its_own_folder_and_python_and_programs_are_usable(target):
    result = target.repl.run("""
        import json, tempfile, sqlite3, multiprocessing
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "a").write_text("own")
            os.rename(folder + "/a", folder + "/b")
            print(open(folder + "/b").read(), os.listdir(folder))
        print(subprocess.run("echo $((6 * 7)) | tr 4 5", shell=True, capture_output=True, text=True).stdout)
        print(subprocess.run([sys.executable, "-c", "import json; print(json.dumps([1]))"],
                             capture_output=True, text=True, check=True).stdout)
        open(os.devnull, "w").write("x"), len(os.urandom(4))
    """)
    assert result.error is None
    assert result.stdout == "own ['b']\n52\n\n[1]\n\n"
    assert result.value == "(1, 4)"


def test_modes_and_owners_of_the_users_files_stay(target):
    """Landlock lets one change them: there the calls seem to succeed."""
    paths = [target.home / ".ssh" / "id_rsa", worker_path(), Path("/dev/null"), target.other_run.path / "context-1"]
    before = [path.stat() for path in paths]
    for path in map(str, paths):
        target.try_to(f"os.chmod({path!r}, 0o646)")
        target.try_to(f"os.utime({path!r}, (1, 1))")
        target.try_to(f"os.setxattr({path!r}, 'user.x', b'1')")
        target.try_to(f"done(libc.chown({path.encode()!r}, os.getuid(), os.getgid()))")
        target.try_to(f"os.fchmod(os.open({path!r}, os.O_RDONLY), 0o646)")
    after = [path.stat() for path in paths]
    assert [(one.st_mode, one.st_mtime, one.st_uid) for one in after] == [
        (one.st_mode, one.st_mtime, one.st_uid) for one in before
    ]
    assert all(os.listxattr(path) == [] for path in paths)


def test_the_users_processes_are_not_slowed_down(target):
    before = os.getpriority(os.PRIO_PROCESS, target.sleeper.pid)
    target.try_to("os.setpriority(os.PRIO_USER, os.getuid(), 19)")
    assert os.getpriority(os.PRIO_PROCESS, target.sleeper.pid) == before


def test_no_secret_of_another_process_is_to_be_seen(target):
    result = target.repl.run(f"""
        seen = b""
        for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try:
                seen += open(path, "rb").read()
            except OSError:
                pass
        {MARK!r}.encode() in seen
    """)
    assert result.value == "False"
    assert target.sleeper.poll() is None


def test_neither_it_nor_what_it_starts_has_a_right_or_gets_one(target):
    rights = "open('/proc/self/status').read()"
    inner = f"subprocess.run([sys.executable, '-c', \"print({rights})\".replace('/self', '/thread-self')], text=True)"
    result = target.repl.run(f"print({rights})\n{inner}" if target.tool != "landlock" else f"print({rights})")
    assert result.error is None
    found = [line.split() for line in result.stdout.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp:"))]
    assert len(found) == (14 if target.tool != "landlock" else 7)  # under Landlock a child cannot read of itself
    if target.tool == "landlock" and os.geteuid() != 0:
        found = [pair for pair in found if pair[0] != "CapBnd:"]  # it takes a right to drop what one cannot get anyhow
    assert {tuple(pair) for pair in found} == {
        *((name, "0" * 16) for name, _ in found if name.startswith("Cap")),
        ("NoNewPrivs:", "1"),
        ("Seccomp:", "2"),
    }


def test_it_inherits_nothing_but_its_pipes(tool, start):
    repl = start(launcher=LocalReplLauncher([tool]))
    links = repl.run("""
        import os
        for number in os.listdir("/proc/self/fd"):
            try:
                print(os.readlink(f"/proc/self/fd/{number}").split(":")[0])
            except OSError:
                pass
    """).stdout.split()
    own = {f"/proc/{repl.run('os.getpid()').value}"} if tool == "landlock" else set()  # what it may know of itself
    assert set(links) - own <= {"pipe", "/dev/null", "anon_inode"}  # the last is what it waits with


def test_every_call_that_is_to_be_refused_is(target):
    column = list(seccomp.AUDIT_ARCHITECTURE).index(os.uname().machine)
    tables = [seccomp.REFUSED] + ([seccomp.REFUSED_WITHOUT_NAMESPACES] if target.tool == "landlock" else [])
    for table in tables:
        for name, numbers in table.items():
            if numbers[column] is not None:
                result = target.try_to(f"syscall({numbers[column]}, -1, -1, -1, -1, -1, -1)")
                assert result.endswith("Operation not permitted"), f"{name}: {result}"


def test_symlinks_in_its_folder_do_not_lead_the_clean_up_astray(tool, tmp_path, start):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    repl = start("", launcher=LocalReplLauncher([tool]))
    repl.run(f"import os; os.symlink({str(tmp_path / 'kept')!r}, 'link'); os.makedirs('a/b'); os.symlink('/', 'a/b/c')")
    assert repl.close() == "it was killed"
    assert (tmp_path / "kept" / "file").read_text() == "x"


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_of_the_calls_are_those_of_the_kernels_headers(machine):
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    known = {}
    for line in header.read_text().splitlines():
        match line.replace("__NR3264_", "__NR_").split():
            case ["#define", name, number, *_] if name.startswith("__NR_") and number.isdigit():
                known[name.removeprefix("__NR_")] = int(number)
    column = list(seccomp.AUDIT_ARCHITECTURE).index(machine)
    tables = {
        **seccomp.REFUSED,
        **seccomp.REFUSED_WITHOUT_NAMESPACES,
        **seccomp.OF_OTHERS,
        **seccomp.WITHOUT_EFFECT,
        "clone": seccomp.CLONE,
        "clone3": seccomp.CLONE3,
        "ioctl": seccomp.IOCTL,
        "prctl": seccomp.PRCTL,
    }
    ours = {name: numbers[column] for name, numbers in tables.items() if numbers[column] is not None}
    newer = {name for name in ours if name not in known}
    assert {name: known[name] for name in ours if name in known} == {n: v for n, v in ours.items() if n in known}
    assert all(ours[name] >= 448 for name in newer), newer
