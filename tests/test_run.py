"""One run and its children: what the answer is, what the tree may spend, and what no clean-up may cost."""

from __future__ import annotations

import asyncio
import json

import pytest

import rlm
from rlm import RLM, Limits, Provider, RunConfig, events
from rlm.backend import local_backend
from rlm.errors import WorkerError
from rlm.local.repl import LocalReplLauncher
from rlm.local.workers import LocalLauncher
from rlm.offline.server import Fault, OfflineSettings, serve_offline
from rlm.report import as_json
from rlm.usage import Price, PriceList
from tests.conftest import Ran, cell, run_script

CONFIG = RunConfig(model="root", recursive_model="sub")
PRICE = Price(input=1e6, cached_input=1e6, output=1e6)


def config(*, max_children=4, max_iterations=10, **limits):
    return RunConfig(
        model="root",
        recursive_model="sub",
        max_children=max_children,
        max_iterations=max_iterations,
        limits=Limits(**limits),
    )


def run_on(make_backend, *replies, config=CONFIG, context="text", on_event=None):
    """As `run_script`, over a backend made from that of this machine."""
    heard = []

    def hear(event):
        heard.append(event)
        if on_event is not None:
            on_event(event)

    with serve_offline(OfflineSettings(script=replies)) as server:
        provider = Provider(api_key="test-key", base_url=server.base_url, scripted=True)
        backend = make_backend(local_backend(provider), provider)

        async def run():
            async with RLM(config, provider=provider, backend=backend, on_event=hear) as rlm:
                return await rlm.run("What is it?", context)

        return Ran(asyncio.run(run()), heard, server.stats())


def as_it_is(backend, _provider):
    return backend


class TestAnswers:
    def test_a_value_named_in_text_is_answered_as_json_and_as_itself(self):
        ran = run_script(cell("table = [1, {'a': None}]"), "FINAL(table)")
        assert (ran.result.answer, ran.result.value) == ('[1, {"a": null}]', [1, {"a": None}])
        assert ran.of(events.RunFinished)[0].value == [1, {"a": None}]
        assert json.loads(json.dumps(as_json(ran.result)))["value"] == [1, {"a": None}]

    def test_an_expression_in_text_is_evaluated_where_the_cells_ran(self):
        assert run_script(cell("n = 3"), 'FINAL(f"There are {n} messages")').result.answer == "There are 3 messages"

    def test_words_in_the_last_reply_are_the_answer_and_the_limit_is_told(self):
        ran = run_script(cell("print(1)"), "I think it is 42.", config=config(max_iterations=1))
        assert (ran.result.answer, ran.result.stopped_by) == ("I think it is 42.", "iterations")


class TestTheLog:
    def test_the_start_tells_settings_version_and_files(self, tmp_path):
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("12345")
        ran = run_script("FINAL(1)", context=tmp_path, config=config(max_calls=7))
        (started,) = ran.of(events.RunStarted)
        assert started.settings["limits"]["max_calls"] == 7
        assert started.version == rlm.__version__
        assert [(file.name, file.size_bytes) for file in started.files] == [("a.txt", 5), ("b.txt", 5)]

    def test_a_call_knows_its_cell_and_iteration(self):
        ran = run_script(cell("1") + cell("llm_query('a')"), cell("FINAL(llm_query('b'))"))
        assert [(event.iteration, event.cell) for event in ran.of(events.SubCallFinished)] == [(1, 2), (2, 3)]
        assert [event.cost.calls for event in ran.of(events.CellFinished)] == [0, 1, 1]


class TestChildren:
    def test_prose_of_a_child_is_no_answer_and_is_told_with_the_error(self):
        code = (
            "if context == 'small': print('no answer')\nelse:\n"
            "    try: rlm_query('q', 'small')\n    except SubLLMError as exc: FINAL(exc)"
        )
        ran = run_script(cell(code), "I think it is 7.", context="large", config=config(max_iterations=1))
        assert ran.result.answer == (
            "the child run ended without giving an answer (stopped by iterations); its last reply was: I think it is 7."
        )

    def test_a_child_that_the_provider_fails_is_an_error_of_its_call(self):
        code = "try: rlm_query('what of the boom?', 'x')\nexcept SubLLMError as exc: FINAL(f'told: {exc}')"
        ran = run_script(cell(code), faults=(Fault(match="Question: what of the boom", status=400, times=9),))
        assert ran.result.answer.startswith("told: 'sub' at http")

    def test_a_child_is_asked_something(self):
        code = "try: rlm_query('  ', 'x')\nexcept SubLLMError as exc: FINAL(exc)"
        assert run_script(cell(code)).result.answer == "the question for the child run is empty"

    def test_a_child_tells_which_cell_asked_for_it(self):
        code = "if context == 'small': FINAL(1)\nelse: rlm_query('q', 'small')"
        ran = run_script(cell("1") + cell(code), cell("FINAL(2)"), context="large")
        assert [event.parent_cell for event in ran.of(events.RunStarted)] == [None, 2]

    def test_only_so_many_go_on_at_once_and_all_are_answered(self):
        code = (
            "if isinstance(context, int): FINAL(context)\n"
            "else: FINAL(sorted(rlm_query_batched(['q'] * 7, range(7)), key=int))"
        )
        ran = run_script(cell(code), context="large", config=config(max_children=2), latency_s=0.3)
        assert ran.result.value == [str(number) for number in range(7)]
        assert peak_of_children(ran) <= 2

    def test_children_of_children_wait_for_no_place_that_a_parent_holds(self):
        code = (
            "if context == 'leaf': FINAL('leaf')\n"
            "elif context == 'branch': FINAL(rlm_query_batched(['q'] * 3, ['leaf'] * 3))\n"
            "else: FINAL(rlm_query_batched(['q'] * 2, ['branch'] * 2))"
        )
        ran = run_script(cell(code), context="root", config=config(max_children=1, max_depth=2))
        assert ran.result.value == ['["leaf", "leaf", "leaf"]'] * 2
        assert peak_of_children(ran) <= 2


def peak_of_children(ran):
    alive = peak = 0
    children = {event.run_id for event in ran.of(events.RunStarted) if event.depth}
    for event in ran.events:
        if event.run_id in children and isinstance(event, events.RunStarted | events.RunFinished):
            alive += 1 if isinstance(event, events.RunStarted) else -1
            peak = max(peak, alive)
    return peak


class TestTheBudgetOfATree:
    CHILDREN_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
def ask(number):
    try: return rlm_query(f"q{number}", number)
    except SubLLMError as exc: return type(exc).__name__
if isinstance(context, int): FINAL("child")
else:
    with ThreadPoolExecutor(8) as threads: found = list(threads.map(ask, range(20)))
    FINAL({kind: found.count(kind) for kind in sorted(set(found))})
"""

    def test_no_child_starts_where_no_call_is_allowed(self):
        ran = run_script(cell(self.CHILDREN_IN_THREADS), context="large", config=config(max_calls=0))
        assert ran.result.value == {"BudgetError": 20}
        assert (len(ran.of(events.RunStarted)), ran.stats.root_requests, ran.result.sub_calls) == (1, 1, 0)

    def test_children_together_make_no_more_calls_than_there_may_be(self):
        ran = run_script(cell(self.CHILDREN_IN_THREADS), context="large", config=config(max_calls=3))
        assert ran.result.value["child"] == 3
        assert sum(ran.result.value.values()) == 20
        assert (ran.stats.root_requests, ran.result.sub_calls) == (4, 3)

    def test_no_child_starts_that_could_not_pay_its_question(self):
        code = "try: rlm_query('x' * 4_000, 'c')\nexcept BudgetError as exc: FINAL(exc)"
        prices = PriceList({"root": Price(input=0, cached_input=0, output=0), "sub": PRICE})
        ran = run_script(cell(code), config=config(max_usd=900), prices=prices)
        assert ran.result.answer == "$1,000.0000 asked for, $900.0000 left of the run's limit of $900.0000"
        assert len(ran.of(events.RunStarted)) == 1


class TestTime:
    def test_the_start_of_the_repl_counts(self):
        class Slow(LocalReplLauncher):
            async def start(self, *_args, **_more):
                await asyncio.Event().wait()

        ran = run_on(with_repl(Slow()), "FINAL(never asked)", config=config(timeout_s=0.5))
        assert (ran.result.answer, ran.result.stopped_by, ran.stats.root_requests) == (None, "time", 0)

    def test_the_start_of_a_child_counts_and_the_last_request_has_its_share(self):
        class SlowForChildren(LocalReplLauncher):
            started = 0

            async def start(self, *args, **more):
                self.started += 1
                if self.started > 1:
                    await asyncio.Event().wait()
                return await super().start(*args, **more)

        replies = (cell("rlm_query('q', 'c')"), "FINAL(early)")
        ran = run_on(with_repl(SlowForChildren()), *replies, config=config(timeout_s=6))
        assert (ran.result.answer, ran.result.stopped_by) == ("early", "time")


def with_repl(launcher):
    def make(backend, _provider):
        return rlm.engine.Backend(
            repl_launcher=launcher, worker_launcher=backend.worker_launcher, registry=backend.registry
        )

    return make


class TestWhatCostsNoAnswer:
    def test_a_repl_that_cannot_be_closed_is_a_notice(self):
        class Unclosable(LocalReplLauncher):
            async def start(self, *args, **more):
                process = await super().start(*args, **more)
                close = process.close

                async def fail():
                    await close()
                    raise OSError("the scratch folder is in use")

                process.close = fail
                return process

        ran = run_on(with_repl(Unclosable()), "FINAL(42)")
        assert ran.result.answer == "42"
        assert [event for event in ran.events if isinstance(event, events.RunFinished | events.RunFailed)] == ran.of(
            events.RunFinished
        )
        assert "cleaning up failed: OSError: the scratch folder is in use" in ran.of(events.Notice)[-1].text

    def test_a_worker_that_cannot_be_stopped_is_a_notice(self):
        class Unstoppable(LocalLauncher):
            async def stop(self, entry):
                await super().stop(entry)
                raise WorkerError("it does not go")

        def make(backend, provider):
            return rlm.engine.Backend(
                repl_launcher=backend.repl_launcher,
                worker_launcher=Unstoppable(provider.environment()),
                registry=backend.registry,
            )

        ran = run_on(make, cell("FINAL(llm_query('a'))"))
        assert ran.result.stopped_by == "answer"
        assert "it does not go" in ran.of(events.Notice)[-1].text

    @pytest.mark.parametrize("kind", [events.RootReplied, events.SubCallFinished, events.RunFinished])
    def test_a_listener_that_raises_is_told_once_and_fails_nothing(self, kind):
        def hear(event):
            if isinstance(event, kind):
                raise BrokenPipeError("nobody reads")

        ran = run_on(as_it_is, cell("FINAL(parallel_llm_query(['a', 'b']))"), on_event=hear)
        assert ran.result.stopped_by == "answer"
        assert ran.result.usage["sub"]["calls"] == 2
        told = [event.text for event in ran.of(events.Notice) if "listener" in event.text]
        assert told == ["a listener to events failed: BrokenPipeError: nobody reads"]
