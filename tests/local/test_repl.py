"""A REPL of this machine ends with all that it started, and leaves nothing behind, however it is ended."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rlm.config import ReplLimits
from rlm.context import context_from_value
from rlm.errors import InputError, ReplBrokenError, ReplDiedError
from rlm.local.repl import LocalReplLauncher
from rlm.repl.session import ReplSession
from tests.local.hosts import run_host, session_code


@pytest.fixture
def temp(tmp_path, monkeypatch):
    """A temporary folder of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_folder_goes_with_the_session(temp, start, launcher):
    repl = start(launcher=launcher)
    repl.run("""
        import os
        for depth in range(3000): os.mkdir("d"); os.chdir("d")
        os.chdir(os.environ["HOME"]); os.makedirs("closed/inner"); os.chmod("closed/inner", 0); os.chmod("closed", 0)
    """)
    assert len(list(temp.glob("rlm-repl-*"))) == 1
    assert repl.close() == "it was killed"
    assert list(temp.glob("rlm-repl-*")) == []


def test_a_folder_that_cannot_be_removed_is_told_and_not_raised(temp, start, launcher):
    repl = start(launcher=launcher)
    (folder,) = temp.glob("rlm-repl-*")
    folder.rename(temp / "moved")
    assert repl.close() == f"it was killed; {folder} could not be removed: No such file or directory"


def test_a_context_that_is_gone_is_told(temp, start, launcher):
    path = temp / "context.txt"
    path.write_text("x")
    context = context_from_value(path, temp)
    path.unlink()
    with pytest.raises((InputError, ReplBrokenError), match=r"context\.txt"):
        start(context, launcher=launcher)
    assert list(temp.glob("rlm-repl-*")) == []


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


def test_what_cells_leave_running_ends_with_the_session(start, launcher):
    repl = start(launcher=launcher)
    marker = f"86401.{os.getpid()}"
    pids = start_sleeps(repl, marker)
    repl.close()
    wait_until_gone(pids)
    assert pids_of(marker) == []


def test_what_cells_leave_running_ends_with_a_dead_process(start, launcher):
    repl = start(launcher=launcher)
    pids = start_sleeps(repl, f"86402.{os.getpid()}")
    with contextlib.suppress(Exception):
        repl.run("os._exit(1)")
    wait_until_gone(pids)


def test_a_killed_host_leaves_no_process_and_its_folders_are_swept_later(tool, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    marker = f"86403.{os.getpid()}"
    cell = f"import subprocess; child = subprocess.Popen(['sleep', {marker!r}], start_new_session=True); print('up')"
    code = session_code([tool], cell, "sum(range(10 ** 14))")
    host = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    with host:
        try:
            assert host.stdout.readline() == "up\n"
            (sleep,) = wait_for(marker, 1)
            driver = int(Path(f"/proc/{sleep}/stat").read_text().rpartition(")")[2].split()[1])
        finally:
            host.kill()
    wait_until_gone([sleep, driver])
    assert list(tmp_path.glob("rlm-repl-*"))
    assert run_host(session_code([tool], "1"), env=environment).stdout == "1\n"
    assert list(tmp_path.glob("rlm-repl-*")) == []


async def nothing(call):
    return []


@pytest.mark.parametrize("after_s", [0, 0.01, 0.03, 0.3])
def test_cancellation_leaves_nothing(tmp_path, monkeypatch, after_s, tool):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    marker = f"86404.{os.getpid()}"

    async def use():
        session = ReplSession(LocalReplLauncher([tool]), context_from_value("", tmp_path), ReplLimits(), nothing)
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


def test_ctrl_c_leaves_nothing(tmp_path, tool):
    marker = f"86405.{os.getpid()}"
    cell = f"import subprocess; child = subprocess.Popen(['sleep', {marker!r}]); print('up')"
    command = [sys.executable, "-c", session_code([tool], cell, "while True: pass")]
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


def test_a_process_that_escapes_with_our_pipes_does_not_hold_up_the_end():
    """It is forked in C, where our hooks do not run, and where nothing isolates."""
    cell = (
        "import ctypes, os, time\nif ctypes.CDLL(None).fork() == 0: os.setsid(); time.sleep(8); os._exit(0)\n'forked'"
    )
    began = time.monotonic()
    assert run_host(session_code([], cell)).stdout == "'forked'\n"
    assert time.monotonic() - began < 6
