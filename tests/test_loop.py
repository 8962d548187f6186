"""The loop, with a root LM whose replies are given, a real REPL and a real provider on loopback."""

from __future__ import annotations

import pytest

from rlm import Limits, ReplLimits, RunConfig, events
from rlm.errors import ProviderError, UnknownModelError
from rlm.offline.server import Fault, WrongAnswer
from tests.conftest import TWO_LINES, cell, run_script


def config(**options):
    return RunConfig(model="root", recursive_model="sub", **options)


def outputs(ran):
    return [event.result.stdout for event in ran.of(events.CellFinished) if event.result]


class TestAnswers:
    @pytest.mark.parametrize(
        ("code", "answer"),
        [
            ("FINAL('42')", "42"),
            ("x = 'forty-two'\nFINAL_VAR('x')", "forty-two"),
            ("x = 'forty-two'\nFINAL_VAR(x)", "forty-two"),
            ("answer['content'] = 42\nanswer['ready'] = True", "42"),
            ("answer = {'content': '', 'ready': True}", ""),
            ("FINAL({'a': 1})", '{"a": 1}'),
        ],
    )
    def test_a_final_in_a_cell_ends_the_run(self, code, answer):
        ran = run_script(cell(code), cell("FINAL('never asked')"))
        assert (ran.result.answer, ran.result.stopped_by, ran.result.iterations) == (answer, "answer", 1)
        assert ran.stats.root_requests == 1

    @pytest.mark.parametrize("text", ["FINAL(42)", "I know it now.\n\nFINAL(42)", 'FINAL("42")'])
    def test_a_final_in_text_ends_the_run(self, text):
        assert run_script(text).result.answer == "42"

    def test_a_final_of_several_lines_keeps_them(self):
        assert run_script("FINAL(one (1)\ntwo)").result.answer == "one (1)\ntwo"

    def test_a_mention_of_final_in_prose_does_not_end_the_run(self):
        ran = run_script("I will later call FINAL(x) with it.", "FINAL(42)")
        assert (ran.result.answer, ran.result.iterations) == ("42", 2)

    def test_a_variable_named_in_text_is_looked_up_after_the_cells_of_the_reply_have_run(self):
        ran = run_script(cell("found = context.split()[-1]") + "\nFINAL_VAR(found)")
        assert (ran.result.answer, ran.result.iterations) == ("42", 1)

    def test_a_value_in_text_beside_cells_was_invented_and_does_not_count(self):
        ran = run_script(cell("print(context)") + "\nFINAL(invented)", "FINAL(42)")
        assert (ran.result.answer, ran.result.iterations) == ("42", 2)

    def test_a_variable_that_does_not_exist_is_told_to_the_root_lm(self):
        ran = run_script("FINAL_VAR(nothing)", "FINAL(42)")
        assert ran.result.answer == "42"
        assert "there is no variable 'nothing'" in ran.of(events.CellFinished)[0].result.error

    def test_later_cells_of_a_reply_do_not_run_after_a_final(self):
        ran = run_script(cell("FINAL('first')") + cell("FINAL('second')"))
        assert ran.result.answer == "first"
        assert len(ran.of(events.CellStarted)) == 1

    def test_later_cells_of_a_reply_do_not_run_after_an_error(self):
        ran = run_script(cell("kept = 1\n1/0") + cell("print('not reached')"), cell("FINAL(kept)"))
        assert ran.result.answer == "1"
        assert len(ran.of(events.CellStarted)) == 2

    def test_a_reply_with_neither_cell_nor_final_is_nudged_and_the_run_goes_on(self):
        ran = run_script("Let me think about it.", "FINAL(42)")
        assert (ran.result.answer, ran.result.iterations) == ("42", 2)

    def test_an_empty_reply_does_not_end_the_run(self):
        ran = run_script("FINAL(42)", faults=(fault(answer=WrongAnswer.EMPTY),))
        assert (ran.result.answer, ran.result.iterations) == ("42", 1)


class TestTheRepl:
    def test_names_persist_from_reply_to_reply(self):
        ran = run_script(cell("n = len(context)"), cell("print(n)\nFINAL(n)"))
        assert ran.result.answer == str(len(TWO_LINES))

    def test_a_repl_that_dies_is_told_and_replaced_with_the_context_reloaded(self):
        ran = run_script(cell("x = 1\nimport os; os._exit(7)"), cell("print('x' in globals()); FINAL(len(context))"))
        assert ran.result.answer == str(len(TWO_LINES))
        assert "exit status 7" in ran.of(events.CellFinished)[0].error
        assert outputs(ran) == ["False\n"]

    def test_an_endless_cell_is_interrupted_with_its_state_kept(self):
        ran = run_script(
            cell("x = 'kept'\nwhile True: pass"), cell("FINAL(x)"), config=config(repl=ReplLimits(cell_timeout_s=0.5))
        )
        assert ran.result.answer == "kept"
        assert "longer than 0.5 s" in ran.of(events.CellFinished)[0].result.error

    def test_nothing_is_started_for_sub_llms_before_they_are_asked(self):
        ran = run_script(cell("print(1)"), "FINAL(1)")
        assert (ran.stats.sub_requests, ran.result.sub_calls) == (0, 0)


class TestLimits:
    def test_at_the_last_iteration_there_is_one_more_request_for_an_answer(self):
        ran = run_script(cell("print(1)"), cell("print(2)"), "FINAL(best guess)", config=config(max_iterations=2))
        assert (ran.result.answer, ran.result.stopped_by, ran.result.iterations) == ("best guess", "iterations", 2)
        assert ran.stats.root_requests == 3

    def test_the_last_word_may_be_plain_text(self):
        ran = run_script(cell("print(1)"), "I think it is 42.", config=config(max_iterations=1))
        assert ran.result.answer == "I think it is 42."

    def test_the_last_word_may_name_a_variable(self):
        ran = run_script(cell("x = 42"), "FINAL_VAR(x)", config=config(max_iterations=1))
        assert ran.result.answer == "42"

    def test_the_last_word_may_be_a_cell(self):
        ran = run_script(cell("x = 42"), cell("FINAL(x)"), config=config(max_iterations=1))
        assert ran.result.answer == "42"

    def test_no_last_word_is_no_answer(self):
        ran = run_script(cell("print(1)"), "", config=config(max_iterations=1))
        assert (ran.result.answer, ran.result.stopped_by) == (None, "iterations")

    def test_used_up_tokens_end_the_run_with_a_last_request(self):
        limited = config(limits=Limits(max_tokens=10))
        ran = run_script(cell("print(1)"), "FINAL(early)", config=limited)
        assert (ran.result.answer, ran.result.stopped_by, ran.stats.root_requests) == ("early", "tokens", 2)

    def test_a_batch_beyond_the_limit_is_refused_in_the_cell_and_nothing_of_it_is_asked(self):
        code = "try: parallel_llm_query(['a'] * 5)\nexcept BudgetError as exc: FINAL(f'refused: {exc}')"
        ran = run_script(cell(code), config=config(limits=Limits(max_calls=4)))
        assert ran.result.answer.startswith("refused: the run's limit of 4 calls is used up (0 used); 5 call(s)")
        assert ran.stats.sub_requests == 0

    def test_used_up_calls_end_the_run_with_a_last_request(self):
        ran = run_script(cell("llm_query('a')"), "FINAL(early)", config=config(limits=Limits(max_calls=1)))
        assert (ran.result.answer, ran.result.stopped_by, ran.result.iterations) == ("early", "calls", 1)

    def test_time_that_is_up_cuts_a_cell_short(self):
        limited = config(limits=Limits(timeout_s=1.5))
        ran = run_script(cell("import time; time.sleep(60)"), "FINAL(early)", config=limited)
        assert (ran.result.answer, ran.result.stopped_by) == ("early", "time")
        assert ran.result.elapsed_s < 10

    def test_a_budget_can_be_asked_for_in_a_cell(self):
        ran = run_script(cell("FINAL(budget())"), config=config(limits=Limits(max_calls=7)))
        assert ran.result.answer == '{"calls": 7, "tokens": null, "usd": null, "seconds": null}'


class TestFailures:
    def test_messages_too_long_for_the_model_are_shortened_and_the_run_goes_on(self):
        ran = run_script(cell("print('x' * 9_000)"), cell("FINAL('still here')"), window_tokens=2_000)
        assert ran.result.answer == "still here"
        assert ran.stats.errors[400] >= 1

    def test_a_window_too_short_for_the_prompt_itself_ends_the_run_in_order(self):
        ran = run_script("FINAL(1)", window_tokens=100)
        assert (ran.result.answer, ran.result.stopped_by) == (None, "context_window")

    def test_an_unknown_root_model_is_raised_with_the_providers_words(self):
        with pytest.raises(UnknownModelError, match=r"has no model 'root'.*--model"):
            run_script("FINAL(1)", models=("other",))

    def test_a_provider_that_fails_for_good_is_raised(self):
        with pytest.raises(ProviderError, match="gave no answer"):
            run_script("FINAL(1)", faults=(fault(status=400),))

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            (WrongAnswer.EMPTY, "the answer was empty (3 times)"),
            (WrongAnswer.DECLINED, "the model declined to answer: I cannot help with that. (3 times)"),
        ],
    )
    def test_a_sub_llm_without_words_is_an_error_in_the_cell(self, how, says):
        ran = run_script(
            cell("try: llm_query('s' + 'ilent')\nexcept SubLLMError as exc: FINAL(str(exc))"),
            faults=(fault(match="silent", answer=how, times=9),),
        )
        assert ran.result.answer == says
        assert ran.stats.sub_requests == 3

    def test_passing_faults_of_the_provider_are_retried(self):
        ran = run_script("FINAL(1)", faults=(fault(status=500, headers={"retry-after-ms": "10"}),))
        assert (ran.result.answer, ran.stats.errors[500]) == ("1", 1)


def fault(**options):
    return Fault(**options)
