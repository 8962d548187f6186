import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm.errors import WorkerError
from rlm.local.workers import STDERR_TAIL_BYTES, LocalLauncher
from tests.workers.support import until, wait_for_end, worker_pids


def environment_of(pid):
    return dict(pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if pair)


def test_a_worker_gets_the_key_and_nothing_else_that_is_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "not this one")

    async def main():
        launcher = LocalLauncher({"OPENAI_API_KEY": "sk-given"})
        entry = await launcher.start()
        (pid,) = worker_pids()
        seen = environment_of(pid)
        assert seen["OPENAI_API_KEY"] == "sk-given"
        assert seen["RLM_WORKER_TOKEN"] == entry.token
        assert "AWS_SECRET_ACCESS_KEY" not in seen
        assert os.getsid(pid) == pid  # a Ctrl-C in the terminal does not reach it
        await launcher.stop(entry)
        assert worker_pids() == []
        await launcher.stop(entry)  # does nothing

    asyncio.run(main())


def test_a_worker_that_cannot_start_says_why_and_leaves_nothing():
    async def main():
        launcher = LocalLauncher({"OPENAI_API_KEY": "k", "RLM_WORKER_CONCURRENCY": "many"})
        with pytest.raises(WorkerError, match=r"invalid literal for int.*'many'") as raised:
            await launcher.start()
        assert "\n" not in str(raised.value)
        (whole,) = raised.value.__notes__
        assert "Traceback" in whole
        assert len(whole) <= STDERR_TAIL_BYTES
        assert worker_pids() == []

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_nothing():
    async def main():
        start = asyncio.create_task(LocalLauncher({"OPENAI_API_KEY": "k"}).start())
        await until(worker_pids)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert worker_pids() == []

    asyncio.run(main())


def test_a_worker_that_hangs_is_killed():
    async def main():
        launcher = LocalLauncher({"OPENAI_API_KEY": "k"})
        entry = await launcher.start()
        os.kill(worker_pids()[0], signal.SIGSTOP)
        await launcher.stop(entry)
        assert worker_pids() == []

    asyncio.run(main())


def test_a_worker_does_not_outlive_a_host_that_was_killed():
    script = Path(__file__).with_name("orphan_host.py")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as host:
        assert host.stdout.readline().startswith(b"http://127.0.0.1:")
        (pid,) = worker_pids(host.pid)
        host.kill()
        assert wait_for_end(pid, timeout_s=10)
