"""Ctrl-C and the signals that end a program: everything is ended in order, and the status tells which it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rlm.offline.server import Fault
from tests.command import started
from tests.conftest import cell

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 129, signal.SIGQUIT: 131}


def processes_with(words):
    """The processes whose environment or command line has the words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if words.encode() in told and int(folder.name) != os.getpid():
            found.append(folder.name)
    return found


def wait_for(running, reached):
    while not reached():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize("sent", STATUS)
def test_in_the_middle_of_sub_calls_everything_is_ended(sent, text, provider, tmp_path):
    hang = Fault(match="hang", hang_s=60, times=99)
    server, env = provider(cell("parallel_llm_query(['h' + 'ang'] * 30)"), faults=(hang,))
    (tmp_path / "tmp").mkdir()
    with started("ask", "Q?", "--context", text, env=env | {"TMPDIR": str(tmp_path / "tmp")}) as running:
        wait_for(running, lambda: server.stats().in_flight >= 2)
        assert len(processes_with(server.base_url)) > 1
        running.send_signal(sent)
        stdout, stderr = running.communicate(timeout=15)
        assert (running.returncode, stdout, stderr.splitlines()[-1]) == (STATUS[sent], "", "rlm: interrupted")
        assert processes_with(server.base_url) == processes_with(str(tmp_path / "tmp")) == []
        assert list((tmp_path / "tmp").iterdir()) == []


def test_in_the_middle_of_a_cell_everything_is_ended(text, provider, tmp_path):
    _, env = provider(cell("open(1, 'w').write('x'); import time; time.sleep(60)"))
    log = tmp_path / "log"
    with started("ask", "Q?", "--context", text, "--log", log, "--json", env=env) as running:
        wait_for(running, lambda: log.exists() and "cell_started" in log.read_text())
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=15)
        assert running.returncode == 130
        report = json.loads(stdout)
        assert (report["error"], report["stopped_by"], report["iterations"]) == ("interrupted", "interrupted", 1)
        assert f"all that was said is in {log}" in stderr.splitlines()
        assert json.loads(log.read_text().splitlines()[-1])["event"] == "run_failed"


@pytest.mark.parametrize("sent", STATUS)
def test_while_it_waits_for_standard_input_what_it_has_written_is_removed(sent, tmp_path):
    with started(
        "ask", "Q?", "--context", "-", "--offline", stdin=subprocess.PIPE, env={"TMPDIR": str(tmp_path)}
    ) as running:
        running.stdin.write("a line\n" * 100_000)
        running.stdin.flush()
        wait_for(running, lambda: list(tmp_path.glob("rlm-context-*/context-*")))
        running.send_signal(sent)
        running.wait(timeout=15)
        assert running.returncode == STATUS[sent]
        assert "rlm: interrupted" in running.stderr.read()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(ignored, text, provider):
    slow = Fault(match="slow", hang_s=1.0)
    server, env = provider(cell("llm_query('sl' + 'ow')\nFINAL('on')"), faults=(slow,))
    ignoring = ("env", f"--ignore-signal={ignored.name.removeprefix('SIG')}")
    with started("ask", "Q?", "--context", text, env=env, before=ignoring) as running:
        wait_for(running, lambda: server.stats().in_flight)
        running.send_signal(ignored)
        stdout, _ = running.communicate(timeout=15)
        assert (running.returncode, stdout) == (0, "on\n")
