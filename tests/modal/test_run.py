"""`modal run modal_app.py` and `--mode modal`: whole processes, through the real client and CLI."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from rlm.offline.server import OfflineSettings
from tests.conftest import cell
from tests.modal.conftest import ROOT, cloud_of

pytestmark = pytest.mark.usefixtures("needs_isolation")


def modal_run(cloud, *arguments, env=None):
    done = cloud.double.cli("run", *map(str, arguments), cwd=ROOT, env=env)
    assert cloud.double.sandboxes() == []
    assert [box for box in cloud.double.containers() if box.function != "web"] == []
    return done


def rlm(cloud, *arguments, env=None):
    done = cloud.double.run(sys.executable, "-m", "rlm", *map(str, arguments), cwd=ROOT, env=env)
    assert cloud.double.sandboxes() == []
    return done


@pytest.fixture
def lease(tmp_path):
    path = tmp_path / "lease.txt"
    path.write_text("It begins in March.\nThe lease was signed by Ada Lovelace.\n")
    return path


class TestModalRun:
    @pytest.mark.parametrize("options", [(), ("--force-parallel", "--pool-size", 4)])
    def test_it_finds_the_needle_streams_its_progress_and_leaves_nothing(self, cloud, options):
        done = modal_run(cloud, "modal_app.py", "--num-lines", 100_000, "--seed", 5, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        (expected,) = re.findall(r"^Expected: (\d{7})$", done.stdout, re.MULTILINE)
        assert f"Result: {expected}\n" in done.stdout
        assert "Match: True\n" in done.stdout
        assert re.search(r"\[ +[\d.]+ s\] iteration 2/10 · .*sub-calls 100/100", done.stderr)

    def test_repeats_are_runs_at_once_that_share_the_workers(self, cloud):
        done = modal_run(cloud, "modal_app.py", "--num-lines", 500, "--seed", 1, "--repeats", 4)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("Match: True") == 4

    def test_ask_prints_the_answer_alone_on_stdout(self, cloud, lease):
        done = modal_run(cloud, "modal_app.py::ask", "--question", "Who signed the lease?", "--context", lease)
        assert (done.returncode, done.stdout) == (0, "The lease was signed by Ada Lovelace.\n"), done.stderr

    def test_it_has_the_limits_the_log_and_the_json_of_rlm(self, cloud, lease, tmp_path):
        options = ("--max-tokens", 500, "--json", "--log", tmp_path / "log")
        done = modal_run(cloud, "modal_app.py::ask", "--question", "Who?", "--context", lease, *options)
        assert json.loads(done.stdout)["stopped_by"] == "tokens", done.stderr
        assert json.loads((tmp_path / "log").read_text().splitlines()[0])["event"] == "run_started"

    @pytest.mark.parametrize("entrypoint", ["modal_app.py", "modal_app.py::ask", "modal_app.py::main"])
    def test_help_tells_the_options_and_starts_nothing(self, cloud, entrypoint):
        before = cloud.double.rpc_counts["AppCreate"]
        done = modal_run(cloud, entrypoint, "--help")
        assert done.returncode == 0
        for option in ("--max-usd", "--timeout-s", "--json", "--log", "Workers at the most."):
            assert option in done.stdout
        assert cloud.double.rpc_counts["AppCreate"] == before

    def test_an_env_file_takes_the_place_of_the_secret(self, lease, tmp_path):
        with cloud_of(OfflineSettings(api_key="file-key"), secret=False) as cloud:
            env_file = tmp_path / "my.env"
            env_file.write_text(f"OPENAI_API_KEY=file-key\nOPENAI_BASE_URL={cloud.provider.base_url}\n")
            done = modal_run(cloud, "modal_app.py", "--num-lines", 500, "--env-file", env_file)
            assert "Match: True" in done.stdout, done.stdout + done.stderr


class TestInterrupts:
    @pytest.mark.parametrize(
        ("command", "sent", "status"),
        [
            (("modal", "run", "modal_app.py::ask", "--question", "q"), signal.SIGINT, 130),
            (("rlm", "ask", "q", "--mode", "modal"), signal.SIGHUP, 129),
        ],
    )
    def test_the_run_on_modal_ends_with_the_program(self, lease, command, sent, status):
        script = (cell("import time; time.sleep(60)"),)
        with cloud_of(OfflineSettings(script=script)) as cloud:
            running = subprocess.Popen(
                [sys.executable, "-m", *command, "--context", lease],
                cwd=ROOT,
                env={**os.environ, **cloud.double.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            while not cloud.sandboxes("repl"):
                assert running.poll() is None
                time.sleep(0.05)
            running.send_signal(sent)
            stdout, stderr = running.communicate(timeout=15)
            assert (running.returncode, stdout) == (status, "")
            assert "rlm: interrupted\n" in stderr
            while cloud.double.sandboxes() or cloud.double.containers():
                time.sleep(0.05)


class TestTheConsoleScript:
    def test_niah_on_modal_prints_what_it_prints_here(self, cloud):
        done = rlm(cloud, "niah", "--mode", "modal", "--num-lines", 500, "--seed", 5, "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["match"], report["seed"]) == (0, True, 5)
        assert report["sub_calls"] > 0

    def test_ask_on_modal_prints_the_answer_alone(self, cloud, lease):
        done = rlm(cloud, "ask", "Who signed the lease?", "--mode", "modal", "--context", lease)
        assert (done.returncode, done.stdout) == (0, "The lease was signed by Ada Lovelace.\n")


class TestWhatAUserGetsWrong:
    def test_no_modal_token(self, cloud):
        nobody = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
        done = rlm(cloud, "niah", "--mode", "modal", "--num-lines", 50, env=nobody)
        assert done.returncode == 3
        assert re.match(r"rlm: .*[Tt]oken", done.stderr.splitlines()[-1])
        assert "Traceback" not in done.stderr

    def test_no_secret(self):
        with cloud_of(OfflineSettings(), secret=False) as cloud:
            done = rlm(cloud, "niah", "--mode", "modal", "--num-lines", 50)
            assert done.returncode == 3
            assert "openai-secret" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr
            done = modal_run(cloud, "modal_app.py", "--num-lines", 50)
            assert done.returncode == 1
            assert "openai-secret" in done.stdout + done.stderr
            assert "Traceback" not in done.stdout + done.stderr

    def test_the_wrong_key(self):
        with cloud_of(OfflineSettings(api_key="another")) as cloud:
            for done in (
                modal_run(cloud, "modal_app.py", "--num-lines", 50),
                rlm(cloud, "niah", "--mode", "modal", "--num-lines", 50),
            ):
                assert done.returncode == 3
                assert re.search(r"^rlm: .* does not accept the API key", done.stderr, re.MULTILINE)
            assert "Traceback" not in done.stderr  # of the second: `modal run` shows the Function's own log, too

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--nonsense",), "No such option '--nonsense'"),
            (("--pool-size", "many"), "'many' is not a valid integer"),
            (("--max-iterations", 0), "rlm: max_iterations must be 1 or more: 0"),
            (("--env-file", "/no/such/env"), "rlm: cannot read /no/such/env: No such file or directory"),
            (("--repeats", 0), "0 is not in the range"),
        ],
    )
    def test_arguments_that_make_no_sense_start_nothing(self, cloud, arguments, words):
        before = cloud.double.rpc_counts["AppCreate"]
        done = modal_run(cloud, "modal_app.py", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr.splitlines()[-1]
        assert cloud.double.rpc_counts["AppCreate"] == before

    def test_a_file_that_is_not_there(self, cloud):
        done = modal_run(cloud, "modal_app.py::ask", "--question", "Q?", "--context", "no-such-file")
        assert done.returncode == 2
        assert "rlm: cannot read no-such-file" in done.stderr
