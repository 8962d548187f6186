"""The prompts: filled in strictly, complete, and shipped with the package."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.resources import files

import pytest

from rlm import RunConfig, events
from rlm.offline.root import reply
from rlm.prompts import prompt
from tests.conftest import run_script

SYSTEM = ("default", "force_parallel")
VALUES = {
    "context": "a str of 1,234 characters in 56 lines",
    "max_output_chars": "7,890",
    "sub_llm_chars": 200_001,
    "in_flight": 65,
    "max_iterations": 12,
    "budget": "[Left: 12 replies, 34 sub-LLM calls.]",
}


@pytest.mark.parametrize("name", SYSTEM)
class TestSystemPrompts:
    @pytest.mark.parametrize("missing", VALUES)
    def test_a_missing_value_raises(self, name, missing):
        with pytest.raises(KeyError, match=missing):
            prompt(name, **{key: value for key, value in VALUES.items() if key != missing})

    def test_every_value_is_told(self, name):
        text = prompt(name, **VALUES)
        for value in VALUES.values():
            assert str(value) in text
        assert "$" not in text

    def test_the_builtins_are_told(self, name):
        text = prompt(name, **VALUES)
        for builtin in ("context", "parallel_llm_query(", "FINAL(", "FINAL_VAR(", "SHOW_VARS()", "budget()"):
            assert builtin in text
        assert "SubLLMError" in text
        assert "return_exceptions=True" in text

    def test_its_example_cells_are_python_and_run(self, name):
        asked = []

        def parallel_llm_query(prompts):
            asked.extend(prompts)
            return ["NOT FOUND" for _ in prompts]

        text = "some word\n" * 60_000
        names = {"context": text, "parallel_llm_query": parallel_llm_query, "print": lambda *_: None}
        for code in re.findall(r"^```python\n(.*?)^```$", prompt(name, **VALUES), re.MULTILINE | re.DOTALL):
            exec(code, names)
        if name == "force_parallel":
            assert len(asked) <= VALUES["in_flight"]
            assert all(len(question) <= VALUES["sub_llm_chars"] for question in asked)
            assert text.endswith(asked[-1][-100:])

    def test_no_question_of_a_benchmark_is_in_it(self, name):
        assert not re.search(r"magic|needle|haystack|blah", prompt(name, **VALUES), re.IGNORECASE)


def test_only_the_default_prompt_offers_single_calls_and_child_runs():
    assert "`llm_query(prompt)`" in prompt("default", **VALUES)
    assert "`rlm_query(prompt, context)`" in prompt("default", **VALUES)
    assert "rlm_query" not in prompt("force_parallel", **VALUES)
    assert "no `llm_query`" in prompt("force_parallel", **VALUES)


def test_the_question_of_the_user_is_put_in_as_it_is():
    question = "What did $name pay?\n\nReply with one word: $5 or {six}?"
    assert prompt("question", question=question).startswith(f"Question: {question}\n\nReply with one ```python block")
    with pytest.raises(KeyError, match="question"):
        prompt("question")


def test_the_scripted_root_lm_finds_the_question_in_it():
    question = "What did Ann pay?\n\nReply with one word."
    asked = [("user", prompt("question", question=question)), ("assistant", "# step: look"), ("user", "done: look")]
    assert f"question = {question!r}\n" in reply(asked)


@pytest.mark.parametrize("force_parallel", [False, True])
def test_the_root_lm_is_sent_no_piece_of_the_context(force_parallel):
    secret = "quetzalcoatl"
    config = RunConfig(model="root", recursive_model="sub", force_parallel=force_parallel)
    ran = run_script("FINAL(42)", context=f"{secret} " * 100, config=config)
    assert secret not in "".join(ran.reports)
    assert ran.of(events.RunStarted)[0].context == "a str of 1,300 characters in 1 lines"


def test_the_prompts_ship_with_the_package():
    names = {file.name for file in files("rlm.prompts").iterdir()}
    assert {"default.md", "force_parallel.md", "question.md"} <= names


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_prompts_are_in_the_wheel(tmp_path):
    root = str(files("rlm").joinpath(".."))
    subprocess.run([sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "-w", str(tmp_path), root], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    for name in (*SYSTEM, "question"):
        assert f"rlm/prompts/{name}.md" in held
