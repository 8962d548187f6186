"""The loop: which reply ends a run and which goes on, what is told, and what limits do."""

from __future__ import annotations

import json

import pytest

from rlm import Limits, events
from rlm.errors import ContextWindowError, ProviderError, ReplBrokenError
from rlm.prompts import Prompts
from rlm.usage import Price, PriceList, TokenUsage
from tests.conftest import cell
from tests.loop_support import ExecRepl, cut, run_loop

PROMPTS = Prompts()


class TestFinalsInCells:
    @pytest.mark.parametrize(
        ("code", "answer"),
        [("FINAL('42')", "42"), ("x = 'forty-two'\nFINAL_VAR('x')", "forty-two"), ("FINAL({'a': 1})", '{"a": 1}')],
    )
    def test_a_final_in_a_cell_ends_the_run(self, code, answer):
        ran = run_loop(cell(code))
        assert (ran.text, ran.ending.stopped_by, ran.ending.iterations) == (answer, "answer", 1)

    def test_later_cells_of_a_reply_do_not_run_after_a_final(self):
        ran = run_loop(cell("FINAL('first')") + cell("FINAL('second')"))
        assert ran.text == "first"
        assert len(ran.of(events.CellStarted)) == 1

    def test_later_cells_of_a_reply_do_not_run_after_an_error(self):
        ran = run_loop(cell("kept = 1\n1/0") + cell("print('not reached')"), cell("FINAL(kept)"))
        assert ran.text == "1"
        assert len(ran.of(events.CellStarted)) == 2
        assert "ZeroDivisionError" in ran.told[0]
        assert "The 1 later cell(s)" in ran.told[0]

    def test_names_persist_from_reply_to_reply(self):
        assert run_loop(cell("n = len(context)"), cell("FINAL(n)")).text == "6"

    def test_a_repl_that_dies_is_told_and_the_run_goes_on_in_a_fresh_one(self):
        ran = run_loop(cell("x = 1\ndie()"), cell("FINAL('x' in globals())"))
        assert ran.text == "false"
        assert "exit status 7" in ran.of(events.CellFinished)[0].error
        assert "`context` is loaded again" in ran.told[0]


class TestFinalsInText:
    @pytest.mark.parametrize(
        ("reply", "value"),
        [
            ("FINAL(table)", [[1, 2], [3, 4]]),
            ("FINAL(table[0])", [1, 2]),
            ('FINAL(f"There are {len(table)} rows")', "There are 2 rows"),
            ("FINAL_VAR(table)", [[1, 2], [3, 4]]),
            ("FINAL(42)", 42),
            ('FINAL("table")', "table"),
            ("FINAL(the table)", "the table"),
            ("FINAL(unknown)", "unknown"),
            ("I know it now.\n\nFINAL(one (1)\ntwo)", "one (1)\ntwo"),
        ],
    )
    def test_what_stands_for_a_value_is_evaluated_and_words_stay_words(self, reply, value):
        ran = run_loop(cell("table = [[1, 2], [3, 4]]"), reply)
        assert ran.ending.answer.value == value
        assert ran.ending.stopped_by == "answer"

    def test_an_evaluation_that_raises_is_told_as_a_cells_error_is(self):
        ran = run_loop(cell("rows = []"), "FINAL(rows[0])", "FINAL(none)")
        assert ran.text == "none"
        assert "IndexError" in ran.told[1]
        assert ran.told[1].endswith(PROMPTS("after_error"))

    def test_a_variable_that_does_not_exist_is_told(self):
        ran = run_loop("FINAL_VAR(nothing)", "FINAL(42)")
        assert ran.text == "42"
        assert "there is no variable 'nothing'" in ran.told[0]

    @pytest.mark.parametrize("final", ["FINAL(invented)", "FINAL(42)", "FINAL('x')", "FINAL({'a': 1})"])
    def test_what_was_written_before_its_cells_had_run_does_not_count(self, final):
        ran = run_loop(cell("print(context)") + final, "FINAL(seen)")
        assert (ran.text, ran.ending.iterations) == ("seen", 2)
        assert ran.told[0].endswith(PROMPTS("early_final"))

    @pytest.mark.parametrize("final", ["FINAL(n)", "FINAL_VAR(n)", 'FINAL(f"{n}")'])
    def test_what_the_cells_beside_it_have_made_counts(self, final):
        ran = run_loop(cell("n = context.split()[-1]") + "\n" + final)
        assert (ran.text, ran.ending.iterations) == ("42", 1)

    def test_a_mention_in_prose_does_not_end_the_run(self):
        ran = run_loop("I will later call FINAL(x) with it.", "FINAL(42)")
        assert (ran.text, ran.ending.iterations) == ("42", 2)

    @pytest.mark.parametrize(
        ("reply", "told"), [("Let me think.", "no_code"), ("", "no_code"), ("FINAL(4", "unclosed_final")]
    )
    def test_a_reply_that_asks_for_nothing_is_told_what_to_do(self, reply, told):
        ran = run_loop(reply, "FINAL(42)")
        assert ran.text == "42"
        assert ran.told[0].endswith(PROMPTS(told))


class TestCutReplies:
    def test_half_a_cell_does_not_run_and_the_root_lm_is_told(self):
        ran = run_loop(cut("```python\nprint('half"), "FINAL(42)")
        assert ran.of(events.CellStarted)[0].code == "FINAL(42)"
        assert ran.told[0].endswith(PROMPTS("cut"))
        assert ran.of(events.RootReplied)[0].cut

    def test_cells_that_were_whole_run_and_their_output_is_told(self):
        ran = run_loop(cut(cell("print('whole')") + "```python\nprint('half')"), cell("FINAL('done')"))
        assert [event.code for event in ran.of(events.CellStarted)] == ["print('whole')", "FINAL('done')"]
        assert "whole" in ran.told[0]
        assert ran.told[0].endswith(PROMPTS("cut"))

    @pytest.mark.parametrize("text", ["FINAL(there are", "FINAL('''a\n```python\nx", "The answer is FINAL(4"])
    def test_half_an_answer_is_none(self, text):
        ran = run_loop(cut(text), "FINAL(42)")
        assert (ran.text, ran.ending.iterations) == ("42", 2)

    @pytest.mark.parametrize("text", ["FINAL(there are", "There are about for", "```python\nFINAL('x"])
    def test_half_an_answer_to_the_last_request_is_none(self, text):
        ran = run_loop(cell("x = 1"), cut(text), max_iterations=1)
        assert (ran.ending.answer, ran.ending.prose) == (None, None)

    def test_the_same_reply_uncut_runs_its_unclosed_cell(self):
        assert run_loop("```python\nFINAL(1)").text == "1"


class TestTheLastRequest:
    @pytest.mark.parametrize(
        ("reply", "answer"),
        [
            ("FINAL(best guess)", "best guess"),
            ("FINAL(x)", "41"),
            ("FINAL_VAR(x)", "41"),
            (cell("FINAL(x + 1)"), "42"),
            (cell("x += 1") + "\nFINAL(x)", "42"),
            (cell("print(x)") + "\nFINAL(my guess)", "my guess"),
        ],
    )
    def test_there_is_one_more_request_for_an_answer(self, reply, answer):
        ran = run_loop(cell("x = 41"), reply, max_iterations=1)
        assert (ran.text, ran.ending.stopped_by, ran.ending.iterations) == (answer, "iterations", 1)
        assert "the run ends here (all 1 replies are used)" in ran.told[0]

    def test_plain_text_is_given_apart_from_an_answer(self):
        ran = run_loop(cell("print(1)"), "I think it is 42.", max_iterations=1)
        assert (ran.ending.answer, ran.ending.prose) == (None, "I think it is 42.")

    def test_an_expression_that_fails_is_no_answer(self):
        ran = run_loop(cell("rows = []"), "FINAL(rows[0])", max_iterations=1)
        assert (ran.ending.answer, ran.ending.prose) == (None, None)

    def test_the_words_count_where_there_is_no_repl_any_more(self):
        class Gone(ExecRepl):
            async def final(self, text):
                raise ReplBrokenError("there is none")

        assert (
            run_loop(cell("x = 1"), "FINAL(the words)", max_iterations=1, make_repl=lambda _: Gone()).text
            == "the words"
        )

    def test_no_repl_is_started_for_words(self):
        class Counting(ExecRepl):
            asked = 0

            async def final(self, text):
                self.asked += 1
                return await super().final(text)

        repl = Counting()
        ran = run_loop(cell("x = 1\ndie()"), "FINAL(the words)", max_iterations=1, make_repl=lambda _: repl)
        assert (ran.text, repl.asked) == ("the words", 0)

    def test_no_reply_is_no_answer(self):
        ran = run_loop(cell("print(1)"), "", max_iterations=1)
        assert (ran.ending.answer, ran.ending.prose, ran.ending.stopped_by) == (None, None, "iterations")

    def test_what_has_not_been_told_yet_is_told_with_it(self):
        code = "print('seen before the end')\nimport asyncio\nawait asyncio.sleep(60)"
        ran = run_loop(cell("print('seen')") + cell(code), "FINAL(early)", limits=Limits(timeout_s=0.5))
        assert (ran.text, ran.ending.stopped_by) == ("early", "time")
        assert "Output of cell 1:\nseen" in ran.told[0]


class TestLimits:
    def test_tokens_that_are_used_up_end_the_run_with_a_last_request(self):
        used = TokenUsage(output_tokens=200)
        ran = run_loop(cell("print(1)"), "FINAL(early)", limits=Limits(max_tokens=100), usage=used)
        assert (ran.text, ran.ending.stopped_by, len(ran.root.sent)) == ("early", "tokens", 2)

    def test_a_request_that_would_cost_more_than_what_is_left_is_not_made(self):
        prices = PriceList({"root": Price(input=1e6, cached_input=1e6, output=1e6)})
        long = "x" * 400
        ran = run_loop(
            cell(f"print({long!r})"), "FINAL(early)", limits=Limits(max_usd=100), prices=prices, usage=TokenUsage()
        )
        assert (ran.text, ran.ending.stopped_by, len(ran.root.sent)) == ("early", "usd", 2)
        assert "$100.0000" in ran.told[0]
        assert long in ran.told[0]

    def test_a_child_whose_parent_can_pay_no_reply_makes_no_request(self):
        ran = run_loop("never asked", limits=Limits(max_calls=0), is_child=True)
        assert (ran.ending.answer, ran.ending.stopped_by, ran.root.sent) == (None, "calls", [])

    def test_replies_of_a_child_are_calls_and_the_last_request_is_no_exception(self):
        ran = run_loop(*[cell("print(1)")] * 5, limits=Limits(max_calls=3), is_child=True)
        assert (len(ran.root.sent), ran.budget.sub_calls, ran.ending.stopped_by) == (3, 3, "calls")

    def test_replies_of_the_top_run_are_no_calls(self):
        ran = run_loop(cell("print(1)"), "FINAL(1)", limits=Limits(max_calls=1))
        assert (ran.text, ran.budget.sub_calls) == ("1", 0)

    def test_a_slow_root_lm_is_cut_short_and_so_is_its_last_request(self):
        ran = run_loop("FINAL(late)", "FINAL(later)", limits=Limits(timeout_s=0.5), latency_s=60)
        assert (ran.ending.answer, ran.ending.stopped_by, len(ran.root.sent)) == (None, "time", 2)
        assert ran.budget.account()["seconds"]["spent"] < 20

    def test_a_fast_root_lm_answers_the_last_request_in_its_share(self):
        code = "import asyncio\nawait asyncio.sleep(60)"
        ran = run_loop(cell(code), "FINAL(early)", limits=Limits(timeout_s=2.5))
        assert (ran.text, ran.ending.stopped_by) == ("early", "time")


class TestFailures:
    def test_messages_too_long_for_the_model_are_shortened_and_the_run_goes_on(self):
        too_long = ContextWindowError("too long")
        ran = run_loop(cell("print('x' * 9_000)"), too_long, too_long, cell("FINAL('still here')"))
        assert ran.text == "still here"
        sizes = [len(message) for message in ran.told]
        assert sizes[0] > 9_000 > sizes[1] > sizes[2]
        shortened = ran.of(events.MessagesShortened)
        assert [event.keep_chars for event in shortened] == [sizes[0] // 2, sizes[0] // 4]

    def test_a_window_too_short_for_the_prompt_itself_ends_the_run_in_order(self):
        ran = run_loop(*[ContextWindowError("too long")] * 9)
        assert (ran.ending.answer, ran.ending.stopped_by) == (None, "context_window")

    def test_what_the_provider_refuses_for_good_is_raised(self):
        with pytest.raises(ProviderError, match="gave no answer"):
            run_loop(ProviderError("gave no answer"))


class TestEvents:
    def test_each_message_is_said_once_and_what_was_sent_can_be_made_of_them(self):
        ran = run_loop(cell("print(1)"), "Hm.", cell("1/0"), "FINAL(2)")
        log = [event for event in ran.events if isinstance(event, events.MessageSent | events.RootReplied)]
        messages = []
        for event in log:
            role, text = (
                ("assistant", event.text) if isinstance(event, events.RootReplied) else (event.role, event.content)
            )
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n\n{text}"
            else:
                messages.append({"role": role, "content": text})
        assert messages[:-1] == ran.root.sent[-1]
        assert len([event for event in log if isinstance(event, events.MessageSent)]) == 2 + 3

    def test_what_was_spent_is_told_after_every_reply(self):
        ran = run_loop(cell("print(1)"), "FINAL(2)", usage=TokenUsage(input_tokens=3, output_tokens=1))
        assert [event.tokens.total_tokens for event in ran.of(events.Spent)] == [4, 8]

    def test_cells_are_numbered_through_the_run(self):
        ran = run_loop(cell("1") + cell("2"), cell("3") + "\nFINAL_VAR(context)")
        started = ran.of(events.CellStarted)
        assert [(event.iteration, event.cell) for event in started] == [(1, 1), (1, 2), (2, 3), (2, 4)]
        assert [event.cell for event in ran.of(events.CellFinished)] == [1, 2, 3, 4]

    def test_a_cell_tells_what_was_spent_while_it_ran(self):
        price = Price(input=1e6, cached_input=1e6, output=1e6)
        prices = PriceList({"root": price, "sub": price})

        class Spending(ExecRepl):
            async def run(self, code):
                with self._given["budget"].reserve("sub", [4, 4]) as paid:
                    for index in range(2):
                        paid.begin(index)
                        paid.settle(index, TokenUsage(input_tokens=10, output_tokens=1))
                return await super().run(code)

        ran = run_loop(cell("print(1)"), "FINAL(1)", prices=prices, make_repl=lambda budget: Spending(budget=budget))
        cost = ran.of(events.CellFinished)[0].cost
        assert (cost.calls, cost.tokens, cost.usd) == (2, 22, 22.0)
        assert "2 calls, 22 tokens, $22.0000]" in ran.told[0]


def test_the_events_of_a_loop_are_json():
    ran = run_loop(cell("print(1)"), cell("FINAL([1, {'a': None}])"))
    for event in ran.events:
        assert json.loads(json.dumps(events.as_json(event), allow_nan=False))
