import io
import textwrap
import time
import tokenize

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlm.reply import Reply, TextFinal, _open_quote, is_literal, parse_reply

NOTHING = Reply(cells=(), final=None, unclosed_final=False)


def cells(text: str) -> tuple[str, ...]:
    return parse_reply(text).cells


def final(text: str) -> TextFinal | None:
    return parse_reply(text).final


def value(content: str) -> TextFinal:
    return TextFinal("value", content)


# Cells


@pytest.mark.parametrize("info", ["repl", "python", "py", "REPL", "Python", " repl", "repl python", "python title=x"])
@pytest.mark.parametrize("fence", ["```", "`````", "~~~"])
def test_fences_marked_as_ours_are_cells(info, fence):
    assert cells(f"Let me look.\n{fence}{info}\nx = 1\nx\n{fence}\nThen more.") == ("x = 1\nx",)


@pytest.mark.parametrize("info", ["", "json", "text", "bash", "pycon", "not python", "reply"])
def test_other_fences_are_not_cells(info):
    assert parse_reply(f"```{info}\nprint(1)\nFINAL(2)\n```\n") == NOTHING


def test_several_cells_come_in_order_and_text_without_any_has_none():
    assert cells("a\n```repl\n1\n```\nb\n```json\n{}\n```\n~~~python\n2\n~~~\n```py\n3\n```") == ("1", "2", "3")
    assert parse_reply("") == parse_reply("I should print(context) first.") == NOTHING


def test_a_cell_without_code_is_no_cell():
    assert cells("```repl\n```\n```repl\n  \n\n```\n```repl") == ()


def test_an_indented_fence_takes_its_indentation_off_the_code():
    assert cells("  ```repl\n  if x:\n      y\n  ```") == ("if x:\n    y",)
    assert cells("1. Look:\n\n   ```repl\n   if x:\n       y\n   ```\n2. Go on:\n   ```repl\n   z\n   ```") == (
        "if x:\n    y",
        "z",
    )
    assert cells("- ```repl\n  x\n  ```\n- a\n  - b\n    ~~~py\n    y\n    ~~~\n") == ("x", "y")


def test_a_fence_four_spaces_in_is_indented_code():
    assert cells("Text.\n\n    ```repl\n    x\n    ```\n") == ()


def test_a_fence_that_never_closes_ends_with_the_reply():
    assert cells("```repl\nx = 1\nprint(x)") == ("x = 1\nprint(x)",)
    assert cells("```repl\nx = 1\n") == ("x = 1",)


def test_line_breaks_of_other_systems_are_line_breaks():
    assert cells("```repl\r\nx\r\ny\r\n```\r\n") == ("x\ny",)


# Fences inside a cell's strings


@pytest.mark.parametrize("quotes", ["'''", '"""'])
def test_a_fence_in_a_triple_quoted_string_does_not_end_the_cell(quotes):
    code = f"prompt = f{quotes}Answer like this:\n```json\n{{}}\n```\nor\n```\nnothing\n```\n{quotes}\nprint(prompt)"
    assert cells(f"First.\n```repl\n{code}\n```\nThen.\n```repl\nnext\n```") == (code, "next")


def test_cells_after_an_extended_one_are_read():
    code = 's = """\n```\n"""'
    assert cells("\n\n".join(f"```repl\n{code}\n```" for _ in range(50))) == (code,) * 50


def test_a_string_in_an_indented_cell_may_begin_further_left():
    assert cells("- a\n  ```repl\n  s = '''\nleft\n  ```\n  '''\n  t\n  ```\n- b") == ("s = '''\nleft\n```\n'''\nt",)


@pytest.mark.parametrize(
    "code",
    [
        "# it's '''\nx",
        "s = 'it\\'s \"\"\" '\nx",
        "s = \"'''\"\nx",
        "s = r'''\\'''\nx''' + 'y'",
        "s = 'unterminated ''' here\nx",
        "x = [",
    ],
)
def test_outside_of_triple_quotes_the_first_fence_line_ends_the_cell(code):
    assert cells(f"```repl\n{code}\n```\ntext\n```\nother\n```\n") == (code,)


def test_a_string_that_never_closes_leaves_the_fences_as_they_are():
    broken = 's = """oops'
    assert cells(f"```repl\n{broken}\n```\nSo:\n```repl\nx = 1\n```\n") == (broken, "x = 1")


def test_a_longer_or_other_fence_line_ends_a_cell_as_in_markdown():
    assert cells("```repl\ns = '''\n```\n~~~\n'''\n~~~\n`````\n") == ("s = '''\n```\n~~~\n'''\n~~~",)


# What is neither run nor read


@pytest.mark.parametrize("tag", ["think", "thinking"])
def test_reasoning_is_neither_run_nor_read(tag):
    draft = f"<{tag}>\nPerhaps\n```repl\ndraft\n```\nFINAL(1)\n```repl\nunclosed\n</{tag}>"
    assert parse_reply(f"{draft}FINAL(2)") == Reply((), value("2"), unclosed_final=False)
    assert parse_reply(f"\n {draft}\n\n```repl\nx\n```") == Reply(("x",), None, unclosed_final=False)
    assert parse_reply(f"Hm.\n{draft}\n\n```repl\nx\n```") == Reply(("x",), None, unclosed_final=False)


def test_reasoning_whose_opening_tag_was_in_the_chat_template_is_reasoning():
    assert cells("Perhaps\n```repl\ndraft\n```\nor not.\n</think>\n\n```repl\nx\n```") == ("x",)


def test_reasoning_that_never_ends_is_text():
    assert parse_reply("<think>\n```repl\nx\n```\nFINAL(1)") == Reply(("x",), value("1"), unclosed_final=False)


def test_a_cell_may_speak_of_reasoning_and_comments():
    code = "a = text.split('<think>')\nb = '''\n<think>\n<!--\n'''"
    assert cells(f"```repl\n{code}\n```\n```repl\n'</think> -->'\n```") == (code, "'</think> -->'")


def test_comments_hide_what_they_hold_and_other_html_does_not():
    assert parse_reply("<!--\n```repl\nx\n```\nFINAL(1)\n-->\nText.") == NOTHING
    assert cells("<!-- never closed\n```repl\nx\n```") == ("x",)
    assert parse_reply("<answer>\nFINAL(1)\n</answer>").final == value("1")
    assert cells("<details>\n```repl\nx\n```\n</details>") == ("x",)


# Finals


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("FINAL(42)", "42"),
        ("FINAL(42).", "42"),
        ("   FINAL( 42 )  ", "42"),
        ("Done.\nFINAL(42)\nThat was it.", "42"),
        ("- one\n- two\nFINAL(42)", "42"),
        ("> quoted\nFINAL(42)", "42"),
        ("**FINAL(42)**", "42"),
        ("_FINAL(42)_", "42"),
        ("`FINAL(42)`", "42"),
        ("**`FINAL(42)`**.", "42"),
        ("FINAL(f(x) (see (a)))", "f(x) (see (a))"),
        ("FINAL(\nOne (1).\n\n- Two\n)\n", "One (1).\n\n- Two"),
        ("FINAL(It's 5)", "It's 5"),
        ("FINAL(Run\n```python\nf()\n```\n)", "Run\n```python\nf()\n```"),
        ('FINAL("\\x")', '"\\x"'),
        ('FINAL("Moby-Dick (1851)" by O\'Brien)', '"Moby-Dick (1851)" by O\'Brien'),
        ('FINAL("a", "b")', '"a", "b"'),
        ('FINAL("5" x 7" (board))', '"5" x 7" (board)'),
    ],
)
def test_a_final_on_lines_of_its_own_counts(text, content):
    assert parse_reply(text) == Reply((), value(content), unclosed_final=False)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("FINAL('it\\'s :)')", "it's :)"),
        ('FINAL("a\\nb")', "a\nb"),
        ('FINAL("""a (\n"b""")', 'a (\n"b'),
        ('FINAL("two\nlines :(")', "two\nlines :("),
        ('FINAL("C:\\dir")', "C:\\dir"),
        ('FINAL("\\ud83d\\ude00 \\ud83d")', "\U0001f600 \ufffd"),
        ("FINAL('')", ""),
    ],
)
def test_a_final_that_is_one_string_literal_is_text_and_has_its_value(text, content):
    assert parse_reply(text) == Reply((), TextFinal("text", content), unclosed_final=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *[(text, True) for text in ("42", "-1.5", "[1, 'a']", "{'a': None}", "('x',)", "'a' 'b'", "1+2j")],
        *[(text, False) for text in ("x", "the words", "f'{x}'", "f(1)", "[x]", "1 +", "", "(" * 5_000, "1" * 20_000)],
    ],
)
def test_literals_are_told_from_names_and_words(content, expected):
    assert is_literal(content) is expected


@pytest.mark.parametrize(
    ("text", "unclosed"),
    [
        ("```repl\nx = 1\n```", False),
        ("```repl\nx = 1\n```\n```text\nmore", False),
        ("```repl\nx = 1", True),
        ("```repl\nx = 1\n", True),
        ("```repl\nx = 1\n```\n```repl\ny = 2", True),
        ("- item\n  ```repl\n  x = 1\n  ```", False),
        ("```repl\ntext = '''\n```\nin the text", True),
        ("~~~repl\nx = 1\n```", True),
    ],
)
def test_a_last_cell_without_an_end_is_told(text, unclosed):
    assert parse_reply(text).unclosed_cell is unclosed


@pytest.mark.parametrize("inner", ["answer", " answer ", "'answer'", '"answer"', "`answer`", "\nanswer\n"])
def test_a_variable_is_named_bare(inner):
    assert final(f"Done:\nFINAL_VAR({inner})") == TextFinal("variable", "answer")


@pytest.mark.parametrize("inner", ["", "a.b", "f(x)", "a b", "1", "None", "'a' 'b'"])
def test_what_is_no_name_is_no_variable(inner):
    assert parse_reply(f"FINAL_VAR({inner})") == NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "I will then call FINAL(answer)",
        "FINAL(answer) is what I will call.",
        "**FINAL(42)",
        "FINAL()",
        "FINAL_VARS(x)",
        "THE_FINAL(42)",
        "final(42)",
        "- FINAL(42)",
        "1. FINAL(42)",
        "> FINAL(42)",
        "- > FINAL(42)",
        "# FINAL(42)",
        "Text:\n\n    FINAL(42)",
        "```\nFINAL(42)\n```",
        "> ```\n> FINAL(42)\n> ```",
        "~~~text\nFINAL(42)",
        "```FINAL(42)\nx\n```",
    ],
)
def test_a_mention_is_no_final(text):
    assert parse_reply(text) == NOTHING


def test_a_final_in_a_cell_is_the_cells():
    assert parse_reply("```repl\nFINAL(x)\n```") == Reply(("FINAL(x)",), None, unclosed_final=False)


def test_the_first_final_counts_and_mentions_before_it_do_not():
    assert final("FINAL(1)\nFINAL(2)") == value("1")
    assert final("FINAL(1)\n```repl\nx\n```\nFINAL_VAR(x)") == value("1")
    assert final("FINAL(x) comes later.\nFINAL_VAR(a b)\nFINAL()\nFINAL(2)") == value("2")


def test_cells_and_a_final_are_both_reported():
    assert parse_reply("```repl\nx = 1\n```\nFINAL_VAR(x)") == Reply(
        ("x = 1",), TextFinal("variable", "x"), unclosed_final=False
    )


@pytest.mark.parametrize("text", ["FINAL(1", "FINAL_VAR(x", "**FINAL(:( sad)**", "FINAL('a", "FINAL(1\n\nFINAL(2)"])
def test_a_final_that_never_closes_is_told(text):
    assert parse_reply(f"So:\n{text}\n") == Reply((), None, unclosed_final=True)


def test_cells_after_a_final_that_never_closes_are_read():
    assert parse_reply("FINAL(1\n```repl\nx\n```") == Reply(("x",), None, unclosed_final=True)


@pytest.mark.parametrize("text", ["I call FINAL(1", "```\nFINAL(1\n```", "<!--\nFINAL(1\n-->"])
def test_a_mention_that_never_closes_is_not_told(text):
    assert parse_reply(text) == NOTHING


# For any text

HOSTILE_PIECES = st.sampled_from(
    [
        *("```", "```repl\n", "~~~py\n", "`", "'", '"', "'''", '"""', "\\", "#", "FINAL(", "FINAL_VAR(", "(", ")"),
        *("\n", "\n\n", "> ", "- ", "1. ", "  ", "    ", "\t", "<!--", "-->", "<think>", "</think>", "<p>", "**", "_"),
        *("---\n", "x", "\r", "\x00", "\x0c", "\u2028", "\ud800", "é", "[a]: b\n", "= 1"),
    ]
)


@settings(deadline=None)
@given(st.lists(HOSTILE_PIECES, max_size=60).map("".join) | st.text(st.characters(codec=None)))
def test_any_text_is_a_reply(text):
    reply = parse_reply(text)
    assert all(cell.strip() for cell in reply.cells)
    assert reply.final is None or reply.final.kind == "value" or reply.final.content.isidentifier()


STRING_LINES = st.lists(
    st.sampled_from(
        ["```", "```json", "  ```", "~~~", "`````", "FINAL(1)", "text", "", "it's", "</p>", "> ```", "\\'"]
    ),
    max_size=6,
).map("\n".join)
STATEMENTS = st.one_of(
    st.sampled_from(
        ["x = 1", "print('a # b')", "# don't", "if x:\n    y = [1,\n\n         2]", "FINAL(x)", "s = '\\''"]
    ),
    st.tuples(st.sampled_from(["s = ", "    t = f", "call(1, r"]), STRING_LINES, st.sampled_from(["'''", '"""'])).map(
        lambda parts: f"{parts[0]}{parts[2]}\n{parts[1]}\n{parts[2]}"
    ),
)
CODE = st.lists(STATEMENTS, min_size=1, max_size=5).map("\n".join)
WRAPPERS = st.tuples(
    st.sampled_from(["", " ", "  ", "   ", "- ", "10. "]),  # what comes before the fence
    st.sampled_from(["```", "````", "~~~", "``````"]),
    st.sampled_from(["repl", "python", "Py", "REPL", " repl python"]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(CODE, WRAPPERS), max_size=4), st.booleans())
def test_wrapped_code_comes_back_exactly(parts, last_is_closed):
    blocks = []
    for code, (lead, fence, info) in parts:
        indented = textwrap.indent(code, " " * len(lead), lambda _line: True)
        blocks.append(f"{lead}{fence}{info}\n{indented}\n{' ' * len(lead)}{fence}")
    text = "\n\nSo it's (\n\n".join(blocks)
    if parts and not last_is_closed and "```" not in parts[-1][0] and "~~~" not in parts[-1][0]:
        text = text.rpartition("\n")[0]
    assert cells(text) == tuple(code for code, _ in parts)


@settings(deadline=None)
@given(CODE)
def test_open_strings_are_those_that_tokenize_finds(code):
    lines = code.splitlines(keepends=True)
    for count in range(len(lines) + 1):
        head = "".join(lines[:count])
        try:
            list(tokenize.generate_tokens(io.StringIO(head).readline))
            is_open = False
        except tokenize.TokenError as error:
            is_open = "string" in str(error)
        except IndentationError:
            continue
        assert (len(_open_quote(head)) == 3) == is_open


BALANCED = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="()\r\x00")), lambda inner: inner.map("({})".format)
)


@settings(deadline=None)
@given(st.lists(BALANCED, max_size=4).map("".join).map(str.strip), st.sampled_from(["", "**", "`", "__"]))
def test_balanced_text_comes_back_from_a_final(text, mark):
    assume(text and text[0] not in "'\"")
    assert final(f"Done.\n\n{mark}FINAL({text}){mark[::-1]}\n") == value(text)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")))
def test_any_text_comes_back_from_a_final_as_a_literal(text):
    assert final(f"FINAL({text!r})") == TextFinal("text", text)


MEGABYTE = 10**6
UNSOLVABLE_CELL = "```py\n'''#'''\n'''\n```\n"  # each leaves a string open, at every later fence too


HOSTILE_UNITS = [
    *("(", "`", "FINAL(", "FINAL(\n", "FINAL('\n", "FINAL(\"') x\n", "FINAL(1) x\n", "FINAL_VAR(1)\n", "FINAL(     \n"),
    *(
        "> ",
        ">",
        "> a\n",
        "- ",
        "- a\n",
        "1. a\n\n",
        "> a\n- b\n",
        "> - a\nb\n",
        "# a\n",
        "a\n\n",
        "a\n",
        "-\n",
        "*",
        "_",
    ),
    *(
        "```\n",
        "```py\nx\n```\n",
        "```py\n'''\n```\n'''\n```\n",
        UNSOLVABLE_CELL,
        "~~~\n```\n",
        "'",
        '"""',
        "'\\",
        "\\",
    ),
    *("<!--\n", "<think>\n", "</think>\n", "<think></think>\n", "[a]: b\n", "\n", " ", "\t", "\x00", "\r"),
]


@pytest.mark.parametrize(
    ("lead", "unit"),
    [
        *(("", unit) for unit in HOSTILE_UNITS),
        *(("```py\n'''", unit) for unit in ("'", '"""', "\\", "```\n", "a\n")),
        *(("FINAL('", unit) for unit in ("'", "(", "\\", "FINAL('\n", "- a\n")),
        *(("> > > > > > > > > > a\n", unit) for unit in ("a\n", "<!--\n", "FINAL(1) x\n", "- a\n", "```\n")),
    ],
)
def test_a_hostile_megabyte_takes_about_a_second(lead, unit):
    for size in (MEGABYTE, 100_000 - len(lead)):  # the longest read with lists and block quotes, too
        text = lead + unit * (size // len(unit))
        begun = time.process_time()
        parse_reply(text)
        assert time.process_time() - begun < 3  # a second or less on a quiet machine


def test_nested_finals_that_all_fail_take_linear_time():
    begun = time.process_time()
    assert parse_reply("FINAL(\n" * 100_000 + ") x\n" * 100_000).final is None
    assert time.process_time() - begun < 3


def test_a_reply_longer_than_models_write_is_still_read():
    filler = "Lorem ipsum (dolor).\n\n- sit\n> amet\n\n" * 5_000
    text = f"{filler}   ```repl\n   x\n   ```\n- a\n\n      ```py\n      y\n      ```\n{filler}FINAL(42)\n{filler}"
    assert parse_reply(text) == Reply(("x", "y"), value("42"), unclosed_final=False)
