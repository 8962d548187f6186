"""The REPL in a Sandbox, on the double of Modal."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Iterator

import modal
import pytest

from rlm.config import ReplLimits
from rlm.context import context_from_value
from rlm.errors import ReplBrokenError, ReplDiedError
from rlm.events import Answer
from rlm.modal.repl import ModalReplProcess
from rlm.modal.sandboxes import CREATED_TAG, ROLE_TAG, list_running, terminate
from rlm.repl.session import ReplSession
from tests.modal.repl_support import IMAGE, OnModal
from tests.repl.conftest import shout
from tests.workers.support import until

MIB = 1 << 20


@pytest.fixture
def on_modal(modal_double, needs_isolation) -> Iterator[OnModal]:
    it = OnModal(modal_double)
    yield it
    wait_until_none(it)  # whatever the test did, nothing may be left


@pytest.fixture
def start(on_modal, start):
    """As `start`, in Sandboxes."""

    def start_one(context: object = "", **options):
        return start(context, launcher=options.pop("launcher", None) or on_modal.launcher(), **options)

    return start_one


@pytest.fixture(autouse=True)
def all_closed(on_modal, start) -> None:
    """`on_modal` is asked what is left after `start` has closed everything."""


def wait_until_none(on_modal: OnModal) -> None:
    until = time.monotonic() + 5
    while on_modal.sandboxes():
        assert time.monotonic() < until, "a Sandbox is left"
        time.sleep(0.01)


def test_cells_share_names_and_ask_sub_llms(start, on_modal):
    repl = start({"k": ["é"]}, launcher=on_modal.launcher(run_id="r1"))
    repl.run("x = context['k'][0]")
    result = repl.run("print(x)\nparallel_llm_query(['one', 'two']) + [llm_query('three'), rlm_query('four', 'V')]")
    assert result.stdout == "é\n"
    assert result.value == """['ONE', 'TWO', 'THREE', "four over 'V'"]"""
    assert repl.run("FINAL(x)").final == Answer(text="é")
    (info,) = on_modal.sandboxes()
    assert info.blocked
    assert info.tags.items() >= {("run", "r1"), (ROLE_TAG, "repl")}
    assert abs(int(info.tags[CREATED_TAG]) - time.time()) < 20


def test_a_context_of_20_mb_arrives_exactly(start, tmp_path):
    data = bytes(range(1, 128)) * (20 * MIB // 127)
    (tmp_path / "big.txt").write_bytes(data)
    result = start(tmp_path / "big.txt").run("import hashlib; hashlib.sha256(context.encode()).hexdigest()")
    assert result.value == repr(hashlib.sha256(data).hexdigest())


def test_a_context_of_several_files(start, tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("a.txt", "b c.txt", "é.txt"):
        (folder / name).write_text(f"in {name}")
    assert start(folder).run("context").value == str({n: f"in {n}" for n in ("a.txt", "b c.txt", "é.txt")})


def test_answers_and_questions_of_30_mb_pass_whole(start):
    async def answer(call):
        return [{"text": item[::-1] + "é" * (30 * MIB // 6)} for item in call.items]

    repl = start(answer=answer)
    assert repl.run("r = llm_query('ab'); len(r), r[:2], set(r[2:])").value == f"({2 + 30 * MIB // 6}, 'ba', {{'é'}})"
    assert repl.run("q = 'q' * (30 << 20) + 'z'; llm_query(q)[:3]").value == "'zqq'"


def test_many_calls_of_threads_are_answered_at_once(start):
    async def answer(call):
        await asyncio.sleep(0.1)
        return await shout(call)

    repl = start(answer=answer)
    began = time.monotonic()
    repl.run(
        "from concurrent.futures import ThreadPoolExecutor as P\nwith P(50) as p: r = list(p.map(llm_query, 'ab' * 25))"
    )
    assert repl.run("r == list('AB' * 25)").value == "True"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "the REPL process ended: exit status 3$"),
        ("import os; os.kill(os.getpid(), 9)", "killed, perhaps because it ran out of memory$"),
        ("import os; os.abort()", "ended by SIGABRT; Fatal Python error: Aborted$"),
    ],
)
def test_a_death_is_told_and_the_next_cell_finds_a_fresh_sandbox_with_the_context(start, on_modal, code, how):
    repl = start("the context", cell_timeout_s=5)
    repl.run("x = 1")
    (before,) = on_modal.sandboxes()
    with pytest.raises(ReplDiedError, match=how):
        repl.run(code)
    assert repl.run("'x' in globals(), context").value == "(False, 'the context')"
    assert before.sandbox_id not in [info.sandbox_id for info in on_modal.sandboxes()]


def test_a_sandbox_that_dies_with_its_machine_is_replaced(start, on_modal, modal_faults):
    repl = start("the context")
    (before,) = on_modal.sandboxes()
    modal_faults.kill_sandbox(before.sandbox_id, after_s=0.2)
    with pytest.raises(ReplDiedError, match="the REPL process ended: its Sandbox was killed"):
        repl.run("import time; time.sleep(60)")
    assert repl.run("context").value == "'the context'"


def test_a_cell_that_will_not_be_interrupted_is_killed_with_its_sandbox(start):
    repl = start("kept", cell_timeout_s=0.3, interrupt_grace_s=0.5)
    with pytest.raises(ReplDiedError, match=r"ignored the interrupt after 0\.3 s"):
        repl.run("import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass")
    assert repl.run("context").value == "'kept'"


def test_no_key_is_in_reach(start, modal_double, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-in-the-host")
    modal_double.set_secret("openai-secret", {"OPENAI_API_KEY": "sk-in-the-account"})
    result = start().run("""
        import os, subprocess
        seen = subprocess.run("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline", shell=True, capture_output=True).stdout
        print(b"driver.py" in seen, b"sk-in-the" in seen, [n for n in os.environ if "KEY" in n or "TOKEN" in n])
    """)
    assert result.stdout == "True False []\n"


def test_there_is_no_network(start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = start().run(f"""
            import socket
            for address in [("127.0.0.1", {server.getsockname()[1]}), ("1.1.1.1", 443), ("api.openai.com", 443)]:
                try:
                    socket.create_connection(address, 2)
                    print("connected")
                except OSError:
                    print("refused")
        """)
    assert result.stdout == "refused\n" * 3


class TestWhenModalWillNot:
    def test_create_a_sandbox(self, start, modal_faults):
        modal_faults.unavailable("SandboxCreateV2", 1000)
        with pytest.raises(ReplBrokenError, match=r"^Modal creates no Sandbox for the REPL: .*unavailable on purpose$"):
            start()

    def test_create_any_more_sandboxes(self, start, on_modal, modal_faults):
        modal_faults.creation_rate(1, per_s=3600)
        start()
        with pytest.raises(ReplBrokenError, match=r"^Modal creates no Sandbox for the REPL: more than 1 Sandbox"):
            start(launcher=on_modal.launcher(patience_s=0))

    def test_create_more_for_a_moment(self, start, modal_faults):
        modal_faults.creation_rate(1, per_s=1)
        assert [start().run("1").value for _ in range(2)] == ["1", "1"]

    def test_schedule_it(self, start, on_modal, modal_faults):
        modal_faults.sandbox_latency(60)
        with pytest.raises(ReplBrokenError, match=r"^the REPL's Sandbox does not start: "):
            start(launcher=on_modal.launcher(start_timeout_s=0.5))

    def test_keep_it(self, on_modal, modal_faults, tmp_path):
        (tmp_path / "x").write_text("x")

        async def main():
            process = await on_modal.launcher().start(context_from_value("", tmp_path), ReplLimits())
            (info,) = on_modal.sandboxes()
            modal_faults.kill_sandbox(info.sandbox_id)
            while on_modal.sandboxes():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises(ReplBrokenError, match="cannot bring x to the REPL"):
                await process.place(tmp_path / "x")
            with pytest.raises(ReplDiedError):
                await process.write(b"x")
            how = await process.close()
            assert "its Sandbox was killed" in how
            assert await process.close() == how

        asyncio.run(main())

    def test_end_it_at_once(self, start, on_modal, modal_faults):
        repl = start()
        modal_faults.unavailable("SandboxTerminateV2", 1000)
        assert "could not be ended, and ends by itself: " in repl.close()
        modal_faults.clear()

        async def sweep():
            for sandbox in (await list_running(on_modal.app.app_id, {ROLE_TAG: "repl"})).values():
                await terminate(sandbox)

        asyncio.run(sweep())


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.08, 0.15])
def test_a_start_that_is_cancelled_leaves_no_sandbox(on_modal, modal_faults, tmp_path, after_s):
    async def main():
        modal_faults.latency("SandboxCreateV2", 0.02)
        context = context_from_value("x", tmp_path)
        session = ReplSession(on_modal.launcher(), context, ReplLimits(), shout)
        starting = asyncio.create_task(session.__aenter__())
        await asyncio.sleep(after_s)
        if starting.cancel():
            await asyncio.wait([starting])
            assert starting.cancelled()
        else:
            await session.close()

    asyncio.run(main())


def test_a_cell_that_is_cancelled_leaves_no_sandbox(on_modal, tmp_path):
    async def main():
        context = context_from_value("x", tmp_path)
        async with ReplSession(on_modal.launcher(), context, ReplLimits(), shout) as session:
            running = asyncio.create_task(session.run("import time; time.sleep(60)"))
            await asyncio.sleep(0.2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await session.run("context")).value == "'x'"

    asyncio.run(main())


def test_a_new_attempt_at_a_run_ends_what_the_last_one_left(on_modal, tmp_path):
    async def main():
        told = context_from_value("", tmp_path), ReplLimits()
        other = await on_modal.launcher(run_id="other").start(*told)
        killed = await on_modal.launcher(run_id="r1").start(*told)
        again = on_modal.launcher(run_id="r1")
        both = [await again.start(*told), await again.start(*told)]  # the run's, and a child's
        await until(lambda: len(on_modal.sandboxes()) == 3)
        assert sorted(info.tags["run"] for info in on_modal.sandboxes()) == ["other", "r1", "r1"]
        for process in (killed, other, *both):
            await process.close()

    asyncio.run(main())


def test_what_is_not_read_waits_in_the_sandbox(on_modal):
    async def main():
        sandbox = await modal.Sandbox.create.aio(app=on_modal.app, image=IMAGE, block_network=True)
        process = ModalReplProcess(sandbox, await sandbox.exec.aio("head", "-c", "50000000", "/dev/zero", text=False))
        await asyncio.sleep(0.5)
        assert len(process.reader._buffer) < 8 * MIB
        assert len(await process.reader.readexactly(50_000_000)) == 50_000_000
        assert await process.reader.read() == b""
        assert await process.close() == "exit status 0"

    asyncio.run(main())
