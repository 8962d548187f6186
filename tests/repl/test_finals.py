"""The ways to answer: FINAL in a cell, FINAL in a reply's prose, the dict `answer`."""

import json

import pytest

from rlm.events import Answer


def test_final_ends_the_cell_with_the_answer(repl):
    result = repl.run("x = 1\nprint('before')\nFINAL('the answer')\nx = 2")
    assert (result.final.text, result.stdout, result.error) == ("the answer", "before\n", None)
    assert repl.run("x").value == "1"
    assert repl.run("x").final is None


@pytest.mark.parametrize(
    ("code", "final"),
    [
        ("FINAL()", ""),
        ("FINAL('')", ""),
        ("FINAL(r'\\ud800'.encode().decode('unicode_escape'))", "\ufffd"),
        ("x = 'value'\nFINAL_VAR('x')", "value"),
        ("x = 'value'\nFINAL_VAR(' x ')", "value"),
        ("x = 'value'\nFINAL_VAR(x)", "value"),
        ("x = 'y'; y = 'no'\nFINAL_VAR(x)", "y"),
        ("def f():\n    inside = 'local'\n    FINAL_VAR(inside)\nf()", "local"),
        ("try:\n    FINAL('kept')\nexcept:\n    print('swallowed')", "kept"),
        ("try:\n    FINAL('first')\nexcept:\n    FINAL('second')", "first"),
        ("await __import__('asyncio').gather(__import__('asyncio').to_thread(FINAL, 'async'))", "async"),
        ("import threading\nt = threading.Thread(target=FINAL, args=['thread'])\nt.start(); t.join()", "thread"),
        ("answer['content'] = 'said'; answer['ready'] = True", "said"),
        ("answer['content'] = 'said'; answer['ready'] = 1", "said"),
        ("answer['content'] = 'said'; FINAL(answer)", "said"),
        ("answer['ready'] = True", ""),
        ("answer = {'content': 'rebound', 'ready': True}", "rebound"),
        ("answer.update(content='first', ready=True)\nFINAL('final')", "final"),
        ("answer.update(content='said', ready=True)\n1 / 0", "said"),
        ("answer['content'] = 'not ready'", None),
        ("answer = 'a text'", None),
        ("class V:\n    def __eq__(self, other): raise OSError\nanswer = {'content': V(), 'ready': False}", None),
        ("answer = 'a text'; FINAL(answer)", "a text"),
        ("final('said')", "said"),
        ("Final('said')", "said"),
        ("x = 'value'; final_var('x')", "value"),
        ("x = 'value'; final_var(x)", "value"),
        ("final = 'mine'; FINAL(final)", "mine"),
        ("def final_var(v): return v + '!'\nx = 'mine'; FINAL(final_var(x))", "mine!"),
        ("'FINAL(1)'", None),
    ],
)
def test_the_ways_to_answer(shared, code, final):
    shared.run(
        "answer = {'content': '', 'ready': False}\nfor name in ('final', 'final_var'): globals().pop(name, None)"
    )
    assert shared.run(code).final == (None if final is None else Answer(text=final))


def test_an_answer_can_be_made_over_several_cells(repl):
    assert repl.run("answer['content'] += 'a'").final is None
    assert repl.run("answer['content'] += 'b'; answer['ready'] = True").final.text == "ab"


def test_final_var_of_an_unknown_name_tells_the_known_ones(repl):
    repl.run("result = 1")
    error = repl.run("FINAL_VAR('reslt')").error
    assert error.endswith("NameError: FINAL_VAR: there is no variable 'reslt'. Variables: result")
    assert "NameError" in repl.run("FINAL_VAR(unknown)").error


def test_an_answer_that_is_too_long_is_refused(repl):
    assert "an answer may have 10,000,000 characters" in repl.run("FINAL('x' * 10_000_001)").error
    result = repl.run("answer.update(content='x' * 10_000_001, ready=True)")
    assert result.final is None
    assert "an answer may have" in result.error
    assert len(repl.run("FINAL('x' * 10_000_000)").final.text) == 10_000_000


def test_the_answer_of_a_late_thread_is_not_lost(repl):
    repl.run("""
        import threading
        go = threading.Event()
        thread = threading.Thread(target=lambda: (go.wait(), FINAL("late")))
        thread.start()
    """)
    assert repl.run("go.set(); thread.join()").final.text == "late"


def test_a_variable_of_a_cell_comes_before_the_other_names_of_final(repl):
    repl.run("final = 'mine'\ndef final_var(value): return value * 2")
    repl.run("")
    assert repl.run("final, final_var(final)").value == "('mine', 'minemine')"


def test_a_variable_named_answer_stays(repl):
    repl.run("answer = 'Paris'")
    assert repl.run("answer").value == "'Paris'"
    assert repl.final("answer").final == Answer(text="Paris")


VALUES = {
    "42": "42",
    "2.50": "2.5",
    "True": "true",
    "None": "null",
    "{'a': [1, 'é'], 2: None}": '{"a": [1, "é"], "2": null}',
    "(1, 'b')": '[1, "b"]',
    "{'b', 'a', 'c'}": '["a", "b", "c"]',
    "frozenset({1})": "[1]",
    "range(3)": "[0, 1, 2]",
    "(n for n in range(3))": "[0, 1, 2]",
    "{'a': 1}.keys()": '["a"]',
    "map(str, [1, 2])": '["1", "2"]',
    "__import__('collections').Counter('aab')": '{"a": 2, "b": 1}',
    "__import__('collections').deque([1])": "[1]",
    "__import__('types').MappingProxyType({'a': 1})": '{"a": 1}',
    "[__import__('datetime').date(2024, 2, 29)]": '["2024-02-29"]',
    "{'d': __import__('decimal').Decimal('1.50')}": '{"d": "1.50"}',
    "{'p': __import__('pathlib').Path('/a')}": '{"p": "/a"}',
    "[__import__('datetime').timedelta(hours=1)]": '["1:00:00"]',
    "Point(1, [2])": '{"x": 1, "y": [2]}',
    "[Pair('a', 1)]": '[["a", 1]]',
    "Small.ONE": "1",
    "{'text': Odd('x')}": '{"text": "x"}',
    "{True: 1, None: 2, 1.5: 3}": '{"true": 1, "null": 2, "1.5": 3}',
}
TEXTS = {
    "'a text'": "a text",
    "Odd('x')": "x",
    "Word.YES": "yes",
    "float('nan')": "nan",
    "[float('inf')]": "[inf]",
    "{('a', 1): 2}": "{('a', 1): 2}",
    "b'x'": "b'x'",
    "1j": "1j",
    "object": "<class 'object'>",
    "Shown()": "shown",
    "__import__('datetime').date(2024, 2, 29)": "2024-02-29",
    "__import__('datetime').datetime(2024, 2, 29, 12)": "2024-02-29T12:00:00",
    "__import__('decimal').Decimal('1.50')": "1.50",
}
CLASSES = """
    import dataclasses, enum, collections
    @dataclasses.dataclass
    class Point: x: int; y: list
    Pair = collections.namedtuple("Pair", "name count")
    class Small(enum.IntEnum): ONE = 1
    class Word(str, enum.Enum): YES = "yes"
    class Odd(str):
        def __str__(self): return "another"
    class Shown:
        def __str__(self): return "shown"
"""


def test_a_value_is_the_json_that_it_is_and_another_its_text(repl):
    repl.run(CLASSES)
    for code, text in VALUES.items():
        found = repl.run(f"FINAL({code})").final
        assert (code, found) == (code, Answer(text=text, is_json=True))
        assert found.value == json.loads(text)
    for code, text in TEXTS.items():
        assert (code, repl.run(f"FINAL({code})").final) == (code, Answer(text=text))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = []\nfor _ in range(3000): x = [x]\nFINAL(x)", "ValueError: this value is nested too deep"),
        ("x = [1]\nfor _ in range(60): x = [x, x]\nFINAL(x)", "ValueError: an answer may have 10,000,000 characters"),
        ("FINAL(['x' * 1000] * 10_001)", "ValueError: an answer may have 10,000,000 characters"),
        ("FINAL(10 ** 5000)", "ValueError: Exceeds the limit (4300 digits) for integer string conversion"),
        ("class A:\n    def __str__(self): raise KeyError('no str')\nFINAL(A())", "KeyError: 'no str'"),
        ("class A:\n    def __str__(self): return 5\nFINAL(A())", "TypeError: __str__ returned non-string"),
        ("class A(dict):\n    def items(self): raise OSError('no items')\nFINAL(A(a=1))", "OSError: no items"),
        (
            "class A:\n    @property\n    def __class__(self): raise OSError('no class')\nFINAL(A())",
            "OSError: no class",
        ),
    ],
)
def test_what_cannot_be_written_out_is_an_error_of_the_cell(shared, code, error):
    result = shared.run(code)
    assert error in result.error
    assert result.final is None


def test_scalars_and_arrays_of_numpy_are_json(repl):
    result = repl.run("""
        class Array:  # as NumPy's: there is no NumPy here
            __module__ = "numpy"
            def __init__(self, value): self.value = value
            def tolist(self): return self.value
        FINAL({"mean": Array(0.5), "ids": Array([0, 1, 2])})
    """)
    assert result.final == Answer(text='{"mean": 0.5, "ids": [0, 1, 2]}', is_json=True)
    assert repl.run("FINAL(Array(5))").final == Answer(text="5", is_json=True)


@pytest.mark.parametrize(
    "text",
    ["", "nan", "NaN", "Infinity", "1e999", "[", "[" * 100_000, '"\\ud800"', '["\\\\\\ud800"]', "1" * 5_000, "[1] x"],
)
def test_the_value_of_a_forged_answer_is_its_text(text):
    assert Answer(text=text, is_json=True).value == text


def test_the_value_of_an_honest_answer_is_what_was_given():
    assert Answer(text=r'["\\ud800", "\\\\ud800", 1e5]', is_json=True).value == [r"\ud800", r"\\ud800", 1e5]
    assert Answer(text="[1]").value == "[1]"


NAMES = """
    import json, re, time
    n, total, name, rows, table = 3, 12, "Ann", ["b", "a"], {"a": [1]}
    def count(items): return len(items)
    class Report: pages = 7
    report = Report()
    k = 0
"""
EVALUATED = {
    "total": "12",
    " table ": '{"a": [1]}',
    "name": "Ann",
    "context": "the context",
    "f'There are {n} messages'": "There are 3 messages",
    'F"{n:>3}"': "  3",
    'rf"{n}\\d"': r"3\d",
    'f"no names"': "no names",
    'f"one\nand {n}"': "one\nand 3",
    '"Dear " + name': "Dear Ann",
    '"a" f"{n}"': "a3",
    "total / n": "4.0",
    "total, n": "[12, 3]",
    "len(context)": "11",
    "max(rows)": "b",
    "sorted(rows)": '["a", "b"]',
    "', '.join(row for row in rows if row > '')": "b, a",
    "[x * 2 for x in rows]": '["bb", "aa"]',
    "rows[0]": "b",
    "table['a'][0]": "1",
    "count(rows)": "2",
    "report.pages": "7",
    "json.dumps(table)": '{"a": [1]}',
    "str(total) + ' dollars'": "12 dollars",
    "name if n > 2 else 'nobody'": "Ann",
    "total  # of all": "12",
    "{\n  'count': n,\n  'rows': rows,\n}": '{"count": 3, "rows": ["b", "a"]}',
    "(lambda q: q + n)(1)": "4",
    "(m := n)": "3",
}
LITERALS = {
    "42": "42",
    "-3.10": "-3.10",
    "1e5": "1e5",
    "[1, 'a']": '[1, "a"]',
    "{'a': None}": '{"a": null}',
    '{"a": true, "b": null}': '{"a": true, "b": null}',
    "(1, 2)": "[1, 2]",
    "True": "true",
}
WORDS = [
    *("Paris", "New York", "not found", "x is 5", "1,234", "1, 2", "007", "1_000", "0x1F", "2024-10-15", "...", "+5"),
    *("U.S.", "x=5", "n messages", "O(n)", "a or b", "unknown / total", "len", "FINAL", "llm_query", "print", "answer"),
    *(
        "re",
        "time",
        "count",
        "Report",
        "None of them",
        "John's",
        "(",
        ")",
        "a) + (b",
        "\0",
        "3 of 4",
        "yes, no",
        "-",
        "*",
    ),
    *(
        "total cost",
        "The answer is 5.\n\nIt is in line 3.",
        "yield",
        "await",
        "# 1 choice",
        "b'x'",
        "{x}",
        "l" * 100_000,
    ),
    *(
        "[" * 5_000,
        "-" * 100_000 + "1",
        "max(1, 2)",
        "', '.join(['a'])",
        "é",
        "k, unknown",
        "*rows",
        "n for",
        "{[]: 1}",
    ),
]


def test_what_stands_in_a_final_of_prose_is_evaluated_if_it_is_code_over_the_cells_variables(start):
    repl = start("the context")
    repl.run(NAMES)
    for text, answer in EVALUATED.items():
        found = repl.final(text)
        assert (text, found.final and found.final.text, found.error) == (text, answer, None)
    for text, answer in LITERALS.items():
        assert (text, repl.final(text).final) == (text, Answer(text=answer, is_json=True))
    assert repl.final("'a' 'b'").final == Answer(text="ab")
    for text in WORDS:
        found = repl.final(text)
        assert (text[:80], found.final, found.error) == (text[:80], Answer(text=text), None)
        assert (found.stdout, found.stderr) == ("", "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("f'There are {count} messages'", "NameError: name 'count' is not defined"),
        ("f'There are {n messages'", "SyntaxError: f-string: expecting '}'"),
        ("total / nothing", "ZeroDivisionError: division by zero"),
        ("re.sub('a', 'b', name)", "NameError: name 're' is not defined"),
        ("name.missing", "AttributeError: 'str' object has no attribute 'missing'"),
    ],
)
def test_a_final_of_prose_that_fails_is_told_as_a_cell_that_failed(repl, text, error):
    repl.run("n, total, nothing, name = 3, 12, 0, 'Ann'")
    result = repl.final(text)
    assert result.final is None
    assert error in result.error
    assert '  File "<cell 2>", line 1' in result.error
    assert repl.run("n").value == "3"


def test_a_final_of_prose_runs_under_the_clock_with_its_output_captured(start):
    repl = start(cell_timeout_s=0.2)
    repl.run("""
        class Endless:
            def __str__(self):
                while True: pass
        endless = Endless()
        def loud(x): print("loud"); return x
        n = 1
    """)
    assert "CellTimeoutError" in repl.final("endless").error
    result = repl.final("loud(n)")
    assert (result.stdout, result.final) == ("loud\n", Answer(text="1", is_json=True))


def test_an_untouched_context_alone_is_the_context(start):
    repl = start("the text")
    repl.run("context = 'another'")
    assert repl.final("context").final.text == "the text"
