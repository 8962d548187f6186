"""What cells ask and are answered: each call is settled once, whatever becomes of its batch."""

from __future__ import annotations

import asyncio
import json

import pytest

from rlm import Limits, RunConfig, events
from rlm.budget import Budget
from rlm.calls import CallAnswerer
from rlm.errors import (
    KeyRefusedError,
    LimitReachedError,
    PoolBrokenError,
    ProviderError,
    ReplBrokenError,
    SubLLMError,
    UnknownModelError,
)
from rlm.repl.frames import BudgetCall, ChildQuestion, LLMCall, RLMCall
from rlm.state import RunState
from rlm.usage import PriceList, TokenUsage
from rlm.workers.base import Answer, ProviderFailure
from tests.pool_support import answered, pool_in_process
from tests.workers.support import until

CONFIG = RunConfig(model="root", recursive_model="sub", sub_llm_chars=1_000)
PAID = TokenUsage(input_tokens=3, output_tokens=1)


def llm(*texts, model=None, cell=1):
    return LLMCall("llm", 1, cell, list(texts), model)


def rlm(*prompts, context="", cell=1):
    items = [ChildQuestion(prompt=prompt, context=context, is_json=False) for prompt in prompts]
    return RLMCall("rlm", 1, cell, items)


async def shouted(text):
    return answered(text.upper())


class Asked:
    """A run's answerer over a pool in this process, and what it did."""

    def __init__(self, pool, *, limits=None, ask_child=None, emit=None):
        self.events = []
        self.state = RunState(run_id="run", max_iterations=5, iteration=1)
        self.budget = Budget(limits or Limits(), PriceList())
        self.answer = CallAnswerer(
            self.state, CONFIG, pool, self.budget, emit or self.events.append, ask_child=ask_child
        )

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def ask(call, *, answers=shouted, **options):
    async def run():
        async with pool_in_process(answers) as pool:
            asked = Asked(pool, **options)
            return await asked.answer(call), asked

    return asyncio.run(run())


class TestSubLLMs:
    def test_answers_come_in_the_order_of_the_prompts(self):
        outcomes, asked = ask(llm("a", "b", "c"))
        assert outcomes == [{"text": "A"}, {"text": "B"}, {"text": "C"}]
        assert (asked.budget.sub_calls, asked.budget.total.total_tokens) == (3, 12)

    def test_a_cut_answer_says_so(self):
        async def cut(text):
            return Answer(text, PAID, cut=True)

        outcomes, asked = ask(llm("a"), answers=cut)
        assert outcomes == [{"text": "a", "cut": True}]
        assert asked.of(events.SubCallFinished)[0].cut

    def test_a_failure_tells_its_place_and_its_tries(self):
        async def picky(text):
            return ProviderFailure("refused", "no\x1b" * 5_000, None) if text == "bad" else answered(text)

        outcomes, asked = ask(llm("a", "bad", "c"), answers=picky)
        assert (outcomes[0], outcomes[2]) == ({"text": "a"}, {"text": "c"})
        assert (outcomes[1]["index"], outcomes[1]["attempts"]) == (1, 1)
        assert len(outcomes[1]["error"]) <= 2_000
        assert asked.budget.account()["tokens"]["spent"] == 8

    def test_calls_know_their_cell_and_iteration(self):
        async def run():
            async with pool_in_process(shouted) as pool:
                asked = Asked(pool)
                asked.state.begin_cell()
                asked.state.iteration = 2
                asked.state.begin_cell()
                await asked.answer(llm("late", cell=1))
                await asked.answer(llm("now", cell=2))
                await asked.answer(llm("forged", cell=99))
                return asked

        asked = asyncio.run(run())
        started, finished = asked.of(events.SubCallsStarted), asked.of(events.SubCallFinished)
        assert [(event.iteration, event.cell) for event in started] == [(1, 1), (2, 2), (2, 99)]
        assert [(event.iteration, event.cell) for event in finished] == [(1, 1), (2, 2), (2, 99)]

    def test_a_name_of_a_megabyte_is_told_in_a_short_message(self):
        outcomes, asked = ask(llm(*[""] * 1_500, model="A" * 1_000_000))
        assert len(outcomes) == 1_500
        assert len(json.dumps(outcomes)) < 500_000
        assert outcomes[0]["error"].startswith("no model 'AAA")
        assert outcomes[0]["error"].endswith("use one of sub, root")
        assert asked.events == []

    def test_a_prompt_longer_than_a_sub_llm_takes_is_refused_here_too(self):
        outcomes, asked = ask(llm("short", "x" * 1_001))
        assert "a prompt of 1,001 characters is longer than the 1,000" in outcomes[0]["error"]
        assert asked.budget.sub_calls == 0
        outcomes, _ = ask(rlm("short", context="x" * 1_001))
        assert "a prompt of 1,008 characters" in outcomes[0]["error"]

    def test_a_batch_over_a_limit_says_what_was_asked_for_and_what_is_left(self):
        outcomes, asked = ask(llm(*"abcde"), limits=Limits(max_calls=4))
        assert {outcome["error"] for outcome in outcomes} == {"5 calls asked for, 4 left of the run's limit of 4 calls"}
        assert all(outcome["budget"] for outcome in outcomes)
        assert asked.events == []


class TestWhatWasPaid:
    """Answers that came are counted and told, also when their batch ends in an error or is cancelled."""

    def test_when_the_key_is_refused_in_mid_batch(self):
        async def refusing(text):
            if text == "last":
                return ProviderFailure("key_refused", "revoked", None)
            return answered(text)

        async def run():
            async with pool_in_process(refusing) as pool:
                asked = Asked(pool, limits=Limits(max_tokens=10_000))
                with pytest.raises(KeyRefusedError):
                    await asked.answer(llm(*"abcdefgh", "last"))
                return asked

        asked = asyncio.run(run())
        assert len(asked.of(events.SubCallFinished)) == 8
        assert asked.budget.total.total_tokens == 8 * 4
        assert asked.of(events.Spent)[-1].tokens.total_tokens == 8 * 4
        assert asked.budget.left()["tokens"] == 10_000 - 32

    def test_when_the_call_is_cancelled_at_any_point(self):
        async def run(turns):
            given = 0

            async def slow(text):
                nonlocal given
                for _ in range(int(text)):
                    await asyncio.sleep(0)
                given += 1
                return answered(text)

            async with pool_in_process(slow) as pool:
                asked = Asked(pool, limits=Limits(max_tokens=10_000))
                task = asyncio.create_task(asked.answer(llm(*map(str, range(40)))))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                finished = len(asked.of(events.SubCallFinished))
                assert finished == given
                assert asked.budget.total.total_tokens == 4 * given
                assert asked.budget.left()["tokens"] == 10_000 - 4 * given
                return finished

        found = {asyncio.run(run(turns)) for turns in range(0, 80, 3)}
        assert len(found) > 5

    def test_calls_that_were_never_begun_are_not_counted(self):
        async def run():
            hang = asyncio.Event()

            async def hanging(text):
                await hang.wait()
                return answered(text)

            async with pool_in_process(hanging) as pool:
                asked = Asked(pool, limits=Limits(max_calls=1_000))
                task = asyncio.create_task(asked.answer(llm(*["x"] * 1_000)))
                await until(lambda: pool.stats().in_flight)
                task.cancel()
                await asyncio.wait([task])
                return asked.budget.sub_calls

        assert 64 <= asyncio.run(run()) < 1_000

    def test_a_listener_that_raises_settles_nothing_twice(self):
        def failing(event):
            if isinstance(event, events.SubCallFinished):
                raise OSError("the pipe is broken")

        async def run():
            async with pool_in_process(shouted) as pool:
                asked = Asked(pool, limits=Limits(max_tokens=10_000), emit=failing)
                await asyncio.wait([asyncio.ensure_future(asked.answer(llm(*"abc")))])
                return asked.budget

        budget = asyncio.run(run())
        assert budget.total.total_tokens <= 12
        assert budget.left()["tokens"] == 10_000 - budget.total.total_tokens


class TestChildren:
    @pytest.mark.parametrize(
        "error",
        [
            SubLLMError("no answer"),
            ProviderError("down"),
            ReplBrokenError("no REPL"),
            LimitReachedError("usd", used=1, limit=1),
        ],
    )
    def test_what_goes_wrong_with_one_is_an_error_of_its_call(self, error):
        async def child(question, _cell):
            if question.prompt == "bad":
                raise error
            return question.prompt.upper()

        outcomes, _ = ask(rlm("a", "bad", "c"), ask_child=child)
        assert (outcomes[0], outcomes[2]) == ({"text": "A"}, {"text": "C"})
        assert outcomes[1]["error"] == str(error)
        assert outcomes[1]["index"] == 1
        assert ("budget" in outcomes[1]) is isinstance(error, LimitReachedError)

    @pytest.mark.parametrize("error", [KeyRefusedError("key"), UnknownModelError("model"), PoolBrokenError("workers")])
    def test_what_no_other_call_would_escape_ends_the_run(self, error):
        async def child(question, _cell):
            if question.prompt == "bad":
                raise error
            await asyncio.Event().wait()

        with pytest.raises(type(error)):
            ask(rlm("a", "bad"), ask_child=child)

    def test_many_are_taken_in_turn(self):
        going = peak = 0

        async def child(question, _cell):
            nonlocal going, peak
            going += 1
            peak = max(peak, going)
            await asyncio.sleep(0)
            going -= 1
            return question.prompt

        outcomes, _ = ask(rlm(*map(str, range(1_000))), ask_child=child)
        assert [outcome["text"] for outcome in outcomes] == [str(number) for number in range(1_000)]
        assert peak == CONFIG.max_children

    def test_a_question_longer_than_a_model_takes_is_refused(self):
        async def child(_question, _cell):
            raise AssertionError("it must not start")

        outcomes, _ = ask(rlm("x" * 1_001, context="y" * 5_000), ask_child=child)
        assert "a prompt of 1,001 characters" in outcomes[0]["error"]


def test_a_budget_tells_what_was_spent_also_without_limits():
    async def run():
        async with pool_in_process(shouted) as pool:
            asked = Asked(pool, limits=Limits(max_calls=7))
            await asked.answer(llm("a", "b"))
            (account,) = await asked.answer(BudgetCall("budget", 2, 1))
            return account

    account = asyncio.run(run())
    assert account["calls"] == {"spent": 2, "left": 5}
    assert account["tokens"] == {"spent": 8, "left": None}
    assert account["replies"] == {"spent": 1, "left": 4}
    assert account["seconds"]["left"] is None
