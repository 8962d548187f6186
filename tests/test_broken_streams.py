"""Standard streams, logs and disks that are closed, full, or left by their reader: none of them costs an answer."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.command import in_shell, rlm
from tests.conftest import cell

ASK = 'rlm ask "Q?" --context "$1"'
ANSWER = b"the answer \xc3\xa9\n"


@pytest.fixture
def asked(provider, text):
    """Asks in a line of shell, with a root LM that runs a cell and answers."""

    def ask(script, *replies, **options):
        _, env = provider(*(replies or (cell("print('x')"), "FINAL(the answer é)")))
        return in_shell(script, text, env=env, **options)

    return ask


@pytest.mark.parametrize("broken", ["2>&-", "2>/dev/full", "2> >(true)", "2>&- <&-", "2>&- --log /dev/full"])
def test_progress_that_cannot_be_shown_costs_nothing(asked, broken):
    done = asked(f"{ASK} {broken}")
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER, b"")


def test_a_log_on_a_full_disk_is_told_in_a_line(asked):
    done = asked(f"{ASK} --log /dev/full")
    assert (done.returncode, done.stdout) == (0, ANSWER)
    lines = done.stderr.decode().splitlines()
    assert "rlm: the log /dev/full is not complete: No space left on device" in lines
    assert "Traceback" not in done.stderr.decode()


def test_a_log_that_breaks_in_mid_run_keeps_what_was_logged(asked, tmp_path):
    more_than_a_pipe_holds = [cell("print('x' * 9_000)")] * 9
    done = asked(f"{ASK} --log >(head -1 > {tmp_path}/log)", *more_than_a_pipe_holds, "FINAL(the answer é)")
    assert (done.returncode, done.stdout) == (0, ANSWER)
    assert "is not complete: Broken pipe" in done.stderr.decode()
    assert json.loads((tmp_path / "log").read_text())["event"] == "run_started"


@pytest.mark.parametrize(("redirect", "why"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")])
@pytest.mark.parametrize("as_json", ["", "--json"])
def test_an_answer_that_cannot_be_printed_goes_to_standard_error(asked, redirect, why, as_json):
    done = asked(f"{ASK} {as_json} {redirect}")
    assert done.returncode == 1
    said, answer = done.stderr.decode().splitlines()[-2:]
    assert said == f"rlm: cannot write to standard output: {why}; what was to go there:"
    assert (json.loads(answer)["answer"] if as_json else answer) == "the answer é"
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.parametrize("script", [f"{ASK} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", f"{ASK} > >(true)"])
def test_a_reader_that_goes_away_is_no_trouble_to_tell_of(asked, script):
    done = asked(script)
    assert done.returncode == 1
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"rlm:" not in done.stderr


def test_an_answer_is_whole_for_a_reader_of_standard_output_alone(asked):
    assert asked(f"{ASK} 2> >(head -1 >/dev/null)").stdout == ANSWER


def test_names_of_files_cannot_drive_a_terminal_or_forge_a_line(provider, tmp_path):
    _, env = provider("FINAL(1)")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "\x1b]0;owned\x07\nrlm: forged").write_bytes(b"%PDF-")
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"%PDF-")
    done = rlm("ask", "Q?", "--context", folder, env=env)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "\x1b" not in done.stderr
    assert not any(line.startswith("rlm: forged") for line in done.stderr.splitlines())
    assert "\\x1b]0;owned\\x07 rlm: forged is a PDF" in done.stderr
    done = rlm("ask", "Q?", "--context", "\x1b]0;owned\x07", env=env)
    assert done.stderr == "rlm: cannot read \\x1b]0;owned\\x07: No such file or directory\n"


def test_a_full_folder_for_temporary_files_is_told_with_the_remedy(provider, tmp_path):
    _, env = provider("FINAL(1)")
    small = f"mount -t tmpfs -o size=64k none {tmp_path} && TMPDIR={tmp_path} {ASK}"
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("a small disk needs a mount namespace")
    done = in_shell(f"export -f rlm; unshare -m bash -c '{small}' bash -", env=env, input=b"x" * 1_000_000)
    assert done.returncode == 2
    assert b"No space left on device; set TMPDIR to a folder with room" in done.stderr.splitlines()[-1]
