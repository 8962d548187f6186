"""What is said to the user is harmless, and a stream that is broken costs nothing."""

import io
import os
import subprocess
import sys

import pytest

from rlm.terminal import Outlet, in_one_line, visible


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\x00", "\x9b", "\u202e", "\ud800"])
def test_control_characters_are_shown_and_not_sent(character):
    assert character not in visible(f"a{character}b")
    visible(f"a{character}b").encode()


def test_text_stays_as_it_is():
    assert visible("é 漢字 \t tab\nline") == "é 漢字 \t tab\nline"


def test_a_line_is_one_line():
    assert in_one_line("a\nrlm: done\r\x1b[2J") == "a rlm: done \\x1b[2J"


def test_what_an_encoding_cannot_write_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    outlet = Outlet(stream)
    outlet.write("é\ud800")
    outlet.flush()
    assert stream.buffer.getvalue() == b"\\xe9\\ud800"


def test_a_full_disk_is_told_once_and_the_rest_is_dropped():
    with open("/dev/full", "w") as file:  # noqa: PTH123
        outlet = Outlet(file)
        for _ in range(3):
            outlet.write("x\n")
            outlet.flush()
        assert outlet.trouble == "No space left on device"


def test_a_stream_that_is_not_there_is_closed():
    outlet = Outlet(None)
    outlet.write("x")
    outlet.flush()
    assert (outlet.trouble, outlet.isatty()) == ("it is closed", False)


def test_a_closed_descriptor_is_not_given_to_the_next_file(tmp_path):
    code = f"""
import os
from rlm.terminal import hold_standard_descriptors
hold_standard_descriptors()
os.write(os.open({str(tmp_path / "out")!r}, os.O_CREAT | os.O_WRONLY), str(os.open("/dev/null", os.O_RDONLY)).encode())
"""
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&- <&-', sys.executable, code], check=True, env=os.environ)
    assert int((tmp_path / "out").read_text()) > 3
