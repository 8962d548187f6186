"""The prompts: filled in strictly, complete, and shipped with the package."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.resources import files

import pytest

from rlm.errors import InputError
from rlm.offline.root import reply
from rlm.prompts import Prompts

SETS = ("default", "small")
VALUES = {
    "context": "a str of 1,234 characters in 56 lines\\n> it begins",
    "context_summary": "a str of 1,234 characters in 56 lines",
    "example": "print(context[:100])",
    "libraries": ", numpy and pandas",
    "models": "The root LM is gpt-5, the sub-LLM gpt-5-nano.",
    "max_children": 17,
    "max_output_chars": "7,890",
    "sub_llm_chars": 200_001,
    "in_flight": 65,
    "max_iterations": 12,
    "budget": "[Left: 12 replies, 34 sub-LLM calls.]",
}
OF_THE_SMALL_SET = VALUES.keys() - {"context", "example", "libraries", "max_children", "models"}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", SETS)
class TestSystemPrompts:
    def test_every_value_is_told(self, name, parallel):
        text = Prompts(name, parallel=parallel)("system", **VALUES)
        for key in (
            OF_THE_SMALL_SET
            if name == "small"
            else VALUES.keys() - ({"example", "max_children"} if parallel else set())
        ):
            assert str(VALUES[key]) in text
        assert "$" not in text

    def test_the_builtins_are_told(self, name, parallel):
        text = Prompts(name, parallel=parallel)("system", **VALUES)
        for builtin in ("context", "parallel_llm_query(", "FINAL(", "FINAL_VAR(", "SHOW_VARS()", "budget()"):
            assert builtin in text
        assert "SubLLMError" in text
        assert "return_exceptions=True" in text

    def test_its_example_cells_are_python_and_run(self, name, parallel):
        asked = []

        def parallel_llm_query(prompts):
            asked.extend(prompts)
            return ["NOT FOUND" for _ in prompts]

        text = "some word\n" * 60_000
        names = {"context": text, "parallel_llm_query": parallel_llm_query, "print": lambda *_: None}
        cells = re.findall(
            r"^```python\n(.*?)^```$",
            Prompts(name, parallel=parallel)("system", **VALUES),
            re.MULTILINE | re.DOTALL,
        )
        assert cells
        for code in cells:
            exec(code, names)
        if parallel:
            assert len(asked) <= VALUES["in_flight"]
            assert all(len(question) <= VALUES["sub_llm_chars"] for question in asked)
            assert text.endswith(asked[-1][-100:])

    def test_no_question_of_a_benchmark_is_in_it(self, name, parallel):
        text = Prompts(name, parallel=parallel)("system", **VALUES)
        assert not re.search(r"magic|needle|haystack|blah", text, re.IGNORECASE)

    def test_single_calls_and_child_runs_are_offered_where_not_all_is_to_be_parallel(self, name, parallel):
        text = Prompts(name, parallel=parallel)("system", **VALUES)
        assert ("`llm_query(prompt)`" in text) is not parallel
        assert ("rlm_query(" in text) is not parallel
        assert ("no `llm_query`" in text) is parallel


@pytest.mark.parametrize("kind", ["example", "example.str", "example.list", "example.dict"])
def test_the_example_for_each_kind_of_context_runs(kind):
    context = {"example.list": ["a", {"b": 1}], "example.dict": {"a": "text", 3: [1]}}.get(kind, "a text")
    exec(Prompts()(kind), {"context": context, "print": lambda *_: None})


@pytest.mark.parametrize("name", SETS)
def test_the_question_of_the_user_is_put_in_as_it_is(name):
    question = "What did $name pay?\n\nReply with one word: $5 or {six}?"
    assert Prompts(name)("question", question=question).startswith(f"Question: {question}\n\n")


@pytest.mark.parametrize("name", SETS)
def test_the_scripted_root_lm_finds_the_question_in_it(name):
    question = "What did Ann pay?\n\nReply with one word."
    prompt = Prompts(name)("question", question=question)
    asked = [("user", prompt), ("assistant", "# step: look"), ("user", "done: look")]
    assert f"question = {question!r}\n" in reply(asked)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("reaction", ["no_code", "unclosed_final", "early_final", "repeated", "last_request"])
def test_whatever_asks_for_an_answer_asks_for_a_cell_that_calls_final(name, reaction):
    text = Prompts(name)(reaction, reason="all 3 replies are used")
    assert "```python block" in text or "write one that calls `FINAL`" in text
    assert "FINAL" in text
    assert "FINAL(...) alone" not in text


def test_a_set_of_ones_own_overrides_what_it_holds(tmp_path):
    (tmp_path / "next_step.md").write_text("Onwards, $name!\n")
    own = Prompts(str(tmp_path))
    assert own("next_step", name="Ada") == "Onwards, Ada!"
    assert own("no_code") == Prompts()("no_code")


def test_what_cannot_be_a_set_is_told_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="no set of prompts 'sonnet': name a folder, or one of default, small"):
        Prompts("sonnet")
    with pytest.raises(InputError, match="no set of prompts"):
        Prompts(str(tmp_path / "missing"))
    (tmp_path / "nxt_step.md").write_text("typo")
    with pytest.raises(InputError, match=r"nxt_step\.md, which no prompt is read from: use after_error, "):
        Prompts(str(tmp_path))


def test_a_value_that_is_not_given_is_told(tmp_path):
    (tmp_path / "question.md").write_text("$question and $anwser")
    with pytest.raises(InputError, match=r"question\.md: \$anwser is not a value it is given; it may name question"):
        Prompts(str(tmp_path))("question", question="q")


def test_the_prompts_ship_with_the_package():
    assert {"system.md", "question.md"} <= {file.name for file in files("rlm.prompts").joinpath("default").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_prompts_are_in_the_wheel(tmp_path):
    root = str(files("rlm").joinpath(".."))
    subprocess.run([sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(tmp_path), root], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    for name in SETS:
        assert f"rlm/prompts/{name}/system.md" in held
