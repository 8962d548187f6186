"""The command line: run, deploy, serve, and that everything ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.modal_double import ModalDouble

from .conftest import children

ROOT = Path(__file__).parents[2]


def start(*command: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.modal_double", *command],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def leftovers() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"THIS_TEST=1" in path.read_bytes():
                found.append((path.parent / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return found


def test_a_command_runs_against_it(apps: Path) -> None:
    with start("--", "modal", "run", str(apps / "hello.py"), "--n", "5") as popen:
        output, _ = popen.communicate(timeout=20)
    for line in ("remote: 25", "map: [0, 1, 4, 9, 16]", "spawn: 49 49", "gen: [0, 1, 2, 3, 4]", "nested: 30",
                 "concurrent: 1 True", "error: no 3", "square of 3 in /root"):  # fmt: skip
        assert line in output
    assert popen.returncode == 0


def test_its_status_is_the_commands(apps: Path) -> None:
    with start("--secret", "s=A:1", "--", "sh", "-c", "echo $MODAL_SERVER_URL; exit 7") as popen:
        output, _ = popen.communicate(timeout=15)
    assert output.startswith("http://127.0.0.1:")
    assert popen.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_everything_ends_with_it(apps: Path, number: signal.Signals, needs_isolation: None) -> None:
    command = ("--secret", "never-made=", "--", "modal", "run", f"{apps / 'broken.py'}::hang")
    with start(*command, THIS_TEST="1") as popen:
        assert popen.stdout is not None
        for line in popen.stdout:
            if line.startswith("hanging"):
                break
        else:
            pytest.fail("the app did not come to hang")
        if number == signal.SIGINT:
            os.killpg(popen.pid, number)
        else:
            popen.send_signal(number)
        popen.stdout.read()
        popen.wait(timeout=15)
    wait_for(lambda: not leftovers())


def test_what_an_orphaned_command_leaves_is_ended(apps: Path) -> None:
    with start("--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & true", THIS_TEST="1") as popen:
        popen.communicate(timeout=15)
    assert not leftovers()


def test_what_is_not_in_the_image_is_not_there(own_double: ModalDouble, apps: Path) -> None:
    own_double.set_secret("never-made", {})
    done = own_double.cli("run", f"{apps / 'broken.py'}::main")
    assert done.returncode != 0
    assert "No module named 'neighbour'" in done.stdout + done.stderr
    wait_for(lambda: not own_double.containers())


def test_a_missing_secret_is_found_at_deploy(own_double: ModalDouble, apps: Path) -> None:
    done = own_double.cli("deploy", str(apps / "broken.py"))
    assert done.returncode != 0
    assert "never-made" in done.stdout + done.stderr


def test_deploying_again_replaces_the_code(own_double: ModalDouble, apps: Path, tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    shutil.copy(apps / "edited.py", path)
    assert own_double.cli("deploy", str(path)).returncode == 0
    url = own_double.web_url("edited", "web")
    assert httpx.get(url, timeout=15).text == "version 1"
    path.write_text(path.read_text().replace("version 1", "version 2"))
    assert own_double.cli("deploy", str(path)).returncode == 0
    assert own_double.web_url("edited", "web") == url
    assert httpx.get(url, timeout=15).text == "version 2"
    assert own_double.cli("app", "stop", "edited", "--yes").returncode == 0
    assert httpx.get(url, timeout=15).status_code == 404


def test_serve_reloads_on_an_edit(own_double: ModalDouble, apps: Path, tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    shutil.copy(apps / "edited.py", path)
    command = [sys.executable, "-m", "modal", "serve", str(path)]
    with subprocess.Popen(
        command, env={**os.environ, **own_double.env}, stdout=subprocess.DEVNULL, start_new_session=True
    ) as popen:
        try:
            wait_for(lambda: own_double.rpc_counts["AppPublish"] == 1)
            url = own_double.web_url("edited", "web")
            assert httpx.get(url, timeout=15).text == "version 1"
            path.write_text(path.read_text().replace("version 1", "version 2"))
            wait_for(lambda: own_double.rpc_counts["AppPublish"] >= 2)
            wait_for(lambda: httpx.get(url, timeout=15).text == "version 2")
        finally:
            os.killpg(popen.pid, signal.SIGINT)
            popen.wait(timeout=10)


def test_serve_stays_up_and_says_how_to_reach_it() -> None:
    with start("serve") as popen:
        assert popen.stdout is not None
        lines = [popen.stdout.readline() for _ in range(5)]
        env = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        done = subprocess.run(
            [sys.executable, "-m", "modal", "app", "list", "--json"],
            env={**os.environ, **env}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "[]"
        popen.terminate()
        assert popen.wait(timeout=10) == 0


def test_an_unknown_rpc_is_named(own_double: ModalDouble) -> None:
    done = own_double.cli("environment", "list")
    assert done.returncode != 0
    assert "EnvironmentList is not implemented" in done.stdout + done.stderr
    assert own_double.unknown_rpcs == {"EnvironmentList": 1}


def test_nothing_is_left_of_a_double(apps: Path) -> None:
    before = children()
    with ModalDouble() as double:
        double.cli("deploy", str(apps / "edited.py"))
        httpx.get(double.web_url("edited", "web"), timeout=15)
        assert children() - before
        workspace = Path(double.env["MODAL_CONFIG_PATH"]).parent
        assert workspace.is_dir()
    assert not children() - before
    assert not workspace.exists()
