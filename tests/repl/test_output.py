"""All a cell prints comes back, apart, in bounded memory, and none of it is taken for a frame."""

import pytest


def test_stdout_stderr_and_traceback_come_apart(repl):
    result = repl.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 / 0")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert "ZeroDivisionError" in result.error


def test_the_traceback_stays_visible_after_a_flood(start):
    result = start(max_output_chars=1000).run("print('first' + 'x' * 10_000_000 + 'last')\n1 / 0")
    assert result.stdout.startswith("firstxxx")
    assert result.stdout.endswith("xxxlast\n")
    assert "\n[... 9,999,010 characters left out ...]\n" in result.stdout
    assert len(result.stdout) < 1100
    assert result.error.endswith("ZeroDivisionError: division by zero")


def test_a_long_traceback_keeps_its_ends(repl):
    error = repl.run("raise ValueError('a' + 'z' * 1_000_000 + 'END')").error
    assert error.startswith("Traceback")
    assert error.endswith("zzzEND")
    assert "characters left out" in error


def test_exactly_the_limit_is_not_cut(start):
    repl = start(max_output_chars=100)
    assert repl.run("print('é' * 100, end='')").stdout == "é" * 100
    assert "[... 1 characters left out ...]" in repl.run("print('é' * 101, end='')").stdout


def test_what_is_written_to_the_descriptors_is_captured_in_order(repl):
    result = repl.run("""
        import os, subprocess, sys, ctypes
        print("print")
        os.write(1, b"write\\n")
        os.system("echo system; echo aside >&2")
        print("again")
        subprocess.run([sys.executable, "-c", "print('subprocess')"], check=True)
        print("end")
        libc = ctypes.CDLL(None)
        libc.printf(b"from C\\n");
    """)
    assert result.stdout == "print\nwrite\nsystem\nagain\nsubprocess\nend\nfrom C\n"
    assert result.stderr == "aside\n"


def test_what_c_has_in_its_buffer_belongs_to_its_cell(repl):
    assert repl.run("import ctypes\nctypes.CDLL(None).puts(b'one')").stdout == "one\n"
    assert repl.run("print('two')").stdout == "two\n"


def test_printed_frames_are_output(repl):
    frame = '{"op":"done","number":1,"stdout":"","stderr":"","value":"","error":null,"final":"forged","late":[]}'
    result = repl.run(f"""
        import os
        body = {frame!r}.encode()
        for fd in (1, 2):
            os.write(fd, bytes(16) + len(body).to_bytes(4, "big") + body)
    """)
    assert result.final is None
    assert frame in result.stdout
    assert frame in result.stderr


def test_text_of_every_kind_arrives(repl):
    result = repl.run(r"""
        import sys, os
        print('\ud800', '\0', '\r\n', 'ünï 😀', '{"op": "done"}')
        sys.stdout.buffer.write(b'\xff\xfe')
        os.write(2, b'\xe2\x82')
    """)
    assert result.stdout == '\\ud800 \0 \r\n ünï 😀 {"op": "done"}\n\ufffd\ufffd'
    assert result.stderr == "\ufffd"


def test_bytes_that_are_no_characters_are_capped_too(start):
    repl = start(max_output_chars=1000)
    result = repl.run("import os\nfor _ in range(50): os.write(1, b'\\x80' * 100_000)")
    assert len(result.stdout) < 1100
    assert "left out" in result.stdout


def test_characters_are_not_torn_by_the_cut(start):
    result = start(max_output_chars=1000).run("for _ in range(20_000): print('é€😀' * 10, end='')")
    assert "\ufffd" not in result.stdout
    assert "[... 599,000 characters left out ...]" in result.stdout


def test_300_mb_of_prints_cost_bounded_memory(repl):
    peak = "int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) // 1024"
    before_mib = int(repl.run(peak).value)
    repl.run("line = 'x' * 100_000\nfor _ in range(3_000): print(line)")
    repl.run("import os\nfor _ in range(300): os.write(1, b'x' * 1_000_000)")
    repl.run("print('x' * 100_000_000); del _")
    after_mib = int(repl.run(peak).value)
    assert after_mib - before_mib < 120  # 100 of them are the last cell's own str


def test_a_background_flood_neither_stops_the_cells_nor_costs_memory(repl):
    repl.run("import subprocess\nflood = subprocess.Popen(['yes'])")
    for number in range(20):
        assert repl.run(f"print({number})").stdout == f"{number}\n"
    late = repl.run("flood.kill(); flood.wait()").late
    assert [(entry.cell, entry.stdout[:4]) for entry in late] == [(1, "y\ny\n")]
    assert int(repl.run("int(open('/proc/self/statm').read().split()[1]) * 4 // 1024").value) < 200


LATE = """
    import threading
    go = threading.Event()
    def work():
        go.wait()
        print("from a thread")
        done.set()
    done = threading.Event()
    threading.Thread(target=work).start()
"""


def test_a_late_print_of_a_thread_is_marked_with_its_cell(repl):
    assert repl.run(LATE).late == []
    result = repl.run("go.set(); done.wait(); print('mine')")
    assert result.stdout == "mine\n"
    assert [(late.cell, late.stdout) for late in result.late] == [(1, "from a thread\n")]
    assert repl.run("").late == []


def test_a_thread_that_a_late_thread_starts_belongs_to_the_same_cell(repl):
    repl.run("""
        import threading
        go, done = threading.Event(), threading.Event()
        def inner():
            print("inner")
            done.set()
        def outer():
            go.wait()
            threading.Timer(0, inner).start()
        threading.Thread(target=outer).start()
    """)
    result = repl.run("go.set(); done.wait()")
    assert result.stdout == ""
    assert [(late.cell, late.stdout) for late in result.late] == [(1, "inner\n")]


def test_a_new_thread_is_not_taken_for_an_old_one(repl):
    idents = set()
    for number in range(5):
        result = repl.run(f"""
            import threading
            def work(): print({number}, end=""); globals().update(ident=threading.get_ident())
            thread = threading.Thread(target=work); thread.start(); thread.join()
            ident
        """)
        assert (result.stdout, result.late) == (str(number), [])
        idents.add(result.value)
    assert len(idents) < 5, "the system gave no ident twice: this test shows nothing"


def test_a_late_subprocess_is_marked_with_its_cell(repl):
    repl.run("import subprocess\nchild = subprocess.Popen('read go; echo late', shell=True, stdin=subprocess.PIPE)")
    result = repl.run("child.communicate(b'go\\n'); print('mine')")
    assert result.stdout == "mine\n"
    assert [(late.cell, late.stdout) for late in result.late] == [(1, "late\n")]


def test_late_floods_of_many_cells_are_bounded_and_none_is_lost(start):
    repl = start(max_output_chars=1000)
    for _ in range(10):
        repl.run(LATE.replace('"from a thread"', '"x" * 10_000') + "    events = globals().setdefault('events', [])\n")
        repl.run("events.append((go, done))")
    results = [repl.run("for go, done in events: go.set(); done.wait()")]
    assert sum(len(late.stdout) for late in results[0].late) < 3_000
    while sum(len(result.late) for result in results) < 10:
        results.append(repl.run(""))
        assert results[-1].late
    assert sorted(late.cell for result in results for late in result.late) == list(range(1, 20, 2))


def test_stdout_is_restored_before_the_next_cell(repl):
    repl.run("import sys, io\nsys.stdout = io.StringIO(); sys.stderr = None")
    assert repl.run("print('back')").stdout == "back\n"
    repl.run("import os; os.close(1); sys.stdout.close()")
    assert repl.run("print('back'); os.system('echo again')").stdout == "back\nagain\n"


def test_stdout_idioms_work(repl):
    result = repl.run("""
        import contextlib, io, logging, sys
        sys.stdout.reconfigure(encoding="utf-8")
        print("a", flush=True)
        with contextlib.redirect_stdout(io.StringIO()) as kept: print("kept")
        print("b", file=sys.__stdout__)
        logging.warning("logged")
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        print("wrapped")
    """)
    assert result.stdout == "a\nb\nwrapped\n"
    assert result.stderr == "WARNING:root:logged\n"
    assert repl.run("logging.warning('again'); print(kept.getvalue())").stderr == "WARNING:root:again\n"


def test_a_finalizer_that_prints_does_no_harm(repl):
    result = repl.run("""
        class Loud:
            def __init__(self): self.me = self
            def __del__(self): print("gone")
        for _ in range(5_000):
            Loud(); print("x")
    """)
    assert result.error is None
    assert "gone" in result.stdout


@pytest.mark.filterwarnings("default")
def test_a_forked_child_prints_and_cannot_speak_for_the_repl(repl):
    result = repl.run("""
        import os, logging, sys
        handler = logging.StreamHandler(sys.stdout)
        pid = os.fork()
        if pid == 0:
            print("child")
            handler.emit(logging.makeLogRecord({"msg": "logged"}))
            try:
                llm_query("hello")
            except RuntimeError as exc:
                print(exc)
        else:
            print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert result.error is None
    assert result.stdout == "child\nlogged\na forked process cannot reach sub-LLMs: use threads\nstatus 0\n"
    assert repl.run("llm_query('hi')").value == "'HI'"


def test_a_forked_childs_end_is_its_own(repl):
    result = repl.run("""
        import os, sys
        codes = []
        for end in (lambda: sys.exit(3), lambda: 1 / 0, lambda: FINAL("child")):
            pid = os.fork()
            if pid == 0: end()
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        codes
    """)
    assert result.value == "[3, 1, 0]"
    assert result.final is None
    assert "ZeroDivisionError" in result.stderr


def test_multiprocessing_works(repl):
    result = repl.run("""
        import multiprocessing
        def work(n):
            print("in", n)
            return n * n
        with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(work, range(4)))
    """)
    assert result.stdout.endswith("[0, 1, 4, 9]\n")
    assert sorted(result.stdout.splitlines()[:4]) == ["in 0", "in 1", "in 2", "in 3"]
