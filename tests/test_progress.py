import io

import pytest
from rich.cells import cell_len

from rlm import events
from rlm.progress import PlainView, QuietView, TerminalView, some_lines
from tests.progress_support import STARTED, asked, cell_begins, cell_ends, finished, started

CODE = "import re\nfrom math import sqrt\n\n# Look for the leases\n" + "rows = [1]\n" * 40
TRACEBACK = "Traceback (most recent call last):\n  File 1, line 2\nKeyError: 'lease'"
STEPS = (STARTED, cell_begins(CODE), cell_ends("found\n" + "more\n" * 60, calls=78))


class Terminal(io.StringIO):
    """A stream that says it is a terminal; what it was sent stays readable."""

    encoding = "utf-8"

    def isatty(self):
        return True


def shown_on(view, out, steps):
    with view:
        for event in steps:
            view(event)
    return out.getvalue()


def plain(*steps, **options):
    out = io.StringIO()
    return [line.split("] ", 1)[-1] for line in shown_on(PlainView(out, **options), out, steps).splitlines()]


@pytest.fixture(params=[80, 140])
def columns(request, monkeypatch):
    for name, value in (("COLUMNS", str(request.param)), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    return request.param


def on_terminal(*steps, **options):
    out = Terminal()
    return shown_on(TerminalView(out, **options), out, steps)


def test_long_output_is_cut_to_its_first_and_last_lines():
    shown = some_lines("\n".join(map(str, range(100))), 4).split("\n")
    assert shown == ["0", "1", "... 96 more lines ...", "98", "99"]


def test_plain_lines_tell_the_steps_without_escapes():
    assert plain(
        STARTED,
        cell_ends("\x1b[2Jhello\n"),
        events.Notice(run_id="r", text="look out"),
        heading="root LM m, sub-LLM s, at host",
    ) == [
        "root LM m, sub-LLM s, at host",
        "iteration 1/4 · asking the root LM · 0 tokens",
        "cell 1 done in 0.2 s: \\x1b[2Jhello",
        "note: look out",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (cell_ends("\n  first words of it\n" + "x" * 300), "cell 1 done in 0.2 s: first words of it (+1 line)"),
        (cell_ends("a" * 300, calls=2), f"cell 1 done in 0.2 s, 2 sub-calls: {'a' * 200}..."),
        (cell_ends("printed", error=TRACEBACK), "cell 1 failed in 0.2 s: KeyError: 'lease' (+3 lines)"),
        (cell_ends(final="Ada"), "cell 1 done in 0.2 s: answer: Ada"),
        (cell_ends(), "cell 1 done in 0.2 s: (no output)"),
    ],
)
def test_a_plain_line_of_a_cell_begins_with_what_it_gave_first(event, line):
    assert plain(STARTED, event)[-1] == line


def test_verbose_plain_lines_have_code_and_output():
    lines = plain(*STEPS, verbose=True)
    assert "    # Look for the leases" in lines
    assert "    ... 15 more lines ..." in lines
    assert "    found" in lines


def test_quiet_shows_notices_alone():
    out = io.StringIO()
    assert shown_on(QuietView(out), out, (*STEPS, events.Notice(run_id="r", text="look out"))) == "note: look out\n"


def test_a_terminal_shows_a_cell_in_one_line_and_what_it_gave_in_another(columns):
    shown = on_terminal(*STEPS).splitlines()
    assert any(line.startswith("[1] # Look for the leases (+42 lines)") for line in map(printed, shown))
    assert any(line.startswith("    found (+60 lines) · 0.2 s, 78 sub-calls") for line in map(printed, shown))
    assert "rows" not in "".join(shown)


def test_a_long_line_is_cut_to_the_width_before_what_is_said_of_the_rest(columns):
    lines = [printed(line) for line in on_terminal(STARTED, cell_begins("漢字" * 90 + "\n1"), cell_ends()).splitlines()]
    (line,) = [line for line in lines if line.startswith("[1]")]
    assert line.endswith("… (+1 line)")
    assert columns - 2 <= cell_len(line) <= columns


def test_a_child_run_is_set_in(columns):
    shown = on_terminal(STARTED, started("c", depth=1), cell_begins("look()", run_id="c"))
    assert "    child [1] look()" in map(printed, shown.splitlines())


def test_verbose_shows_code_and_output_in_many_lines(columns):
    shown = on_terminal(*STEPS, verbose=True)
    for words in ("iteration 1 ", "rows = [1]", "... 15 more lines ...", "... 49 more lines ..."):
        assert words in shown


def test_the_status_stands_whole_beside_the_sub_calls(columns):
    """Also while they go on, which is most of the time."""
    lines = [printed(line) for line in on_terminal(STARTED, cell_begins("x"), asked(78), finished(0)).splitlines()]
    at = next(number for number, line in enumerate(lines) if "waiting for sub-LLMs" in line)
    assert "0 s · iteration 1/4 · waiting for sub-LLMs · 11 tokens" in lines[at]
    assert lines[at + 1].strip("━╸╺ ") == "sub-calls 1/78 · 7 in flight"
    assert all(cell_len(line) <= columns for line in lines)


def printed(line):
    """A line without what moves the cursor."""
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip()
