"""An endless cell is interrupted at its limit, with its state kept; one that cannot be is killed, and told."""

import asyncio
import time

import pytest

from rlm.errors import ReplDiedError

CELLS = {
    "a loop": "while True: pass",
    "a sleep": "import time; time.sleep(60)",
    "a regex": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "a join": "import threading\nt = threading.Thread(target=threading.Event().wait, daemon=True)\nt.start(); t.join()",
    "a lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "prints": "while True: print()",
    "floods": "import os\nwhile True: os.write(1, b'x' * 100_000)",
    "a subprocess": "import subprocess; subprocess.run(['sleep', '60'])",
    "asyncio": "import asyncio; await asyncio.sleep(60)",
    "asyncio threads": "import asyncio, time; await asyncio.to_thread(time.sleep, 3)",
    "a swallowed exception": "while True:\n    try: time.sleep(60)\n    except Exception: pass\nimport time",
    "a swallowed interrupt": "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: int()",
    "a swallowed interrupt in a busy loop": "while True:\n    try:\n        while True: n = 1\n    except: pass",
    "a repr": "class A:\n    def __repr__(self):\n        while True: pass\nA()",
    "a str of an exception": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "a stdout of its own": "import sys\nclass S:\n    def flush(self):\n        while True: pass\nsys.stdout = S()",
    "an iterator in our own code": "def prompts():\n    yield 'x'\n    while True: pass\nparallel_llm_query(prompts())",
    "blocked signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\nwhile True: pass",
    "a stolen signal": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)",
    "a stolen timer": "import signal\nsignal.alarm(0)",
}


@pytest.mark.parametrize("what", CELLS)
def test_the_interrupt_reaches(start, what):
    repl = start(cell_timeout_s=0.15)
    repl.run("kept = 1")
    began = time.monotonic()
    result = repl.run(CELLS[what])
    assert time.monotonic() - began < 4
    if not what.startswith(("a stolen", "a str of", "a stdout", "a swallowed exception")):
        assert result.error.endswith("CellTimeoutError: the cell ran longer than 0.15 s and was interrupted")
    assert repl.run("kept").value == "1"
    assert "CellTimeoutError" in repl.run("while True: pass").error  # the limit still holds


def test_the_traceback_of_an_interrupt_tells_where_the_cell_was(start):
    error = start(cell_timeout_s=0.2).run("def inner():\n    while True: pass\ninner()").error
    assert 'File "<cell 1>", line 2, in inner' in error
    assert "clock.py" not in error


async def slow(call):
    await asyncio.sleep(0.25)
    return [{"text": "x"} for _ in call.items]


def test_waiting_for_sub_llms_does_not_count(start):
    repl = start(answer=slow, cell_timeout_s=0.2, interrupt_grace_s=0.4)
    assert repl.run("for _ in range(4): llm_query('a')\nbudget is not None").value == "True"
    assert (
        repl.run("""
        import threading
        threads = [threading.Thread(target=llm_query, args=["a"]) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        "joined"
    """).value
        == "'joined'"
    )


def test_threads_of_an_older_cell_may_wait_too(start):
    repl = start(answer=slow, cell_timeout_s=0.2)
    repl.run(
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1); pool.submit(int).result()"
    )
    assert repl.run("[pool.submit(llm_query, 'a').result() for _ in range(2)]").value == "['x', 'x']"


KEEPS_ASKING = """
    import threading, time
    def ask_for_ever():
        while True: llm_query("x")
    def start_asking():
        for _ in range(3): threading.Thread(target=ask_for_ever, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("start_asking()", "while True: pass"),
        ("start_asking()", "time.sleep(60)"),
        ("start_asking()", "threading.Event().wait()"),
        ("", "start_asking()\nwhile True: pass"),
    ],
    ids=[
        "an older thread, a loop",
        "an older thread, a sleep",
        "an older thread, a wait",
        "a thread of its own, a loop",
    ],
)
def test_threads_that_keep_asking_hold_no_cell_past_its_limit(start, before, code):
    repl = start(answer=slow, cell_timeout_s=0.3)
    repl.run(KEEPS_ASKING)
    repl.run(before)
    began = time.monotonic()
    assert repl.run(code).error.endswith("the cell ran longer than 0.3 s and was interrupted")
    assert time.monotonic() - began < 5


def test_a_cell_that_sleeps_while_its_threads_keep_asking_ends_at_the_limit_with_all_waits(start):
    repl = start(answer=slow, cell_timeout_s=0.3, cell_max_s=1.0)
    repl.run(KEEPS_ASKING)
    error = repl.run("start_asking()\ntime.sleep(60)").error
    assert error.endswith("the cell and its calls took longer than 1 s: it was interrupted")
    assert repl.run("1").value == "1"


def test_an_answer_that_never_comes_ends_at_the_limit_with_all_waits(start):
    async def answer(call):
        await asyncio.Event().wait()

    repl = start("kept", answer=answer, cell_timeout_s=0.2, cell_max_s=0.4, interrupt_grace_s=0.3)
    with pytest.raises(ReplDiedError, match=r"the cell ignored the interrupt after 0\.4 s"):
        repl.run("llm_query('x')")
    assert repl.run("context").value == "'kept'"


def test_a_cell_in_c_code_is_killed_though_an_older_thread_keeps_asking(start):
    repl = start(answer=slow, cell_timeout_s=0.2, interrupt_grace_s=0.3)
    repl.run(KEEPS_ASKING)
    repl.run("start_asking()")
    with pytest.raises(ReplDiedError, match=r"ignored the interrupt after 0\.2 s"):
        repl.run("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)")  # threads go on meanwhile


def test_time_between_waits_counts(start):
    async def answer(call):
        await asyncio.sleep(0.001)
        return [{"text": "x"} for _ in call.items]

    began = time.monotonic()
    result = start(answer=answer, cell_timeout_s=0.3).run("""
        while True:
            llm_query("x")
            sum(range(100_000))
    """)
    assert "CellTimeoutError" in result.error
    assert time.monotonic() - began < 5


def test_a_cell_that_does_little_but_ask_is_interrupted(start):
    async def answer(call):
        return [{"text": "x"} for _ in call.items]

    result = start(answer=answer, cell_timeout_s=0.05).run("while True: llm_query('x')")
    assert "CellTimeoutError" in result.error


def test_the_clock_starts_anew_with_each_cell(start):
    repl = start(cell_timeout_s=0.4)
    for _ in range(3):
        assert repl.run("import time; time.sleep(0.25)").error is None


def test_final_before_an_endless_loop_is_kept(start):
    result = start(cell_timeout_s=0.2).run("try: FINAL('x')\nexcept: pass\nprint()\nwhile True: pass")
    assert result.final.text == "x"
    assert "CellTimeoutError" in result.error


STUCK = {
    "C code": "sum(range(10 ** 12))",
    "a stop": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "a repr in C": "class A:\n    def __repr__(self): return str(sum(range(10 ** 12)))\nA()",
}


@pytest.mark.parametrize("what", STUCK)
def test_a_cell_that_ignores_the_interrupt_is_killed_and_told(start, what):
    repl = start("kept", cell_timeout_s=0.2, interrupt_grace_s=0.3)
    with pytest.raises(ReplDiedError, match=r"the cell ignored the interrupt after 0.2 s; the REPL process was killed"):
        repl.run(STUCK[what])
    assert repl.run("context").value == "'kept'"


def test_a_process_that_stops_reading_is_killed_though_calls_are_open(start):
    async def answer(call):
        return [{"text": "x" * 10_000_000} for _ in call.items]

    repl = start(answer=answer, cell_timeout_s=0.2, interrupt_grace_s=0.3)
    with pytest.raises(ReplDiedError, match="ignored the interrupt"):
        repl.run("""
            import os, signal, threading, time
            threading.Thread(target=llm_query, args=["x"]).start()
            os.kill(os.getpid(), signal.SIGSTOP)
        """)
    assert repl.run("1").value == "1"
