"""What the root LM is told between its replies."""

from __future__ import annotations

import asyncio

import pytest

from rlm import Limits, feedback
from rlm.budget import Budget
from rlm.events import CellOutput, LateOutput
from rlm.loop import Loop
from rlm.models import ModelReply
from rlm.prompts import Prompts
from rlm.usage import PriceList, TokenUsage
from tests.conftest import cell


def result(**given):
    empty = {"stdout": "", "stderr": "", "value": "", "error": None, "final": None, "late": []}
    return CellOutput(**(empty | given))


class TestCellReports:
    def test_every_stream_is_told_apart(self):
        report = feedback.cell_report(2, result(stdout="out\n", stderr="err\n", value="42", error="ValueError: no"))
        assert report == "Output of cell 2:\nout\n[stderr]\nerr\n[value] 42\nValueError: no"

    def test_a_value_alone_is_shown_as_a_notebook_shows_it(self):
        assert feedback.cell_report(1, result(value="42")) == "Output of cell 1:\n42"

    def test_late_output_is_marked_with_the_cell_it_is_of(self):
        late = [LateOutput(cell=3, stdout="tick\n", stderr="oops\n")]
        report = feedback.cell_report(1, result(stdout="now\n", late=late))
        assert report == ("Output of cell 1:\n[printed by what cell 3 of this REPL left running]\ntick\noops\nnow")

    def test_a_cell_that_shows_nothing_is_told_how_to(self):
        assert "use print" in feedback.cell_report(1, result())

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("re", "`import re`"), ("final", "`FINAL`"), ("Final_var", "`FINAL_VAR`"), ("python", "three backquotes")],
    )
    def test_a_name_that_is_not_known_is_put_right_where_that_can_be_told(self, name, hint):
        error = f"Traceback ...\nNameError: name '{name}' is not defined"
        assert hint in feedback.cell_report(1, result(error=error))

    @pytest.mark.parametrize("error", ["NameError: name 'found' is not defined", "KeyError: 're'"])
    def test_other_errors_stand_alone(self, error):
        assert feedback.cell_report(1, result(error=error)) == f"Output of cell 1:\n{error}"

    def test_braces_and_indentation_of_an_output_are_kept(self):
        assert feedback.cell_report(1, result(stdout="  {a}\n\n  {b}\n")) == "Output of cell 1:\n  {a}\n\n  {b}"

    def test_the_death_of_the_repl_tells_how_and_what_is_left(self):
        report = feedback.death_report(1, "killed by signal 9")
        assert "killed by signal 9" in report
        assert "`context` is loaded again" in report


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


class Root:
    """A root LM whose replies are given; it keeps what it was asked."""

    name = "root"

    def __init__(self, *replies):
        self._replies = list(replies)
        self.asked = []

    async def complete(self, messages):
        self.asked.append([dict(message) for message in messages])
        return ModelReply(text=self._replies.pop(0), usage=TokenUsage(), latency_s=0.0)


class Repl:
    """A REPL whose cells print their own code, or fail when they say so."""

    async def run(self, code):
        return result(error=code) if "Error" in code else result(stdout=code)

    async def close(self):
        return ""


def told(*replies):
    """What a root LM that gives these replies is told after each of them."""
    root = Root(*replies, "FINAL(42)")
    loop = Loop("run", root, Repl(), Budget(Limits(), PriceList({})), Prompts("small"), lambda _: None)
    asyncio.run(loop.run("system", "question", 20))
    assert all(later[: len(earlier)] == earlier for earlier, later in zip(root.asked, root.asked[1:], strict=False))
    return [messages[-1]["content"] for messages in root.asked[1:]]


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
