"""Every command of the READMEs, run as it stands. A new one is run too, unless it is named here with the reason."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.modal_double.fixtures import needs_isolation

__all__ = ["needs_isolation"]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
READMES = ("README.md", "tests/modal_double/README.md")
QUICK_START = "python3 -m venv .venv && .venv/bin/pip install -q . &&"

NOT_RUN = {
    r"python3 -m venv .* -m pytest\b": "it is this suite",
    r"\. \.venv/bin/activate$": "TestTheQuickStart runs it",
    r"_RLM_COMPLETE=fish_source .* \| source$": "it is for fish",
    r"export OPENAI_\w+=\.\.\.": "a key of one's own; the tests set both variables for the scripted model",
    r"modal (token|secret|deploy|serve|run|app|volume|shell)\b": "an account; tests/modal run them on the stand-in",
    r"rlm ask .* --mode modal$": "an account; tests/modal/test_run.py runs it on the stand-in",
    r"rlm bench |python -m tests\.modal_double -- rlm bench modal": "minutes of measuring; tests/bench run it in small",
    r"rlm (--help|offline-llm)$": "named in a sentence; the tests of their own run it",
    r"python -m tests\.modal_double .*--build ": "a package index; tests/test_modal_double/test_build.py builds Images",
    r"python -m tests\.modal_double serve$": "stays until Ctrl-C; tests/test_modal_double/test_run.py starts it",
}


def commands():
    """Each command, once: those of the blocks, and those that a sentence or a table names."""
    found = []
    for readme in READMES:
        text = (ROOT / readme).read_text()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            assert language in ("sh", "python", ""), f"{readme}: commands stand in blocks of sh, not of {language}"
            if language == "sh":
                found += of_block(block)
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`\n]+)`", prose)
        found += [span for span in spans if re.match(r"(\. |_RLM_|python3? -m |rlm |modal [a-z])", span)]
    return list(dict.fromkeys(found))


def of_block(block):
    """The commands of a block, without comments. What starts a server in the background goes with what follows."""
    lines = re.sub(r"\s+# .*$", "", block.replace("\\\n", " "), flags=re.MULTILINE).strip().split("\n")
    for number, line in enumerate(lines):
        if line.endswith(" &"):
            return [*lines[:number], "\n".join(lines[number:])]
    return lines


def reason(command):
    """Why it is not run, if it is not."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


RUN = [command for command in commands() if reason(command) is None and not command.startswith(QUICK_START)]
ON_THE_STAND_IN = [command for command in RUN if "tests.modal_double" in command]


def in_fresh_shell(command, folder, env=None):
    """Run it in a shell that has nothing of this one but where programs and packages are; its status and output."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "LANG"}
    path = f"{BIN}:{os.defpath}:/usr/local/bin"
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+") as out:
        shell = subprocess.Popen(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            cwd=folder,
            env={**kept, "PATH": path, "HOME": home, "TMPDIR": home, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait()
        finally:
            end_session(shell.pid)
            shell.wait()
        out.seek(0)
        return status, out.read()


def end_session(leader):
    """What a command leaves in the background, as a server does when the next line fails."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def check(command, status, output):
    """Whether the command has done what the README says of it."""
    assert "Traceback" not in output, output
    if not command.startswith("rlm doctor"):  # here it may well find something
        assert status == 0, output
    if "niah" in command or "modal run" in command:
        assert "Match: True" in output, output


@pytest.fixture
def their_files(tmp_path):
    """The files that the commands name."""
    (tmp_path / "contract.txt").write_text("It was signed by Ada Lovelace.\n")
    (tmp_path / "deploy.log").write_text("deployed\n")
    (tmp_path / "access.log.gz").write_bytes(gzip.compress(b"10.0.0.1 refused\n"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "night.log").write_text("the disk was full\n")
    return tmp_path


def test_each_reason_not_to_run_one_is_still_needed():
    left_out = [command for command in commands() if reason(command) is not None]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, command) for command in left_out)] == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", [command for command in RUN if command not in ON_THE_STAND_IN])
def test_it_runs_with_a_provider(command, their_files, provider):
    _, env = provider()
    check(command, *in_fresh_shell(command, their_files, env=env))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ON_THE_STAND_IN)
def test_it_runs_on_the_stand_in(command, provider, needs_isolation):
    _, env = provider()
    check(command, *in_fresh_shell(command, ROOT, env={} if "offline-llm" in command else env))


class TestTheQuickStart:
    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_a_fresh_copy_answers_and_its_environment_can_be_made_active(self, tmp_path):
        (quick_start,) = [command for command in commands() if command.startswith(QUICK_START)]
        for name in ("rlm", "sandbox_image"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "modal_app.py"):
            shutil.copy(ROOT / name, tmp_path / name)
        check(quick_start, *in_fresh_shell(quick_start, tmp_path))
        status, output = in_fresh_shell(". .venv/bin/activate; command -v rlm", tmp_path)
        assert (status, output) == (0, f"{tmp_path}/.venv/bin/rlm\n")
