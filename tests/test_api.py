"""The ways to ask from Python: with and without `async with`, with and without an event loop, as a stream."""

from __future__ import annotations

import asyncio
import threading
import traceback
from contextlib import aclosing
from dataclasses import replace

import pytest

from rlm import RLM, Limits, Provider, RunConfig, RunResult, events
from rlm.bench.niah import make_haystack
from rlm.errors import InputError, KeyRefusedError
from rlm.offline.server import Fault, OfflineSettings, serve_offline
from tests.conftest import cell
from tests.workers.support import worker_pids

CONFIG = RunConfig(model="root", recursive_model="sub")
ASKS_SUBS = cell("FINAL(parallel_llm_query(context.split())[-1])")


@pytest.fixture(scope="module")
def server():
    """Every run asks its sub-LLM for the words of its context in capitals."""
    with serve_offline(OfflineSettings(script=(ASKS_SUBS,), sub_replies=str.upper, api_key="right")) as server:
        yield server


@pytest.fixture
def make(server):
    def make(config=CONFIG, *, api_key="right", **settings):
        return RLM(config, provider=Provider(api_key=api_key, base_url=server.base_url), **settings)

    yield make
    assert worker_pids() == []


class TestWithoutALoop:
    def test_one_rlm_answers_any_number_of_questions(self, make):
        rlm = make()
        for word in ("one", "two", "three"):
            assert rlm.completion("q", f"{word} " * 40).answer == word.upper()  # enough for three workers

    def test_an_error_is_raised_without_a_trace_of_how_a_loop_was_looked_for(self, make):
        with pytest.raises(InputError, match="JSON value") as caught:
            make().completion("q", object())
        assert "event loop" not in "".join(traceback.format_exception(caught.value))

    def test_the_names_of_before_are_taken(self, make):
        assert make().completion(context="one", query="q").answer == "ONE"

    @pytest.mark.parametrize(
        ("given", "message"), [({"context": "c"}, "question is empty"), ({"query": "q"}, "no context")]
    )
    def test_a_question_and_a_context_are_needed(self, make, given, message):
        with pytest.raises(InputError, match=message):
            make().completion(**given)

    def test_where_there_is_a_loop_it_says_what_to_write(self, make):
        async def in_a_notebook():
            make().completion("q", "one")

        with pytest.raises(InputError, match=r"use `await rlm\.run\(question, context\)`"):
            asyncio.run(in_a_notebook())

    def test_a_thread_may_ask_while_the_rlm_is_open_in_a_loop(self, make):
        async def main():
            async with make() as rlm:
                return await asyncio.gather(rlm.run("q", "one"), asyncio.to_thread(rlm.completion, "q", "two"))

        assert [result.answer for result in asyncio.run(main())] == ["ONE", "TWO"]


class TestInALoop:
    def test_runs_without_async_with_may_go_on_at_once_and_leave_nothing(self, make):
        async def main():
            rlm = make()
            return await asyncio.gather(rlm.run("q", "one"), rlm.run("q", "two")), worker_pids()

        results, left = asyncio.run(main())
        assert ([result.answer for result in results], left) == (["ONE", "TWO"], [])

    def test_one_rlm_is_opened_again_and_asked_between(self, make):
        async def main():
            rlm = make()
            async with rlm:
                yield await rlm.run("q", "one")
            yield await rlm.run("q", "two")
            async with rlm:
                yield await rlm.run("q", "three")
                yield await rlm.run("q", "four")

        async def answers():
            return [result.answer async for result in main()]

        assert asyncio.run(answers()) == ["ONE", "TWO", "THREE", "FOUR"]

    def test_one_that_is_open_is_not_opened_again(self, make):
        async def main():
            async with make() as rlm:
                with pytest.raises(InputError, match="open already"):
                    await rlm.__aenter__()
                return await rlm.run("q", "one")

        assert asyncio.run(main()).answer == "ONE"


class TestSettingsOfOneRun:
    def test_a_run_has_its_own_and_the_next_has_those_of_the_rlm(self, make):
        async def main():
            async with make() as rlm:
                own = await rlm.run("q", "one", config=replace(rlm.config, model="dear", recursive_model="cheap"))
                return own, await rlm.run("q", "two")

        own, usual = asyncio.run(main())
        assert (own.answer, list(own.usage)) == ("ONE", ["cheap", "dear"])
        assert (usual.answer, list(usual.usage)) == ("TWO", ["root", "sub"])

    def test_workers_that_are_shared_stay_as_they_are(self, make):
        async def main():
            async with make() as rlm:
                with pytest.raises(InputError, match="pool_size is 4 for all runs that share the workers"):
                    await rlm.run("q", "one", config=replace(rlm.config, pool_size=1))
                with pytest.raises(InputError, match="request_timeout_s is 1200"):
                    await rlm.run("q", "one", config=replace(rlm.config, request_timeout_s=1))

        asyncio.run(main())

    def test_workers_of_one_run_are_as_it_says(self, make):
        heard = []
        rlm = make(on_event=heard.append)
        assert rlm.completion("q", "one", config=replace(rlm.config, pool_size=1)).answer == "ONE"
        (started,) = (event for event in heard if isinstance(event, events.RunStarted))
        assert started.settings["pool_size"] == 1

    def test_a_limit_in_dollars_needs_the_price_of_that_run(self, make):
        with pytest.raises(InputError, match="price of 'root'"):
            make().completion("q", "one", config=replace(CONFIG, limits=Limits(max_usd=1)))


class TestOffline:
    def test_it_answers_without_a_key_and_is_told_apart_from_an_llm(self, tmp_path):
        haystack = make_haystack(tmp_path / "haystack.txt", num_lines=2_000, seed=1)
        rlm, before = RLM.offline(), threading.enumerate()
        for _ in range(2):
            result = rlm.completion(haystack.question, haystack.path)
            assert (result.answer, result.scripted, result.cost_usd) == (haystack.expected, True, 0)
        assert threading.enumerate() == before

    def test_what_it_is_told_counts_but_for_the_models(self):
        async def main():
            async with RLM.offline(RunConfig(limits=Limits(max_usd=1)), on_event=heard.append) as rlm:
                await rlm.run("What is it?", "the first line")

        heard = []
        asyncio.run(main())
        (started,) = (event for event in heard if isinstance(event, events.RunStarted))
        assert started.settings["limits"]["max_usd"] == 1
        assert started.model == "scripted-root"


class TestStreams:
    def test_the_events_come_and_the_result_is_the_last(self, make):
        async def main(rlm):
            return [item async for item in rlm.stream("q", "one", run_id="ours")]

        heard = []
        *told, result = asyncio.run(main(make(on_event=heard.append)))
        assert told == heard
        assert isinstance(told[0], events.RunStarted)
        assert isinstance(result, RunResult)
        assert (result.answer, result.run_id) == ("ONE", "ours")

    def test_two_at_once_do_not_mix_but_child_runs_are_told(self):
        code = "FINAL(context if context.startswith('child') else rlm_query('q', 'child of ' + context))"

        async def read(rlm, context):
            return [item async for item in rlm.stream("q", context)]

        async def main(provider):
            async with RLM(CONFIG, provider=provider) as rlm:
                return await asyncio.gather(read(rlm, "one"), read(rlm, "two"))

        with serve_offline(OfflineSettings(script=(cell(code),))) as server:
            streams = asyncio.run(main(Provider(api_key="k", base_url=server.base_url)))
        for name, (*told, result) in zip(("one", "two"), streams, strict=True):
            assert result.answer == f"child of {name}"
            parent, child = (event for event in told if isinstance(event, events.RunStarted))
            assert (parent.run_id, child.parent_id) == (result.run_id, result.run_id)
            assert {event.run_id for event in told} == {parent.run_id, child.run_id}

    def test_what_ends_the_run_is_raised_after_its_events(self, make):
        async def main():
            async for item in make(api_key="wrong").stream("q", "one"):
                told.append(item)  # noqa: PERF401  # what comes before the error counts

        told = []
        with pytest.raises(KeyRefusedError):
            asyncio.run(main())
        assert isinstance(told[-1], events.RunFailed)

    def test_leaving_it_ends_the_run_and_its_workers(self):
        hangs = OfflineSettings(
            script=(cell("parallel_llm_query(['hang'] * 20)"),), faults=(Fault(match="hang", hang_s=60, times=99),)
        )

        async def main(rlm):
            async with aclosing(rlm.stream("q", "c")) as items:
                async for item in items:
                    if isinstance(item, events.SubCallsStarted):
                        break
            return worker_pids(), asyncio.all_tasks()

        with serve_offline(hangs) as server:
            rlm = RLM(CONFIG, provider=Provider(api_key="k", base_url=server.base_url))
            left, tasks = asyncio.run(main(rlm))
        assert left == []
        assert len(tasks) == 1
