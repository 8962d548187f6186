"""Temporary folders go with their process, whatever is in them and however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from rlm import scratch
from rlm.errors import InputError

HOLD = """
    import sys
    from rlm import scratch
    held = [scratch.Scratch(purpose) for purpose in scratch.ALL]
    print(*(one.path for one in held), flush=True)
    sys.stdin.read()
""".replace("\n    ", "\n")


@pytest.fixture
def temp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextlib.contextmanager
def holder():
    """Another process with folders."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def run_another():
    """A process that makes a folder and ends in order."""
    subprocess.run([sys.executable, "-c", "from rlm import scratch\nwith scratch.folder('repl'): pass"], check=True)


def test_a_folder_is_there_for_a_while(temp):
    with scratch.folder("context") as folder:
        assert folder.parent == temp
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("x")
    assert list(temp.iterdir()) == []


def test_what_a_killed_process_leaves_is_swept_at_the_next_start(temp):
    with holder() as process:
        process.send_signal(signal.SIGKILL)
    left = sorted(path.name[:8] for path in temp.iterdir())
    assert left == ["rlm-cont", "rlm-repl"]
    run_another()
    assert list(temp.iterdir()) == []


def test_the_folders_of_a_living_process_are_not_swept(temp):
    with holder():
        before = sorted(temp.iterdir())
        assert len(before) == 2
        run_another()
        assert sorted(temp.iterdir()) == before


def test_what_is_not_ours_is_not_swept(temp, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").write_text("x")
    (temp / "rlm-repl-link").symlink_to(elsewhere)
    (temp / "rlm-repl-file").write_text("x")
    (temp / "rlm-bench-1").mkdir()
    if os.geteuid() == 0:
        (temp / "rlm-repl-other").mkdir()
        os.chown(temp / "rlm-repl-other", 65534, 65534)
    before = sorted(temp.iterdir())
    run_another()
    assert sorted(temp.iterdir()) == before
    assert (elsewhere / "kept").read_text() == "x"


def nest(folder, depth):
    """Folders within folders, deeper than a path can say."""
    number = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=number)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=number)
        os.close(number)
        number = inner
    os.close(number)


def as_ordinary_user(code):
    """Run the code where modes of files count: root is not asked for them."""
    prefix = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    subprocess.run([*prefix, sys.executable, "-c", code], check=True)


def test_folders_nested_3000_deep_are_removed(temp):
    with scratch.folder("repl") as folder:
        nest(folder, 3_000)
    assert list(temp.iterdir()) == []


def test_folders_that_nobody_may_enter_are_removed(temp):
    as_ordinary_user(
        "import os\nfrom rlm import scratch\n"
        "with scratch.folder('repl') as folder:\n"
        "    (folder / 'a/b/c').mkdir(parents=True)\n"
        "    (folder / 'a/b/c/file').touch()\n"
        "    for name in ('a/b/c', 'a/b', 'a'): (folder / name).chmod(0)\n"
    )
    assert list(temp.iterdir()) == []


def test_symlinks_are_removed_and_not_followed(temp, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").write_text("x")
    elsewhere.chmod(0o555)
    with scratch.folder("repl") as folder:
        (folder / "link").symlink_to(elsewhere)
        (folder / "inner").mkdir()
        (folder / "inner" / "link").symlink_to(elsewhere)
    assert list(temp.iterdir()) == []
    assert (elsewhere / "kept").read_text() == "x"
    assert elsewhere.stat().st_mode & 0o777 == 0o555


def test_a_folder_that_cannot_be_made_is_told(temp, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temp / "missing"))
    with pytest.raises(InputError, match=r"there is no room for temporary files: .*No such file"):
        scratch.Scratch("context")


def test_what_cannot_be_removed_is_told_and_not_raised(temp):
    one = scratch.Scratch("repl")
    (one.path / "inner").mkdir()
    one.path.rename(temp / "moved")
    assert one.remove() == f"{one.path} could not be removed: No such file or directory"
    assert one.remove() == ""
