"""What the root LM is told between its replies."""

from __future__ import annotations

import itertools

import pytest

from rlm import feedback
from rlm.events import CellCost, CellOutput, LateOutput
from rlm.prompts import Prompts
from rlm.usage import Price, PriceList
from tests.conftest import cell
from tests.loop_support import ExecRepl, run_loop


def result(**given):
    empty = {"stdout": "", "stderr": "", "value": "", "error": None, "final": None, "late": []}
    return CellOutput(**(empty | given))


def reported(number, **given):
    """What is told of a cell, but for the line on what it took."""
    text, took = feedback.cell_report(number, result(**given), CellCost(seconds=1.25)).rsplit("\n", 1)
    assert took == f"[cell {number}: 1.2 s]"
    return text


class TestCellReports:
    def test_every_stream_is_told_apart(self):
        report = reported(2, stdout="out\n", stderr="err\n", value="42", error="ValueError: no")
        assert report == "Output of cell 2:\nout\n[stderr]\nerr\n[value] 42\nValueError: no"

    def test_a_value_alone_is_shown_as_a_notebook_shows_it(self):
        assert reported(1, value="42") == "Output of cell 1:\n42"

    def test_late_output_is_marked_with_the_cell_it_is_of(self):
        late = [LateOutput(cell=3, stdout="tick\n", stderr="oops\n")]
        report = reported(1, stdout="now\n", late=late)
        assert report == ("Output of cell 1:\n[printed by what cell 3 of this REPL left running]\ntick\noops\nnow")

    def test_a_cell_that_shows_nothing_is_told_how_to(self):
        assert "use print" in reported(1)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("re", "`import re`"), ("final", "`FINAL`"), ("Final_var", "`FINAL_VAR`"), ("python", "three backquotes")],
    )
    def test_a_name_that_is_not_known_is_put_right_where_that_can_be_told(self, name, hint):
        error = f"Traceback ...\nNameError: name '{name}' is not defined"
        assert hint in reported(1, error=error)

    @pytest.mark.parametrize("error", ["NameError: name 'found' is not defined", "KeyError: 're'"])
    def test_other_errors_stand_alone(self, error):
        assert reported(1, error=error) == f"Output of cell 1:\n{error}"

    def test_braces_and_indentation_of_an_output_are_kept(self):
        assert reported(1, stdout="  {a}\n\n  {b}\n") == "Output of cell 1:\n  {a}\n\n  {b}"

    def test_the_death_of_the_repl_tells_how_and_what_is_left(self):
        report = feedback.death_report(1, "killed by signal 9")
        assert "killed by signal 9" in report
        assert "`context` is loaded again" in report


class TestCostLine:
    def test_what_sub_llms_took_is_told_with_the_time(self):
        cost = CellCost(seconds=3.21, calls=12, tokens=4310, usd=0.002)
        assert feedback.cost_line(1, cost) == "[cell 1: 3.2 s, 12 calls, 4,310 tokens, $0.0020]"

    def test_the_variables_that_a_cell_has_made_are_told(self):
        made = ["rows: list of 120", "total: int"]
        assert (
            feedback.cost_line(2, CellCost(seconds=0.1), made) == "[cell 2: 0.1 s; new: rows: list of 120, total: int]"
        )

    def test_a_cost_that_is_not_known_is_left_out(self):
        assert feedback.cost_line(1, CellCost(seconds=3.21, calls=1, tokens=10)) == "[cell 1: 3.2 s, 1 call, 10 tokens]"


class TestModelsLine:
    def test_prices_are_told_where_they_are_known(self):
        prices = PriceList({"big": Price(input=1.25, cached_input=0.125, output=10.0)})
        assert feedback.models_line("big", "small", prices) == (
            "The root LM is big ($1.25 in / $10 out per million tokens), the sub-LLM small."
        )


class TestBudgetLine:
    def test_what_has_no_limit_is_left_out(self):
        left = {"calls": None, "tokens": None, "usd": None, "seconds": None}
        assert feedback.budget_line(left, 3) == "[Left: 3 replies.]"

    def test_what_has_a_limit_is_told_with_its_unit(self):
        left = {"calls": 1200, "tokens": 50_000, "usd": 0.5, "seconds": 61.4}
        assert feedback.budget_line(left, 3) == (
            "[Left: 3 replies, 1,200 sub-LLM calls, 50,000 tokens, $0.50, 61 seconds.]"
        )


def test_shortening_keeps_head_and_tail_of_what_is_long():
    assert feedback.shorten(["a" * 10, "short"], 6) == ["aaa\n[... cut ...]\naaa", "short"]


REPEATED = Prompts("small")("repeated")


class Echo(ExecRepl):
    """A REPL whose cells print their own code, or fail when they say so."""

    def __init__(self, _budget):
        super().__init__()

    async def run(self, code):
        return result(error=code) if "Error" in code else result(stdout=code)


def told(*replies):
    """What a root LM that gives these replies is told after each of them."""
    ran = run_loop(*replies, "FINAL(42)", max_iterations=20, prompts="small", make_repl=Echo)
    sent = ran.root.sent
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(sent))
    return ran.told


class TestRequests:
    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (cell("found"), "If this output shows the answer"),
            (cell("SomeError"), "The cell failed"),
            ("I will see.", "held no ```python block"),
            ("", "held no ```python block"),
            ("FINAL(42", "no closing parenthesis"),
            (cell("found") + "FINAL(42)", "before you had seen this output"),
        ],
    )
    def test_each_ends_with_what_to_reply(self, reply, words):
        (message,) = told(reply)
        assert message.startswith("[Left: 19 replies.]\n\n")
        last = message.rpartition("\n\n")[2]
        assert words in last
        assert "```python block" in last

    def test_the_cells_that_were_not_run_are_told(self):
        (message,) = told(cell("SomeError") + cell("one") + cell("two"))
        assert "The 2 later cell(s)" in message
        assert "Output of cell 2" not in message

    @pytest.mark.parametrize("reply", [cell("found"), "Let me think.", ""])
    def test_a_repeated_reply_is_told_so(self, reply):
        first, second, third = told(reply, reply, cell("other"))
        assert REPEATED not in first
        assert second.endswith(REPEATED)
        assert REPEATED not in third
