"""Whole runs through the Python API: sub-LLM calls, child runs, usage, and what ends a run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from rlm import RLM, Limits, Provider, RunConfig, events
from rlm.backend import local_backend
from rlm.errors import InputError, KeyRefusedError
from rlm.local.registry import MemoryRegistry
from rlm.offline.server import Fault, OfflineSettings, WrongAnswer, serve_offline
from rlm.usage import Price, PriceList
from tests.conftest import cell, run_script
from tests.workers.support import worker_pids

CONFIG = RunConfig(model="root", recursive_model="sub")


def echo(prompt):
    return prompt.upper()


class TestSubCalls:
    def test_a_batch_is_answered_in_the_order_of_its_prompts(self):
        code = "FINAL('|'.join(parallel_llm_query([f'p{i}' for i in range(40)])))"
        ran = run_script(cell(code), sub_replies=echo, latency_s=0.02, jitter=1.0)
        assert ran.result.answer == "|".join(f"P{i}" for i in range(40))
        assert (ran.stats.sub_requests, ran.stats.prompts_answered_more_than_once) == (40, 0)
        assert ran.result.sub_calls == 40

    def test_one_llm_query_starts_one_worker(self):
        ran = run_script(cell("import time; FINAL(llm_query('a'))"), sub_replies=echo)
        assert ran.result.answer == "A"
        assert ran.stats.sub_requests == 1

    def test_threads_of_a_cell_call_really_in_parallel(self):
        code = (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(8) as threads: found = list(threads.map(llm_query, 'abcdefgh'))\nFINAL(found)"
        )
        ran = run_script(cell(code), sub_replies=echo, latency_s=0.3)
        assert ran.result.answer == json.dumps(list("ABCDEFGH"))
        assert ran.stats.peak_in_flight == 8

    def test_a_prompt_that_fails_for_good_raises_sub_llm_error_with_the_providers_words(self):
        code = "try: llm_query('bad one')\nexcept SubLLMError as exc: FINAL(f'{type(exc).__name__}: {exc}')"
        ran = run_script(cell(code), faults=(Fault(match="bad", status=400),))
        assert ran.result.answer.startswith("SubLLMError: ")
        assert ran.of(events.SubCallFinished)[0].error is not None

    def test_return_exceptions_keeps_the_answers_of_the_others(self):
        code = (
            "found = parallel_llm_query(['good', 'bad', 'fine'], return_exceptions=True)\n"
            "FINAL([f if isinstance(f, str) else type(f).__name__ for f in found])"
        )
        ran = run_script(cell(code), sub_replies=echo, faults=(Fault(match="bad", status=400),))
        assert ran.result.answer == '["GOOD", "SubLLMError", "FINE"]'

    def test_an_uncaught_sub_llm_error_is_data_for_the_root_lm_and_the_run_goes_on(self):
        ran = run_script(cell("llm_query('b' + 'ad')"), "FINAL(went on)", faults=(Fault(match="bad", status=400),))
        assert ran.result.answer == "went on"
        assert "SubLLMError" in ran.of(events.CellFinished)[0].result.error

    def test_a_model_that_is_not_the_runs_own_is_refused_without_a_call(self):
        ran = run_script(cell("try: llm_query('a', model='dear')\nexcept SubLLMError as exc: FINAL(exc)"))
        assert ran.result.answer == "no model 'dear' here: use one of sub, root"
        assert ran.stats.sub_requests == 0

    def test_odd_characters_reach_the_sub_llm_and_come_back(self):
        code = "FINAL(llm_query('\\x00 \\ud800 \\u2028 \\U0001f600 é') == '\\x00 \\ufffd \\u2028 \\U0001f600 é')"
        assert run_script(cell(code), sub_replies=lambda prompt: prompt).result.answer == "true"

    def test_retries_are_told_and_nothing_is_asked_twice_for_an_answer(self):
        retry = Fault(match="p", status=500, headers={"retry-after-ms": "1"})
        ran = run_script(cell("FINAL(len(parallel_llm_query(['p1', 'p2', 'p3'])))"), faults=(retry,))
        assert ran.result.answer == "3"
        assert len(ran.of(events.SubCallRetried)) == 3
        assert ran.stats.prompts_answered_more_than_once == 0

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            (WrongAnswer.EMPTY, "the answer was empty (3 times)"),
            (WrongAnswer.DECLINED, "the model declined to answer: I cannot help with that. (3 times)"),
        ],
    )
    def test_a_sub_llm_without_words_is_an_error_in_the_cell_and_is_paid_for(self, how, says):
        ran = run_script(
            cell("try: llm_query('s' + 'ilent')\nexcept SubLLMError as exc: FINAL(str(exc))"),
            faults=(Fault(match="silent", answer=how, times=9),),
        )
        assert ran.result.answer.startswith(says)
        assert ran.stats.sub_requests == 3
        assert ran.result.usage["sub"]["input_tokens"] == ran.of(events.SubCallFinished)[0].usage.input_tokens > 0

    def test_several_batches_of_one_cell_share_the_budget(self):
        code = "parallel_llm_query(['a'] * 3)\ntry: parallel_llm_query(['b'] * 3)\nexcept BudgetError: FINAL('refused')"
        ran = run_script(cell(code), config=RunConfig(model="r", recursive_model="s", limits=Limits(max_calls=5)))
        assert (ran.result.answer, ran.stats.sub_requests) == ("refused", 3)


class TestKeys:
    def test_a_refused_key_ends_the_run_at_once_with_a_clear_message(self):
        with pytest.raises(KeyRefusedError, match=r"does not accept the API key.*OPENAI_API_KEY"):
            run_script("FINAL(1)", api_key="another")

    def test_a_key_refused_to_a_worker_ends_the_run_too(self):
        with pytest.raises(KeyRefusedError, match="does not accept the API key"):
            run_script(
                cell("try: llm_query('sub')\nexcept Exception: pass"), faults=(Fault(match="sub", status=401, times=9),)
            )
        assert worker_pids() == []

    def test_no_process_that_runs_cells_holds_the_key(self):
        code = (
            "import os, subprocess\n"
            "seen = subprocess.run('cat /proc/*/environ', shell=True, capture_output=True, errors='replace').stdout\n"
            "FINAL('test-key' in seen + str(dict(os.environ)))"
        )
        assert run_script(cell(code)).result.answer == "false"


class TestChildRuns:
    def test_a_child_has_a_repl_of_its_own_and_its_answer_comes_back(self):
        # Parent and child read the same script: what a reply does depends on the context it finds.
        code = (
            "if context == 'small': FINAL('child saw ' + context)\n"
            "else: FINAL(rlm_query('What do you see?', context='small'))"
        )
        ran = run_script(cell(code), context="large")
        assert ran.result.answer == "child saw small"
        parent, child = ran.of(events.RunStarted)
        assert (child.depth, child.parent_id, child.model) == (1, parent.run_id, "sub")

    def test_past_the_depth_a_child_run_is_a_plain_sub_llm_call(self):
        config = RunConfig(model="root", recursive_model="sub", limits=Limits(max_depth=0))
        ran = run_script(cell("FINAL(rlm_query('q', 'c'))"), config=config, sub_replies=echo)
        assert (ran.result.answer, ran.stats.sub_requests) == ("Q\n\nC", 1)

    def test_a_child_spends_its_parents_budget(self):
        code = (
            "if context == 'small': FINAL(parallel_llm_query(['a', 'b']))\n"
            "else:\n    rlm_query('q', 'small')\n    FINAL(budget()['calls']['left'])"
        )
        config = RunConfig(model="root", recursive_model="sub", limits=Limits(max_calls=5))
        ran = run_script(cell(code), context="large", config=config)
        assert (ran.result.answer, ran.result.sub_calls) == ("2", 3)  # the child's two, and its root LM's reply


class TestUsage:
    def test_every_call_is_counted_by_model(self):
        ran = run_script(cell("FINAL(len(parallel_llm_query(['aaaa', 'bbbb'])))"), sub_replies=lambda _: "cccccccc")
        assert ran.result.usage["root"]["calls"] == 1
        assert ran.result.usage["sub"] == {
            "calls": 2,
            "input_tokens": 2,
            "cached_input_tokens": 0,
            "output_tokens": 4,
        }

    def test_a_price_that_is_not_known_is_unknown_and_not_zero(self):
        assert run_script("FINAL(1)").result.cost_usd is None

    def test_known_prices_make_a_cost(self):
        prices = PriceList({"root": Price(input=0, cached_input=0, output=1e6)})
        ran = run_script("FINAL(1)", prices=prices)
        assert ran.result.cost_usd == ran.result.usage["root"]["output_tokens"]

    def test_a_limit_in_dollars_needs_the_price(self):
        with pytest.raises(InputError, match="price of 'root'"):
            run_script("FINAL(1)", config=RunConfig(model="root", recursive_model="s", limits=Limits(max_usd=1)))

    def test_a_limit_in_dollars_ends_the_run(self):
        price = Price(input=1e6, cached_input=1e6, output=1e6)
        config = RunConfig(model="root", recursive_model="sub", limits=Limits(max_usd=1.0))
        ran = run_script("FINAL(x)", config=config, prices=PriceList({"root": price, "sub": price}))
        assert (ran.result.answer, ran.result.stopped_by) == ("x", "usd")


class TestContexts:
    @pytest.mark.parametrize("context", ['a\r\nb\0 \'q\' """ é', ["a", "b"], {"a": {"b": [1, None]}}, 7])
    def test_a_value_arrives_exactly(self, context):
        ran = run_script(cell("import json; FINAL(json.dumps(context))"), context=context)
        assert json.loads(ran.result.answer) == context

    def test_a_path_is_read(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"no final newline \xff")
        ran = run_script(cell("FINAL(ascii(context))"), context=tmp_path / "a.txt")
        assert ran.result.answer == "'no final newline \\udcff'"

    def test_what_is_no_json_is_refused_before_anything_is_asked(self):
        with pytest.raises(InputError, match="JSON value"):
            run_script("FINAL(1)", context=object())

    def test_an_empty_question_is_refused(self):
        with pytest.raises(InputError, match="question is empty"):
            run_script("FINAL(1)", question=" ")


class TestTheApi:
    def test_completion_is_for_scripts(self):
        with serve_offline(OfflineSettings(script=("FINAL(yes)",))) as server:
            rlm = RLM(CONFIG, provider=Provider(api_key="k", base_url=server.base_url))
            assert rlm.completion(context="c", query="q").answer == "yes"

    def test_runs_may_go_on_at_once_and_share_the_workers(self):
        settings = OfflineSettings(script=(cell("FINAL(parallel_llm_query(['a', context]))"),), sub_replies=echo)
        with serve_offline(settings) as server:

            async def run():
                async with RLM(CONFIG, provider=Provider(api_key="k", base_url=server.base_url)) as rlm:
                    results = await asyncio.gather(*(rlm.run("q", f"c{i}") for i in range(4)))
                    return results, len(worker_pids())

            results, workers = asyncio.run(run())
        assert [result.answer for result in results] == [f'["A", "C{i}"]' for i in range(4)]
        assert workers == 1
        assert len({result.run_id for result in results}) == 4

    def test_a_cancelled_run_leaves_no_process(self):
        hang = Fault(match="hang", hang_s=60, times=99)
        settings = OfflineSettings(script=(cell("parallel_llm_query(['hang'] * 20)"),), faults=(hang,))
        with serve_offline(settings) as server:

            async def run():
                asked = asyncio.Event()

                def tell(event):
                    if isinstance(event, events.SubCallsStarted):
                        asked.set()

                provider = Provider(api_key="k", base_url=server.base_url)
                async with RLM(CONFIG, provider=provider, on_event=tell) as rlm:
                    task = asyncio.create_task(rlm.run("q", "c"))
                    await asked.wait()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task

            asyncio.run(run())
        assert worker_pids() == []

    def test_a_cancelled_run_does_not_wait_for_workers_that_later_runs_would_find(self):
        class Shared(MemoryRegistry):
            outlives_pool = True

        class Slow:
            def __init__(self):
                self.starting = asyncio.Event()

            async def start(self):
                self.starting.set()
                await asyncio.sleep(600)

        async def main():
            launcher = Slow()
            with serve_offline(OfflineSettings(script=(cell("llm_query('a')"),))) as server:
                provider = Provider(api_key="test-key", base_url=server.base_url)
                backend = replace(local_backend(provider), worker_launcher=launcher, registry=Shared())

                async def run():
                    async with RLM(CONFIG, provider=provider, backend=backend) as rlm:
                        await rlm.run("q", "c")

                running = asyncio.create_task(run())
                await launcher.starting.wait()
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running

        asyncio.run(main())
