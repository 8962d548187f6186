"""A cell runs as in a notebook."""

import pytest


def test_names_functions_classes_and_imports_persist(repl):
    repl.run("import math\ndef area(r): return math.pi * r * r\nclass Box:\n    size = 3\n_hidden = 7")
    assert repl.run("round(area(1), 2), Box().size, _hidden").value == "(3.14, 3, 7)"


def test_a_function_sees_globals_as_they_are_now(repl):
    repl.run("x = 1\ndef get(): return x")
    repl.run("x = 2")
    assert repl.run("get()").value == "2"


def test_comprehensions_closures_and_generators_see_what_the_cell_sees(repl):
    result = repl.run("""
        n = 3
        def counter():
            total = 0
            def add(k):
                nonlocal total
                total += k * n
                return total
            return add
        add = counter()
        class A:
            squares = [i * n for i in range(3)]
        [add(i) for i in (1, 2)], A.squares, list(i + n for i in range(2)), {i: n for i in range(1)}
    """)
    assert result.value == "([3, 9], [0, 3, 6], [3, 4], {0: 3})"


def test_assignments_and_prints_before_an_exception_survive(repl):
    result = repl.run("x = 41\nprint('so far')\nx += 1\n1 / 0\nx = 0")
    assert result.stdout == "so far\n"
    assert result.error.endswith("ZeroDivisionError: division by zero")
    assert '  File "<cell 1>", line 4, in <module>\n    1 / 0' in result.error
    assert repl.run("x").value == "42"


def test_del_sticks(repl):
    repl.run("x = 1")
    repl.run("del x")
    assert repl.run("x").error.endswith("NameError: name 'x' is not defined")


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("", ""),
        ("# nothing", ""),
        ("None", ""),
        ("x = 5", ""),
        ("print('x')", ""),
        ("x = 5\nx", "5"),
        ("'text'", "'text'"),
        ("'a docstring alone'", "'a docstring alone'"),
        ("{'b': 1, 'a': [1, {'x': None}]}", "{'b': 1, 'a': [1, {'x': None}]}"),
        ("if True:\n    7", ""),
        ("b'\\x00\\xff'", r"b'\x00\xff'"),
    ],
)
def test_the_value_of_a_last_expression_is_shown(repl, code, value):
    result = repl.run(code)
    assert (result.value, result.error) == (value, None)


def test_the_last_value_is_kept_as_underscore(repl):
    repl.run("6 * 7")
    assert repl.run("_ + 1").value == "43"


def test_a_long_value_keeps_its_ends_and_tells_what_is_left_out(start):
    repl = start("abc" + "x" * 5_000_000 + "xyz", max_output_chars=100)
    value = repl.run("context").value
    assert value.startswith("'abcxxx")
    assert value.endswith("xxxxyz'")
    assert "[... 4,999,908 characters left out ...]" in value
    assert len(value) < 200
    items = repl.run("list(range(1000))").value
    assert items.startswith("[0, 1, 2,")
    assert items.endswith("998, 999]")
    assert "[... 4,790 characters left out ...]" in items


def test_a_huge_collection_is_not_written_out(start):
    repl = start(max_output_chars=100)
    value = repl.run("[{'k': 'v' * 1000}] * 1_000_000").value
    assert value.endswith("[shortened: a list of 1,000,000 items]")
    assert len(value) < 300


def test_a_collection_that_holds_itself_is_shown(repl):
    assert "[...]" in repl.run("a = [1]; a.append(a); a").value


def test_asyncio_run_works_in_a_cell(repl):
    assert repl.run("import asyncio\nasync def f(): return 5\nasyncio.run(f())").value == "5"


def test_await_works_at_the_top_of_a_cell_in_one_event_loop(repl):
    result = repl.run("""
        import asyncio
        async def f(i):
            await asyncio.sleep(0.01)
            return i
        first = await f(1)
        task = asyncio.create_task(f(2))
        first, await task
    """)
    assert (result.value, result.error) == ("(1, 2)", None)


def test_a_syntax_error_is_data(repl):
    error = repl.run("def f(:\n    pass").error
    assert error.splitlines()[0] == '  File "<cell 1>", line 1'
    assert "SyntaxError: invalid syntax" in error


@pytest.mark.parametrize("code", ["x = '\0'", "'\ud800'", "(" * 10_000, "x = " + "-" * 100_000 + "1"])
def test_code_that_python_cannot_read_is_data(repl, code):
    result = repl.run(code)
    assert result.error or result.value
    assert repl.run("1 + 1").value == "2"


def test_a_cell_is_compiled_without_our_own_future_imports(repl):
    assert repl.run("def f(x: int): ...\nf.__annotations__").value == "{'x': <class 'int'>}"


def test_sys_exit_ends_the_cell_only(repl):
    result = repl.run("x = 1\nimport sys\nsys.exit(3)\nx = 2")
    assert result.error == "SystemExit: sys.exit(3) ended this cell; the REPL goes on"
    assert repl.run("x").value == "1"
    assert "SystemExit" in repl.run("exit()").error
    assert repl.run("x").value == "1"


def test_input_raises_at_once(repl):
    assert repl.run("input('name? ')").error.endswith("nobody is at the keyboard")
    assert repl.run("import sys; sys.stdin.read()").value == "''"


def test_the_traceback_shows_the_cells_own_lines_and_none_of_ours(repl):
    repl.run("def deep(n):\n    return 1 / n if n == 0 else deep(n - 1)")
    error = repl.run("try:\n    deep(2)\nexcept Exception as exc:\n    raise KeyError('outer') from exc").error
    assert error.count('File "<cell 1>", line 2, in deep') == 3
    assert "return 1 / n if n == 0 else deep(n - 1)" in error
    assert "direct cause" in error
    assert "driver.py" not in error


def test_exceptions_of_any_make_can_be_told(repl):
    for code in (
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
        "class E(BaseException):\n    __notes__ = 3\nraise E('x')",
        "raise ExceptionGroup('g', [ValueError(1), TypeError(2)])",
        "exc = None\nfor i in range(5000):\n    new = ValueError(i); new.__context__ = exc; exc = new\nraise exc",
        "raise ValueError('\\ud800')",
        "raise KeyboardInterrupt",
        "def f(): f()\nf()",
    ):
        assert repl.run(code).error, code
    assert repl.run("1").value == "1"


def test_a_repr_that_raises_is_an_error_of_the_cell(repl):
    result = repl.run("class A:\n    def __repr__(self): raise ValueError('no repr')\nA()")
    assert result.error.endswith("ValueError: no repr")


def test_main_idioms_work(repl):
    result = repl.run("""
        import pickle, dataclasses, inspect
        @dataclasses.dataclass
        class P:
            x: int = 1
        def here(): return 1
        if __name__ == "__main__":
            print(pickle.loads(pickle.dumps(P(5))), inspect.getsource(here))
    """)
    assert result.stdout == "P(x=5) def here(): return 1\n\n"


def test_two_sessions_share_nothing(start):
    one, other = start(), start()
    one.run("x = 1; print('one')\nimport tempfile, os\nopen('note', 'w').write('hi')")
    result = other.run("import tempfile, os; print('x' in globals(), os.listdir())\nos.getcwd(), tempfile.gettempdir()")
    assert result.stdout == "False []\n"
    assert other.run("os.getcwd() == tempfile.gettempdir()").value == "True"
