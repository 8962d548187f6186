"""The context arrives in the REPL exactly, and is at no time twice in memory."""

import hashlib
import json
import subprocess
import sys
import textwrap
import time

import pytest

MIB = 1 << 20
PEAK = "int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1024"

TEXTS = {
    "CRLF and a lone CR": b"a\r\nb\rc\n",
    "NUL": b"a\0b",
    "quotes": b"'''\"\"\"\\n{}%s$x`",
    "no final newline": b"a\nb",
    "non-ASCII": "é € 😀 \u2028 \x85".encode(),
    "no UTF-8": b"ok \xff\xfe \xe2\x82",
    "a byte order mark": "\ufeffx".encode(),
}


@pytest.mark.parametrize("what", TEXTS)
def test_the_bytes_of_a_file_arrive_exactly(start, tmp_path, what):
    path = tmp_path / "input.txt"
    path.write_bytes(TEXTS[what])
    assert start(path).run("context.encode('utf-8', 'surrogateescape')").value == repr(TEXTS[what])


@pytest.mark.parametrize("what", ["a\r\n\0'\"\\", "\ud800", "\udcff\xe9", "😀", ""])
def test_a_str_arrives_exactly(start, what):
    assert start(what).run("print(ascii(context))").stdout == ascii(what) + "\n"


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, True, [], {}, ["a", "é\ud800"], {"a": [1, {"b": None}]}, "text", float("inf")]
)
def test_a_json_value_arrives_exactly(start, value):
    assert start(value).run("print(ascii(context))").stdout == ascii(value) + "\n"


def test_json_and_jsonl_files_are_read_as_such(start, tmp_path):
    (tmp_path / "a.json").write_bytes('\ufeff{"k": [1, "é"]}\n'.encode())
    (tmp_path / "a.jsonl").write_text('{"k": 1}\r\n\n[2, "\u2028"]\n"x"')
    assert start(tmp_path / "a.json").run("context").value == "{'k': [1, 'é']}"
    assert start(tmp_path / "a.jsonl").run("context").value == r"[{'k': 1}, [2, '\u2028'], 'x']"


def test_a_folder_is_a_dict_of_name_to_text(start, tmp_path):
    folder = tmp_path / "docs"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"b\r\n")
    (folder / "inner" / "a.json").write_bytes(b'{"not": "parsed"}')
    assert start(folder).run("context").value == r"""{'b.txt': 'b\r\n', 'inner/a.json': '{"not": "parsed"}'}"""


def test_the_root_lm_is_told_what_the_context_is(start, tmp_path):
    repl = start({"a": ["x" * 3000]})
    assert repl.description == ("a dict of 1 items; 3,011 characters as JSON\nIts keys:\n- 'a': list of 1 (str)")


def write_text(path, size, kind):
    """A file of `size` bytes: ASCII, or with wider characters, the first of them early or late."""
    line = b"The quick brown fox jumps over the lazy dog. 0123456789 abcdefghijklmnopqrstuvwxyz\n"
    block = line * (MIB // len(line) + 1)
    accented = block.replace(b"quick", "qu\u00eft\u00e9".encode())
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            is_wide = {"ascii": False, "accents": True, "one accent, late": at + 2 * MIB >= size}[kind]
            file.write((accented if is_wide else block)[:MIB])


@pytest.mark.parametrize("kind", ["ascii", "accents", "one accent, late"])
def test_a_large_text_is_never_twice_in_memory(start, tmp_path, kind):
    size = 128 * MIB
    write_text(tmp_path / "large.txt", size, kind)
    empty_mib = float(start().run(PEAK).value)
    repl = start(tmp_path / "large.txt")
    peak_mib = float(repl.run(PEAK).value)
    assert (peak_mib - empty_mib) * MIB < 1.2 * size
    with (tmp_path / "large.txt").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    check = """
        import hashlib
        digest = hashlib.sha256()
        for at in range(0, len(context), 1 << 20): digest.update(context[at:at + (1 << 20)].encode())
        digest.hexdigest()
    """
    assert repl.run(check).value == repr(digest)
    assert repl.run("context.isascii()").value == str(kind == "ascii")


@pytest.mark.parametrize("wide", ["\u20ac", "\U0001f600", "\udcff"])
def test_a_large_text_with_wide_characters_arrives_exactly(start, tmp_path, wide):
    path = tmp_path / "large.txt"
    text = "x" * (17 * MIB) + wide + "é" * MIB
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    code = f"context == 'x' * {17 * MIB} + {wide!a} + 'é' * {MIB}, hash(context) == hash(context[:-1] + 'é')"
    assert start(path).run(code).value == "(True, True)"


def test_a_large_json_text_is_described(start, tmp_path):
    path = tmp_path / "large.json"
    path.write_text(json.dumps(["x" * 1_000_000] * 20))
    assert start(path).description.startswith("a list of 20 items (20 str), 20,000,000 characters in all; 20,000,0")


@pytest.fixture
def one_gib(tmp_path):
    path = tmp_path / "large.txt"
    write_text(path, 1024 * MIB, "one accent, late")
    yield path
    path.unlink()


def test_a_context_of_1_gib(one_gib):
    code = f"""
        import asyncio, sys, time
        from pathlib import Path
        from rlm.context import context_from_paths
        from rlm.local.repl import LocalReplLauncher
        from rlm.config import ReplLimits
        from rlm.repl.session import ReplSession
        async def main():
            began = time.perf_counter()
            context = context_from_paths([sys.argv[1]], Path("/nonexistent"))
            async with ReplSession(LocalReplLauncher(), context, ReplLimits(), None) as repl:
                result = await repl.run({PEAK!r})
                took = time.perf_counter() - began
            print(took, result.value, {PEAK})
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), one_gib]
    run = subprocess.run(command, capture_output=True, check=True, text=True)
    took_s, repl_mib, host_mib = map(float, run.stdout.split())
    assert took_s < 5, run.stdout
    assert repl_mib < 1.2 * 1024, run.stdout
    assert host_mib < 200, run.stdout


def test_an_empty_cell_is_there_and_back_in_a_millisecond(repl):
    async def measure():
        times = []
        for _ in range(200):
            began = time.perf_counter()
            await repl.session.run("")
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    repl.runner.run(measure())
    assert min(repl.runner.run(measure()) for _ in range(3)) < 0.001
