"""The variables: what cells have made, what they are given, and how both are told."""

import pytest

BUILTINS = ["context", "llm_query", "parallel_llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched"]
BUILTINS += ["FINAL", "FINAL_VAR", "SHOW_VARS", "budget", "SubLLMError", "BudgetError"]


def test_overwritten_builtins_are_restored(repl):
    repl.run("; ".join(f"{name} = 'mine'" for name in BUILTINS))
    repl.run("del answer")
    result = repl.run(f"[name for name in {BUILTINS} if globals()[name] == 'mine'], answer")
    assert result.value == "([], {'content': '', 'ready': False})"


def test_show_vars_tells_names_types_sizes_and_a_look(repl):
    assert repl.run("print(SHOW_VARS())").stdout == "no variables yet\n"
    repl.run("text = 'x' * 1234\nn = 5\nrows = [{'k': i} for i in range(120)]\ndef f(): ...\nimport re\n[1]")
    lines = """\
f: function
n: int  5
re: module
rows: list of 120  [{'k': 0}, {'k': 1}, {'k': 2}, {'k': 3}, ...]
text: str of 1,234 characters  'xxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx'"""
    assert repl.run("print(SHOW_VARS())").stdout == f"{lines}\n"
    assert repl.run("SHOW_VARS()").value == lines


def test_show_vars_is_bounded_and_runs_no_code_of_what_it_shows(repl):
    repl.run("""
        class Odd:
            def __repr__(self): raise RuntimeError
            def __len__(self): raise RuntimeError
        class OddList(list):
            def __len__(self): raise RuntimeError
        class Meta(type):
            @property
            def __name__(cls): raise RuntimeError
            @property
            def __module__(cls): raise RuntimeError
        class Nameless(metaclass=Meta): ...
        class numpy_like:
            __module__ = "numpy"
            shape = ["x" * 10_000_000]
        numpy_like.__name__ = "n" * 1_000_000
        a, b, c, d, e, f = Odd(), OddList(), Nameless(), 10 ** 5000, [Odd()], numpy_like()
    """)
    told = repl.run("print(SHOW_VARS())").stdout.splitlines()
    assert [line.split("  ")[0] for line in told if line[0] in "abcdef"] == [
        *("a: Odd", "b: OddList", "c: object", "d: int", "e: list of 1"),
        f"f: {'n' * 100} of {'x' * 100}",
    ]
    repl.run("for i in range(5000): globals()[f'v{i}'] = [f'{i}' * 1000] * 50")
    repl.run("globals()[5] = 'a name that is none'")
    told = repl.run("SHOW_VARS()").value
    assert told.endswith("\n... and 4,812 more")
    assert len(told) < 50_000


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("rows = [1] * 120\ntext = 'ab'", ["rows: list of 120", "text: str of 2 characters"]),
        ("size = 1\nsize = 2.5", ["size: float"]),
        ("for i in range(3): total = i", ["total: int"]),
        ("def find(): pass\nclass Row: inner = 1", ["find: function", "Row: type"]),
        ("def make():\n    global made\n    made = {}\nmake()", ["make: function", "made: dict of 0"]),
        ("globals()['new'] = {1, 2}", ["new: set of 2"]),
        ("import re, os.path as path", []),
        ("old", []),
        ("old.append(1)", []),
        ("old = old", []),
        ("gone = 1\ndel gone", []),
        ("[x for x in range(3)]\ncontext = 5\nanswer['content'] = 'x'", []),
        ("answer = 'mine'", []),
        ("kept = 1\n1 / 0\nnever = 2", ["kept: int"]),
        ("if False: never = 1", []),
        ("v" * 200 + " = 1", ["v" * 100]),
        ("\n".join(f"v{i} = {i}" for i in range(300)), [f"v{i}: int" for i in range(20)]),
        ("from collections import Counter\nletters = Counter('abc')", ["Counter: type", "letters: Counter of 3"]),
    ],
)
def test_the_variables_that_a_cell_made_are_told(shared, code, told):
    shared.run("globals().clear()")
    shared.run("old = [0]; old += [1, 2]")
    assert shared.run(code).new_names == told


def test_changes_inside_the_context_stay_and_a_rebound_one_comes_back(start):
    repl = start({"a": 1})
    repl.run("context['b'] = 2")
    assert repl.run("context").value == "{'a': 1, 'b': 2}"
    repl.run("context = 5")
    assert repl.run("context").value == "{'a': 1, 'b': 2}"
