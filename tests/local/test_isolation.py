"""The best tool that works is used; the user is told the truth about it; a REPL gets of ours what it must have."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlm.context import Context
from rlm.local import visible
from rlm.local.isolation import MAX_MOUNTED, SMALL_BYTES, choose
from tests.local.hosts import run_host, session_code

NOTICE = """
    import asyncio
    from rlm.local.repl import LocalReplLauncher
    print(asyncio.run(LocalReplLauncher(TOOLS).notice()))
"""


def notice(tools, **environment) -> str:
    return run_host(f"TOOLS = {list(tools)!r}\n" + NOTICE.replace("\n    ", "\n"), env=os.environ | environment).stdout


def test_the_environment_is_built_from_an_allowlist(tool):
    code = session_code([tool], "import os; sorted(os.environ)")
    result = run_host(code, env=os.environ | {"OPENAI_API_KEY": "sk-secret", "MY_SETTING": "x"})
    assert set(eval(result.stdout)) <= {
        *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PWD")
    }


def test_namespaces_need_no_notice(tool):
    said = notice([tool])
    if tool == "landlock":
        assert "reads no file of yours and has no network" in said
    else:
        assert said == "None\n"


def test_the_first_tool_that_works_is_used(tool):
    assert choose((tool, "unshare")).tool == tool
    assert choose((tool, "unshare")).reasons == ()


def refusing(folder: Path) -> str:
    """A PATH on which bwrap is there, and not allowed."""
    (folder / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    (folder / "bwrap").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_tool_that_is_there_but_does_not_work_is_not_used_and_not_said_to_be_missing(tmp_path):
    said = notice(["bwrap"], PATH=refusing(tmp_path))
    assert said.startswith("this machine cannot isolate the REPL (bwrap: No permissions to create new namespace")
    assert "not installed" not in said


def test_another_tool_is_used_when_the_better_one_does_not_work(tmp_path, tool):
    if tool == "bwrap":
        pytest.skip("there is none better")
    said = notice(["bwrap", tool], PATH=refusing(tmp_path))
    assert said == "None\n" if tool == "unshare" else "No permissions to create new namespace" in said


def test_a_machine_that_cannot_isolate_says_so_and_runs_on(tmp_path):
    (tmp_path / "empty").mkdir()
    said = notice(["bwrap"], PATH=str(tmp_path / "empty"))
    assert said == (
        "this machine cannot isolate the REPL (bwrap: not installed): model-written code runs as you, with your files, "
        "your processes and your network\n"
    )
    code = session_code(["bwrap"], "context")
    assert run_host(code, env=os.environ | {"PATH": str(tmp_path / "empty")}).stdout == "'text'\n"


@pytest.mark.parametrize("parent", ["/tmp", "/var/tmp"])
def test_python_in_a_virtual_environment_in_a_temporary_folder_is_shown(parent, tool):
    """Where cells have a folder of their own at the same place."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        run_in_venv(Path(folder) / "venv", tool)


def run_in_venv(venv, tool):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "secret").write_text("x")
    cell = f"import os, sys; sys.prefix, sys.executable, os.path.exists({str(venv / 'secret')!r})"
    code = session_code([tool], cell)
    packages = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [venv / "bin" / "python", "-c", code],
        env=os.environ | {"PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=True,
    )
    exists = tool == "landlock"  # it may be known that a file is there
    assert run.stdout == f"('{venv}', '{venv / 'bin' / 'python'}', {exists})\n"


def test_no_path_that_is_shown_holds_another():
    shown = visible.shown()
    assert shown == tuple(sorted(shown))
    assert not any(inner.startswith(f"{outer}/") for outer in shown for inner in shown)
    assert not set(shown) & {"/", "/usr", "/etc", "/home", "/root", "/tmp", "/var", "/usr/local", str(Path.home())}


def test_thousands_of_files_are_shown(tool, launcher, start, tmp_path):
    """As many as a code base has; a mount for each would take seconds."""
    paths = [tmp_path / f"{number}.txt" for number in range(2_000)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    large = [tmp_path / f"large{number}.txt" for number in range(MAX_MOUNTED + 2)]
    for number, path in enumerate(large):
        path.write_text(str(number))
        os.truncate(path, SMALL_BYTES + 1 + number)
    files = tuple((path.name, path) for path in (*paths, *large))
    repl = start(Context(kind="files", files=files), launcher=launcher)
    assert repl.run("len(context), context['1999.txt'], context['large7.txt'].strip('\\0')").value == (
        f"({2_000 + len(large)}, '1999', '7')"
    )
    total = f"sum(len(context[f'large{{n}}.txt']) - n for n in range({len(large)}))"
    assert repl.run(total).value == str(len(large) * (SMALL_BYTES + 1))
