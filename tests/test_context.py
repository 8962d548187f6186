"""What a user names or hands over becomes files, and is refused with a clear word when it cannot."""

import contextlib
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from rlm.context import Context, context_from_paths, context_from_value
from rlm.errors import InputError
from rlm.folder import Skipped
from rlm.streams import save


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b.txt").write_text("b")
    (folder / "a.md").write_text("a")
    (folder / "deep" / "er" / "c").write_text("c")
    (folder / ".git" / "config").write_text("hidden")
    (folder / ".env").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("a", "text"),
        ("a.json", "json"),
        ("a.JSON", "json"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
    ],
)
def test_one_file_is_read_by_its_suffix(tmp_path, scratch, name, kind):
    (tmp_path / name).write_text("x")
    context = context_from_paths([str(tmp_path / name)], scratch)
    assert context == Context(kind=kind, files=((name, tmp_path / name),))
    assert context.size_bytes == 1


def test_a_folder_is_its_text_files_by_relative_name(docs, scratch):
    context = context_from_paths([str(docs)], scratch)
    assert context.kind == "files"
    assert [name for name, _ in context.files] == ["a.md", "b.txt", "deep/er/c"]
    assert context.skipped == (
        Skipped("dangling", "is a link to nothing"),
        Skipped("picture.png", "is an image"),
        Skipped("pipe", "is not a file"),
    )


def test_several_names_are_told_apart_by_their_paths(docs, scratch, monkeypatch):
    monkeypatch.chdir(docs.parent)
    Path("a.json").write_text("{}")
    context = context_from_paths(["a.json", "docs/deep", "docs/b.txt"], scratch)
    assert context.kind == "files"
    assert [name for name, _ in context.files] == ["a.json", "docs/deep/er/c", "docs/b.txt"]
    assert all(path.is_absolute() for _, path in context.files)


def test_a_name_given_twice_counts_once(docs, scratch):
    name = str(docs / "a.md")
    assert context_from_paths([name, name], scratch).files == ((name, docs / "a.md"),)


def test_a_folder_with_one_file_is_still_a_dict(tmp_path, scratch):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    assert context_from_paths([str(folder)], scratch).kind == "files"


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Lets standard input be some bytes."""
    with contextlib.ExitStack() as stack:

        def type_in(data):
            (tmp_path / "typed").write_bytes(data)
            monkeypatch.setattr(sys, "stdin", stack.enter_context((tmp_path / "typed").open()))

        yield type_in


def test_standard_input_is_kept_byte_by_byte(scratch, typed):
    data = b"a\r\n\0\xff" + b"more of it\r\n" * 300_000
    typed(data)
    context = context_from_paths(["-"], scratch)
    ((name, path),) = context.files
    assert (context.kind, name, path.read_bytes()) == ("text", "stdin", data)


def test_standard_input_goes_with_files(docs, scratch, typed):
    typed(b"typed")
    context = context_from_paths([str(docs / "a.md"), "-"], scratch)
    assert context.kind == "files"
    assert [(name, path.read_bytes()) for name, path in context.files] == [
        (str(docs / "a.md"), b"a"),
        ("stdin", b"typed"),
    ]


def test_a_pipe_is_read_to_its_end(scratch):
    with subprocess.Popen(["sh", "-c", "echo one; echo two"], stdout=subprocess.PIPE) as writer:
        context = context_from_paths([f"/dev/fd/{writer.stdout.fileno()}"], scratch)
    assert context.files[0][1].read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08"])
def test_standard_input_that_is_no_text_is_bad_input(scratch, typed, data):
    typed(data)
    with pytest.raises(InputError, match=r"there is no text in -|standard input is gzip"):
        context_from_paths(["-"], scratch)


def test_a_file_whose_size_is_not_told_is_read(scratch):
    context = context_from_paths(["/proc/self/status"], scratch)
    assert context.files[0][0] == "status"
    assert context.size_bytes > 100


def test_a_device_without_end_is_given_up(tmp_path, scratch):
    with pytest.raises(InputError, match=r"/dev/zero is not text"):
        context_from_paths(["/dev/zero"], scratch)
    with (
        open("/dev/urandom", "rb", buffering=0) as stream,  # noqa: PTH123
        pytest.raises(InputError, match=r"it gives more than 3,000,000 bytes: save the part"),
    ):
        save(stream, tmp_path / "copy", "it", begin=b"", most_bytes=3_000_000)
    assert (tmp_path / "copy").stat().st_size < 3_000_001


@pytest.mark.parametrize("value", ["text", {"a": 1}, Path("/proc/self/status")])
def test_no_place_to_write_is_bad_input_with_the_remedy(value):
    with pytest.raises(InputError, match=r"cannot write the context: .*; set TMPDIR to a folder with room"):
        context_from_value(value, Path("/proc"))


def test_a_link_that_is_named_is_followed(tmp_path, scratch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("a")
    (tmp_path / "file").symlink_to("elsewhere/a.txt")
    (tmp_path / "folder").symlink_to("elsewhere")
    assert context_from_paths([str(tmp_path / "file")], scratch).size_bytes == 1
    assert [name for name, _ in context_from_paths([str(tmp_path / "folder")], scratch).files] == ["a.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.txt"], "cannot read missing.txt: No such file or directory"),
        (["docs/a.md", "gone/b"], "cannot read gone/b: No such file"),
        (["docs/.git/nothing"], "cannot read docs/.git/nothing"),
        (["a\0b"], "cannot read a\0b: embedded null byte"),
        (["empty"], "there is no text in empty: name a file, or a folder with text files"),
        (["pdfs"], "no text in pdfs: .*; a.pdf is a PDF"),
        (["nothing.txt"], "there is no text in nothing.txt"),
        (["nothing.txt", "empty"], "there is no text in nothing.txt, empty"),
        (["docs/picture.png"], "docs/picture.png is an image, and there is no reader for that"),
        (["docs/a.md", ""], "the name of a context is empty"),
        (["-", "-"], "standard input .* once only"),
        (["-", "stdin"], "name the file of that name ./stdin"),
    ],
)
def test_what_cannot_be_read_is_bad_input(docs, scratch, monkeypatch, names, message):
    monkeypatch.chdir(docs.parent)
    Path("empty").mkdir()
    Path("nothing.txt").touch()
    Path("pdfs").mkdir()
    Path("pdfs/a.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(InputError, match=message):
        context_from_paths(names, scratch)


def test_a_file_that_vanishes_is_bad_input(tmp_path, scratch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    context = context_from_paths([str(path)], scratch)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*a.txt: No such file"):
        _ = context.size_bytes


@pytest.mark.parametrize("text", ["", "a\r\nb\rc\n\0", "é😀", "\udcff", "x" * 3_000_000])
def test_a_str_is_written_exactly(scratch, text):
    context = context_from_value(text, scratch)
    assert context.kind == "text"
    assert context.files[0][1].read_bytes() == text.encode("utf-8", "surrogateescape")


def test_a_str_that_utf8_cannot_hold_travels_as_json(scratch):
    context = context_from_value("a\ud800", scratch)
    assert (context.kind, context.files[0][1].read_text()) == ("json", r'"a\ud800"')
    assert len(list(scratch.iterdir())) == 1


def test_values_travel_as_json_and_paths_as_files(docs, scratch):
    assert context_from_value([1, {"a": None}], scratch).kind == "json"
    assert context_from_value(docs, scratch).kind == "files"
    assert context_from_value(docs / "a.md", scratch).files == (("a.md", docs / "a.md"),)
    ready = Context(kind="text", files=())
    assert context_from_value(ready, scratch) is ready


def test_a_list_of_paths_is_what_several_names_are(docs, scratch, monkeypatch):
    monkeypatch.chdir(docs)
    Path("-").write_text("no standard input")
    context = context_from_value([Path("a.md"), docs / "deep", Path("-")], scratch)
    assert context.kind == "files"
    assert context.files == (
        ("a.md", docs / "a.md"),
        (f"{docs}/deep/er/c", docs / "deep/er/c"),
        ("./-", docs / "-"),
    )


class Signature(pydantic.BaseModel):
    name: str
    on: datetime.date


def test_models_dates_and_sets_are_json_at_any_depth(scratch):
    signed = Signature(name="Ada", on=datetime.date(1843, 8, 1))
    value = {
        "signed": [signed],
        "at": datetime.datetime(1843, 8, 1, 12, 30, tzinfo=datetime.UTC),
        "clock": datetime.time(12, 30),
        "pages": {3, 1, 10},
        "mixed": frozenset({"a", 1}),
    }
    found = json.loads(context_from_value(value, scratch).files[0][1].read_text())
    assert sorted(found.pop("mixed"), key=str) == [1, "a"]
    assert found == {
        "signed": [{"name": "Ada", "on": "1843-08-01"}],
        "at": "1843-08-01T12:30:00+00:00",
        "clock": "12:30:00",
        "pages": [1, 3, 10],
    }
    assert context_from_value(signed, scratch).files[0][1].read_text() == '{"name": "Ada", "on": "1843-08-01"}'


def test_two_values_in_one_folder_do_not_meet(scratch):
    one, other = context_from_value("one", scratch), context_from_value("other", scratch)
    assert [context.files[0][1].read_text() for context in (one, other)] == ["one", "other"]


def a_ring():
    ring = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize("value", [object(), {"a": b"x"}, {(1, 2): 3}, a_ring(), [Path("a"), "b"], pydantic.BaseModel])
def test_what_is_no_json_is_bad_input(scratch, value):
    with pytest.raises(InputError, match="the context must be a str, a Path, a list of Paths or a JSON value: "):
        context_from_value(value, scratch)
