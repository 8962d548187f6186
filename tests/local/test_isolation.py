"""The REPL holds no secret, reaches nothing of the host that can be kept from it, and leaves nothing behind."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from rlm.config import ReplLimits
from rlm.context import context_from_value
from rlm.errors import ReplDiedError
from rlm.local.repl import LocalReplLauncher
from rlm.repl.session import ReplSession

NOTICE = """
    import asyncio
    from rlm.local.repl import LocalReplLauncher
    print(asyncio.run(LocalReplLauncher().notice()))
"""


def with_tools(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which there are no programs but these."""
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return os.environ | {"PATH": str(folder)}


def run_host(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=15, **options)


def isolates() -> bool:
    notice = asyncio.run(LocalReplLauncher().notice())
    return notice is None or "cannot isolate" not in notice


needs_isolation = pytest.mark.skipif(not isolates(), reason="neither bwrap nor unshare works here")
tools = pytest.mark.parametrize("tool", ["bwrap", "unshare"])


def environment_for(tool: str, folder: Path) -> dict[str, str]:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    return with_tools(folder, tool, "sh", "true", *([] if tool == "bwrap" else ["setpriv"]))


SESSION = """
    import asyncio, sys, tempfile
    from pathlib import Path
    from rlm.context import context_from_value
    from rlm.local.repl import LocalReplLauncher
    from rlm.config import ReplLimits
    from rlm.repl.session import ReplSession

    async def answer(call): return [{"text": p} for p in call.items]
    async def main():
        with tempfile.TemporaryDirectory() as folder:
            context = context_from_value("text", Path(folder))
            async with ReplSession(LocalReplLauncher(), context, ReplLimits(), answer) as repl:
                for cell in CELLS:
                    result = await repl.run(cell)
                    print(result.stdout, result.value, result.error or "", sep="", flush=True)
    asyncio.run(main())
"""


def test_the_environment_is_built_from_an_allowlist():
    result = run_host(
        "CELLS = ['import os; sorted(os.environ)']\n" + textwrap.dedent(SESSION),
        env=os.environ | {"OPENAI_API_KEY": "sk-secret", "MY_SETTING": "x"},
    )
    assert set(eval(result.stdout)) <= {
        "PATH",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "HOME",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "PWD",
    }


REACH = """
    import os, pathlib, socket, subprocess
    seen = subprocess.run("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline", shell=True, capture_output=True).stdout
    print("secret seen:", b"sk-secret" in seen)
    try:
        socket.create_connection(("127.0.0.1", PORT), 1)
        print("connected")
    except OSError:
        print("no network")
    try:
        os.kill(HOST, 0)
        print("host seen")
    except OSError:
        print("no host")
    print(open("/proc/self/status").read().split("CapEff:")[1].split()[0])
    print(subprocess.run(["umount", "-l", "/proc"], capture_output=True).returncode != 0)
"""


@needs_isolation
@tools
def test_secrets_network_and_processes_of_the_host_are_out_of_reach(tool, tmp_path):
    environment = environment_for(tool, tmp_path) | {"OPENAI_API_KEY": "sk-secret"}
    for name in ("cat", "umount"):
        (tmp_path / name).symlink_to(shutil.which(name))
    reach = textwrap.dedent(REACH)
    code = f"""
        import os, socket
        server = socket.create_server(("127.0.0.1", 0))
        reach = {reach!r}.replace("PORT", str(server.getsockname()[1])).replace("HOST", str(os.getpid()))
        CELLS = [reach]
    """
    result = run_host(textwrap.dedent(code) + textwrap.dedent(SESSION), env=environment)
    assert result.stdout.split("\n")[:5] == ["secret seen: False", "no network", "no host", "0" * 16, "True"]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed")
def test_bubblewrap_keeps_the_files_from_being_changed(start, tmp_path):
    repl = start("x")
    assert "Read-only file system" in repl.run(f"open({str(tmp_path / 'new')!r}, 'w')").error
    assert repl.run("open('own', 'w').write('x')").value == "1"


def test_a_machine_that_cannot_isolate_says_so_and_runs_on(tmp_path):
    environment = with_tools(tmp_path)
    assert run_host(NOTICE, env=environment).stdout.startswith(
        "this machine cannot isolate the REPL (neither bwrap nor"
    )
    assert run_host("CELLS = ['context']\n" + textwrap.dedent(SESSION), env=environment).stdout == "'text'\n"


def test_a_tool_that_is_there_but_does_not_work_is_not_used(tmp_path):
    for name in ("bwrap", "unshare", "setpriv"):
        (tmp_path / name).write_text("#!/bin/sh\necho not allowed >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    assert "cannot isolate" in run_host(NOTICE, env=os.environ | {"PATH": str(tmp_path)}).stdout


@needs_isolation
@tools
def test_the_notice_tells_what_is_lacking(tool, tmp_path):
    said = run_host(NOTICE, env=environment_for(tool, tmp_path)).stdout
    assert said == "None\n" if tool == "bwrap" else "bwrap is not installed" in said


def test_the_temporary_folder_goes_with_the_session(start):
    repl = start()
    folder = repl.run("import tempfile; print(tempfile.mkdtemp())\nimport os; os.getcwd()").value.strip("'")
    assert Path(folder).is_dir()
    assert folder != tempfile.gettempdir()
    repl.close()
    assert not Path(folder).exists()


def pids_of(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def wait_for(marker: str, count: int) -> list[int]:
    """The processes that have `marker` as an argument, when there are so many: one shows its own after its exec."""
    while len(found := pids_of(marker)) < count:
        pass
    return found


def wait_until_gone(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            assert select.select([handle], [], [], 5)[0], f"process {pid} is left"
            os.close(handle)


def start_sleeps(repl, seconds: str) -> list[int]:
    result = repl.run(f"""
        import os, subprocess
        children = [subprocess.Popen(["sleep", "{seconds}"], start_new_session=own) for own in (False, True)]
        grandchild = subprocess.run("setsid sleep {seconds} >/dev/null 2>&1 & echo $!", shell=True)
    """)
    assert result.error is None
    return wait_for(seconds, 3)


@needs_isolation
def test_what_cells_leave_running_ends_with_the_session(start):
    repl = start()
    pids = start_sleeps(repl, "86401.25")
    repl.close()
    wait_until_gone(pids)
    assert pids_of("86401.25") == []


@needs_isolation
def test_what_cells_leave_running_ends_with_a_dead_process(start):
    repl = start()
    pids = start_sleeps(repl, "86402.25")
    with contextlib.suppress(Exception):
        repl.run("os._exit(1)")
    wait_until_gone(pids)


@needs_isolation
@tools
def test_a_killed_host_leaves_no_process(tool, tmp_path):
    (tmp_path / "bin").mkdir()
    environment = environment_for(tool, tmp_path / "bin") | {"TMPDIR": str(tmp_path)}  # the dead leave their folder
    (tmp_path / "bin" / "sleep").symlink_to(shutil.which("sleep"))
    marker = f"86403.{os.getpid()}"
    cell = f"import subprocess; child = subprocess.Popen(['sleep', {marker!r}], start_new_session=True); print('up')"
    code = f"CELLS = [{cell!r}, 'sum(range(10 ** 14))']\n" + textwrap.dedent(SESSION)
    host = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    with host:
        try:
            assert host.stdout.readline() == "up\n"
            (sleep,) = wait_for(marker, 1)
            driver = int(Path(f"/proc/{sleep}/stat").read_text().rpartition(")")[2].split()[1])
        finally:
            host.kill()
    wait_until_gone([sleep, driver])


async def nothing(call):
    return []


@pytest.mark.parametrize("after_s", [0, 0.01, 0.03, 0.3])
def test_cancellation_leaves_nothing(tmp_path, monkeypatch, after_s):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    marker = f"86404.{after_s}"

    async def use():
        session = ReplSession(LocalReplLauncher(), context_from_value("", tmp_path), ReplLimits(), nothing)
        async with session as repl:
            await repl.run(f"import subprocess; subprocess.run(['sleep', '{marker}'])")

    async def main():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                await use()

    asyncio.run(main())
    assert list(tmp_path.glob("rlm-repl-*")) == []
    assert pids_of(marker) == []


def test_a_cancelled_cell_does_not_run_on_into_the_next(repl):
    async def cancelled():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await repl.session.run("import time; time.sleep(60)")
        return await repl.session.run("'next'")

    assert repl.runner.run(cancelled()).value == "'next'"


def test_ctrl_c_leaves_nothing(tmp_path):
    marker = f"86405.{os.getpid()}"
    cell = f"import subprocess; child = subprocess.Popen(['sleep', {marker!r}]); print('up')"
    code = f"CELLS = [{cell!r}, 'while True: pass']\n" + textwrap.dedent(SESSION)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as host:
        assert host.stdout.readline() == "up\n"
        pids = wait_for(marker, 1)
        host.send_signal(signal.SIGINT)
        assert host.stderr.read().endswith("KeyboardInterrupt\n")
    wait_until_gone(pids)
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_and_closing_what_died_is_harmless(start):
    repl = start()
    repl.close()
    assert repl.close() == ""
    assert repl.run("1").value == "1"
    with contextlib.suppress(ReplDiedError):
        repl.run("import os, threading; threading.Timer(0, os._exit, [7]).start()")
    repl.close()


def test_a_process_that_escapes_with_our_pipes_does_not_hold_up_the_end(tmp_path):
    """It is forked in C, where our hooks do not run, and where nothing isolates."""
    cell = (
        "import ctypes, os, time\nif ctypes.CDLL(None).fork() == 0: os.setsid(); time.sleep(8); os._exit(0)\n'forked'"
    )
    code = f"CELLS = [{cell!r}]\n" + textwrap.dedent(SESSION)
    began = time.monotonic()
    assert run_host(code, env=os.environ | {"PATH": str(tmp_path)}).stdout == "'forked'\n"
    assert time.monotonic() - began < 6
