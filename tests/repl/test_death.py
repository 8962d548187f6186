"""When the REPL process dies, or its code gets at the frames, the host is told so and goes on in a fresh one."""

import asyncio
import resource
import textwrap
import time

import pytest

from rlm.config import ReplLimits
from rlm.errors import InputError, ReplBrokenError, ReplDiedError
from rlm.local.isolation import confine
from rlm.local.repl import LocalReplProcess
from rlm.local.watch import Watch, Watched
from rlm.scratch import Scratch


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "the REPL process ended: exit status 3$"),
        ("import os; os._exit(0)", "the REPL process ended: exit status 0$"),
        ("import os; os.kill(os.getpid(), 9)", "killed, perhaps because it ran out of memory$"),
        ("import os; os.abort()", "ended by SIGABRT; Fatal Python error: Aborted$"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV; Fatal Python error: Segmentation fault$"),
        ("import os; os.closerange(0, 1000)", "exit status 70"),
        ("import os; os.closerange(3, 1000); print('x')", "exit status 70"),
        ("import os; os.killpg(0, 9)", "ended: killed, perhaps"),
    ],
)
def test_a_death_is_told_and_the_next_cell_finds_a_fresh_process(start, code, how):
    repl = start("the context", cell_timeout_s=5)
    repl.run("x = 1")
    with pytest.raises(ReplDiedError, match=how):
        repl.run(code)
    assert repl.run("'x' in globals(), context").value == "(False, 'the context')"


def test_what_a_cell_writes_where_the_driver_complains_cannot_steer_a_terminal(start):
    repl = start()
    repl.run(FRAMES)
    with pytest.raises(ReplDiedError) as raised:
        repl.run("os.write(channel.stderr.fileno(), b'\\x1b]0;owned\\x07\\xc2\\x9bx\\r'); os._exit(3)")
    assert str(raised.value) == "the REPL process ended: exit status 3; ]0;ownedx"


def test_a_death_between_two_cells_is_told_with_the_next(start):
    repl = start()
    repl.run("import os, threading\nthreading.Timer(0.05, os._exit, [4]).start()")
    with pytest.raises(ReplDiedError, match="exit status 4"):
        [repl.run("") for _ in iter(int, 1)]
    assert repl.run("1").value == "1"


def test_too_much_memory_is_an_error_of_the_cell(start):
    repl = start(memory_mib=512)
    assert "MemoryError" in repl.run("x = 'x' * (1 << 30)").error
    assert "MemoryError" in repl.run("x = []\nwhile True: x.append('x' * 1_000_000 + str(len(x)))").error
    repl.run("del x")
    assert repl.run("1 + 1").value == "2"


def test_too_large_a_file_and_too_many_processes_are_errors_of_the_cell(start):
    repl = start(file_mib=1, processes=64)
    assert "File too large" in repl.run("with open('f', 'wb') as f: f.write(bytes(2 << 20))").error
    assert repl.run("1 + 1").value == "2"


FRAMES = """
    import gc, json, os, struct, time
    channel = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Channel")
    def raw(head, *texts):
        return header(len(head), *map(len, texts)) + head + b"".join(texts)
    def frame(*texts, **fields): return raw(json.dumps(fields).encode(), *texts)
    def forge(data):
        while data: data = data[os.write(channel._out, data):]
    def header(head_bytes, *sizes):
        return channel._nonce + struct.pack(f">{2 + len(sizes)}I", head_bytes, len(sizes), *sizes)
    nothing = dict(has_error=False, has_final=False, is_json=False, late=[], new_names=[])
    def done(*texts, number=2, **given):
        return frame(*(texts or [b""] * 5), **(dict(op="done", number=number) | nothing | given))
    def call(*texts, **given):
        return frame(*texts, **(dict(op="call", kind="llm", id=1, cell=2, model=None) | given))
    MIB = 1 << 20
"""

FORGED = {
    "garbage": "forge(os.urandom(100_000))",
    "another nonce": "forge(bytes(16) + done()[16:])",
    "a huge head": "forge(header(0xFFFFFFFF))",
    "a head and then nothing": "forge(header(60_000)); time.sleep(60)",
    "a large text and then nothing": "forge(header(100, 200 * MIB)); time.sleep(60)",
    "a million texts": "forge(header(100, *[0] * 1_000_000))",
    "texts of more than a call may carry": "forge(header(100, *[MIB] * 300))",
    "no JSON": "forge(raw(b'[[[[['))",
    "deep JSON": "forge(raw(b'[' * 60_000))",
    "JSON of many parts": "forge(raw(b'[' + b'[],' * 20_000 + b'[]]'))",
    "a large head": "forge(frame(op='done', number=2, text='x' * 70_000))",
    "an unknown frame": "forge(frame(op='evil' * 1000))",
    "an unknown call": "forge(call(kind='evil' * 1000))",
    "fields of other types": "forge(done(late=5))",
    "numbers that are too large": "forge(frame(op='ready', pid=10 ** 300))",
    "a call of a cell below nothing": "forge(call(b'x', cell=-1))",
    "a call without prompts": "forge(call())",
    "a question of two texts": "forge(call(b'x', b'y', kind='rlm'))",
    "a budget call with texts": "forge(call(b'x' * MIB, kind='budget'))",
    "a long name of a model": "forge(call(b'x', model='A' * 1000))",
    "a longer prompt than there may be": "forge(call(b'x' * 5000))",
    "a text that is no UTF-8": "forge(call(b'\\xff\\xfe'))",
    "an answer to nothing": "forge(frame(op='ready', pid=1))",
    "a description with texts": "forge(frame(b'x', op='loaded', description='x', type='str', libraries=[]))",
    "another cell's result": "forge(done(number=7))",
    "too few texts": "forge(done(b'x'))",
    "a huge output": "forge(done(b'x' * 10_000_000, b'', b'', b'', b''))",
    "huge late output": "forge(done(*[b''] * 5, *[b'x' * 50_000] * 20, late=[1] * 10))",
    "late output of many cells": "forge(done(*[b''] * 5, *[b''] * 20_000, late=[1] * 10_000))",
    "many new names": "forge(done(new_names=['x'] * 100))",
    "long new names": "forge(done(new_names=['x' * 1000]))",
    "a huge answer": "forge(done(b'', b'', b'', b'', b'x' * 10_000_001, has_final=True))",
    "a huge answer in wide characters": "forge(done(*[b''] * 4, chr(0x1F600).encode() * 10_000_001, has_final=True))",
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_frames_end_the_process_and_not_the_host(start, what):
    repl = start("kept", cell_timeout_s=0.3, interrupt_grace_s=0.5, max_prompt_chars=1_000)
    repl.run(FRAMES)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    began = time.monotonic()
    with pytest.raises(ReplDiedError) as died:
        [repl.run(code) for code in (FORGED[what], "1")]
    assert len(str(died.value)) < 500
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before_mib < 40
    assert repl.run("context").value == "'kept'"


def test_a_protocol_that_is_broken_is_told_as_such(start):
    repl = start()
    repl.run(FRAMES)
    with pytest.raises(ReplDiedError, match="broke its protocol and was killed: not a frame of this session"):
        repl.run("forge(os.urandom(100))")


def test_a_flood_of_forged_frames_costs_no_memory(start):
    repl = start(cell_timeout_s=1)
    repl.run(FRAMES)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with pytest.raises(ReplDiedError):
        repl.run("""
            flood = frame(op='loaded', description='x' * 60_000, type='str', libraries=[]) * 10
            while True: forge(flood)
        """)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before_mib < 100


def test_a_flood_of_calls_is_held_back_until_they_are_answered(start):
    most, now = 0, 0
    gate = asyncio.Event()

    async def answer(call):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await gate.wait()
        now -= 1
        return [{"text": ""} for _ in call.items]

    repl = start(answer=answer)
    repl.run(FRAMES)

    async def flood():
        running = asyncio.create_task(repl.session.run("for n in range(10_000): forge(call(b'x', id=1_000_000))"))
        last = -1
        while most != last:  # until no more come in
            last = most
            await asyncio.sleep(0.3)
        assert 1_000 < most < 10_000
        gate.set()
        return await running

    assert repl.runner.run(flood()).error is None


def test_a_forged_result_is_of_no_use_for_the_next_cell(start):
    repl = start()
    repl.run(FRAMES)
    lie = "forge(done(b'', b'', b'', b'', b'lie', has_final=True))\ntime.sleep(0.1)"
    assert repl.run(lie).final.text == "lie"
    with pytest.raises(ReplDiedError, match="no such result is possible"):
        repl.run("'honest'")
    assert repl.run("'honest'").value == "'honest'"


def test_the_private_descriptor_is_of_no_use_to_subprocesses(repl):
    result = repl.run("""
        import subprocess, sys
        subprocess.run([sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd'), key=int)[:4])"],
                       close_fds=False, check=True)
    """)
    assert result.stdout == "['0', '1', '2', '3']\n"


def test_a_context_that_cannot_be_read_is_bad_input(start, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{"a": ')
    with pytest.raises(InputError, match=r"cannot read the context: bad.json is not valid JSON: Expecting value"):
        start(path)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n\n{"b"\n')
    with pytest.raises(InputError, match=r"bad.jsonl is not valid JSONL in line 3: "):
        start(path)


def test_a_driver_that_does_not_come_up_is_told(start):
    class Launcher:
        async def start(self, context, limits):
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                "sh",
                "-c",
                "echo no such image >&2; exit 9",
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
            scratch = Scratch("repl")
            confined = confine(None, scratch.path, (), 0)
            watched = Watched(
                pid=process.pid, in_memory=(), home=scratch.path, limits=ReplLimits(), memory_bytes=1 << 40
            )
            return LocalReplProcess(process, scratch, confined, Watch(watched))

    with pytest.raises(ReplBrokenError, match="the REPL did not start: exit status 9; no such image"):
        start(launcher=Launcher())


def test_limits_reach_the_process(start):
    repl = start("x" * 1000, memory_mib=1000, processes=77, file_mib=5)
    result = repl.run(
        textwrap.dedent("""
        import resource
        [resource.getrlimit(r)[0] for r in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)]
    """)
    )
    assert result.value == f"[{(1000 << 20) + 4000}, {5 << 20}, 0]"
    assert int(repl.run("resource.getrlimit(resource.RLIMIT_NPROC)[0]").value) >= 77


def test_the_host_takes_what_the_driver_may_send(start):
    sizes = []

    async def answer(call):
        sizes.append(sum(len(item.context) for item in call.items))
        return [{"text": ""} for _ in call.items]

    repl = start(answer=answer)
    assert repl.run("rlm_query('q', 'x' * (255 << 20))").error is None
    assert repl.run("rlm_query('q', chr(0x20AC) * (80 << 20))").error is None
    assert "may carry 256 MB; this one has 300 MB" in repl.run("rlm_query('q', chr(0x20AC) * (100 << 20))").error
    assert repl.run("rlm_query_batched(['q'] * 1000)").error is None
    assert "may carry 256 MB; this one has 400 MB" in repl.run("rlm_query('q', chr(0x1F600) * (100 << 20))").error
    assert sizes == [255 << 20, 80 << 20, 4_000]
