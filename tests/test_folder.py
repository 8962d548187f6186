"""What a folder brings along: its own text files, and nothing that lies elsewhere."""

import os
import socket
import subprocess
import sys

import pytest

from rlm.folder import Skipped, text_files


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a.txt").write_text("a")
    return path


def found(folder):
    names = {one[0]: one[1] for one in text_files(folder) if not isinstance(one, Skipped)}
    return names, {one.name: one.why for one in text_files(folder) if isinstance(one, Skipped)}


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc/passwd", "is a link that leaves the folder"),
        ("../secret", "is a link that leaves the folder"),
        ("..", "is a link that leaves the folder"),
        ("/", "is a link that leaves the folder"),
        ("inner/.env", "is a link to a hidden file"),
        ("inner", "is not a file"),
        ("nothing", "is a link to nothing"),
        ("link", "is a link to nothing"),
        ("/dev/zero", "is a link that leaves the folder"),
        ("outside/secret", "is a link that leaves the folder"),
    ],
)
def test_a_link_to_what_is_no_text_of_the_folder_is_named_and_skipped(folder, target, why):
    (folder.parent / "secret").write_text("secret")
    (folder / "inner").mkdir()
    (folder / "inner" / ".env").write_text("KEY=1")
    (folder / "outside").symlink_to("..")
    (folder / "link").symlink_to(target)
    files, skipped = found(folder)
    assert list(files) == ["a.txt"]
    assert skipped == {"link": why, "outside": "is a link that leaves the folder"}


def test_a_link_inside_the_folder_is_the_file_it_leads_to(folder):
    (folder / "b.txt").symlink_to("a.txt")
    assert found(folder) == ({"a.txt": folder / "a.txt", "b.txt": folder / "a.txt"}, {})


def test_pipes_sockets_and_devices_are_named_and_never_opened(folder):
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        files, skipped = found(folder)
    assert (list(files), skipped) == (["a.txt"], {"pipe": "is not a file", "socket": "is not a file"})


def test_what_cannot_be_read_is_named_and_the_rest_is_there(folder):
    (folder / "closed.txt").write_text("x")
    (folder / "closed").mkdir()
    (folder / "closed" / "b.txt").write_text("x")
    (folder / "closed.txt").chmod(0)
    (folder / "closed").chmod(0)
    code = "import sys, pathlib, rlm.folder; print(*rlm.folder.text_files(pathlib.Path(sys.argv[1])))"
    like_anybody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*like_anybody, sys.executable, "-c", code, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "closed").chmod(0o755)
    assert "'a.txt'" in done.stdout, done.stderr
    for name in ("closed", "closed.txt"):
        assert f"Skipped(name='{name}', why='cannot be read: Permission denied')" in done.stdout


@pytest.mark.parametrize(("data", "why"), [(b"%PDF-1.7\n", "is a PDF"), (b"a\0b", "is not text")])
def test_what_is_not_text_is_named_by_its_kind(folder, data, why):
    (folder / "b").write_bytes(data)
    assert found(folder)[1] == {"b": why}


def test_folders_nested_deeper_than_a_path_can_be_are_named_and_the_rest_is_there(folder):
    number = os.open(folder, os.O_RDONLY)
    for _ in range(2_500):
        os.mkdir("d", dir_fd=number)  # relative to a descriptor: the path is too long for a name
        inner = os.open("d", os.O_RDONLY, dir_fd=number)
        os.close(number)
        number = inner
    os.close(number)
    try:
        files, skipped = found(folder)
    finally:
        subprocess.run(["rm", "-rf", folder / "d"], check=True)
    assert list(files) == ["a.txt"]
    assert list(skipped.values()) == ["cannot be read: File name too long"]


def test_names_that_are_no_utf8_come_along(folder):
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    assert sorted(found(folder)[0]) == ["a.txt", "\udcff.txt"]
