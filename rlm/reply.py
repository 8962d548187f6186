"""What a root LM's reply asks for: cells to run, or a final answer written in text.

A reply is Markdown from a model: it may be cut off, quote itself, or be nonsense. It is read and never run, no
text makes this module raise, and a megabyte of the worst takes about a second.

*Cells* are fenced blocks whose first info word is `repl`, `python` or `py`, as CommonMark finds them (in list items,
with tildes, unclosed at the end). One thing is read otherwise: a fence line inside a triple-quoted string of the cell
does not close it, if a later one does. An empty cell is no cell.

*A final* is `FINAL(text)` or `FINAL_VAR(name)` on lines of its own: at most three spaces before it, emphasis or a
code span around it, full stops after it, and nothing else. Code in its parentheses belongs to the answer. Inside
fences, block quotes and list markers, or with prose around it, the words are a mention. The first final counts: what
a model writes after it has answered is no second opinion.

HTML comments and `<think>` sections are neither run nor read. Other HTML is ordinary text, so that a fence after
`<details>` is still a fence.
"""

import ast
import bisect
import keyword
import re
import warnings
from dataclasses import dataclass
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, fence

_CELL_WORDS = frozenset({"repl", "python", "py"})

# Lists and block quotes cost the parser up to 10 µs a character. No model means a longer reply than this, and in one
# only the lines themselves are read: fences at any indentation, finals, comments.
_CONTAINERS_MAX_CHARS = 100_000
_LITERAL_MAX_CHARS = 10_000
# What may be read in vain for the real end of cells with an open string.
_LOOKAHEAD_MAX_CHARS = 500_000

_REASONING = re.compile(r"\s*<(think|thinking)>.*?</\1>", re.DOTALL)
_REASONING_END = re.compile(r"^</think>[ \t]*$", re.MULTILINE)  # chat templates may hold the opening tag themselves
_HIDDEN = re.compile(r"<!--|<(think|thinking)>")
_FINAL = re.compile(r"(?P<mark>[*_]{0,3}`{0,2})FINAL(?P<var>_VAR)?\(\s*+")
_NOTABLE_LINE = re.compile(r"^[ \t]*+(?:```|~~~|<!--|<think|[*_]{0,3}`{0,2}FINAL)", re.MULTILINE)
_LITERAL = re.compile(r"""(?P<quote>"{3}|'{3}|"|')(?P<body>(?:\\.|(?!(?P=quote))[^\\])*+)(?P=quote)""", re.DOTALL)

# By the quote that Python code is inside of: what may change that.
_PYTHON_QUOTES = {
    "": re.compile(r"""#[^\n]*|'''|\"""|'|\""""),
    "'": re.compile(r"\\.|'|\n", re.DOTALL),
    '"': re.compile(r'\\.|"|\n', re.DOTALL),
    "'''": re.compile(r"\\.|'''", re.DOTALL),
    '"""': re.compile(r'\\.|"""', re.DOTALL),
}
# By the quote that a final's text begins with: what counts for its balance.
_BALANCE_MARKS = {
    "": re.compile(r"[()]"),
    "'": re.compile(r"\\.|'''|'|[()]", re.DOTALL),
    '"': re.compile(r'\\.|"""|"|[()]', re.DOTALL),
}


@dataclass(frozen=True, slots=True)
class TextFinal:
    """A final answer written in text, outside code."""

    kind: Literal["text", "value", "variable"]
    content: str
    """What the parentheses hold, without the space around it. A "text" was one Python string literal, and this is its
    value; a "value" is anything else in a FINAL, words or an expression; a "variable" is the bare name in FINAL_VAR."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A root LM's reply, read. Whether a final beside cells counts is for the loop to say."""

    cells: tuple[str, ...]
    """The code of each cell, in order, moved left by its fence's indentation, without the last line break."""
    final: TextFinal | None
    unclosed_final: bool
    """A final was begun whose parenthesis never closes. No final is read after it, for it may hold the rest."""
    unclosed_cell: bool = False
    """The last cell has no end of its own: its fence is not closed, or a string in it."""


def parse_reply(text: str) -> Reply:
    """Read a root LM's reply. Any text is a reply; one that asks for nothing has no cells and no final."""
    if reasoning := _REASONING.match(text):
        text = text[reasoning.end() :]
    elif (end := _REASONING_END.search(text)) and "<think>" not in text[: end.start()]:
        text = text[end.end() :]
    reader = _Reader()
    markdown = MarkdownIt("commonmark")
    markdown.disable(["inline", "text_join", "reference", "lheading", "html_block"])  # they tell nothing of fences
    ruler = markdown.block.ruler
    ruler.at("fence", reader.fence, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    ruler.before("blockquote", "final", reader.final_answer, {"alt": ["paragraph", "blockquote"]})
    ruler.before("blockquote", "hidden", reader.hidden, {"alt": ["paragraph", "blockquote"]})
    if len(text) > _CONTAINERS_MAX_CHARS:
        ruler.at("paragraph", _skip_to_notable_line)
        ruler.enableOnly(["final", "hidden", "fence", "paragraph"])
    markdown.parse(text)
    return Reply(
        cells=tuple(reader.cells),
        final=reader.final,
        unclosed_final=reader.unclosed_final,
        unclosed_cell=reader.unclosed_cell,
    )


def is_literal(content: str) -> bool:
    """Whether a final's content is a Python literal, which no REPL need be asked about. A long one is not looked at."""
    if len(content) > _LITERAL_MAX_CHARS:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.literal_eval(content)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


class _Reader:
    """The block rules that this module adds to CommonMark, and what they find in one reply.

    A rule is asked whether a block of its kind begins at line `start`. If so it moves `state.line` past the block,
    unless it is `silent`: then the parser only wants to know whether a paragraph or block quote ends here.
    """

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.final: TextFinal | None = None
        self.unclosed_final = False
        self.unclosed_cell = False
        self._final_at = self._final_close = -1  # the last final found, since each is asked for more than once
        self._finals_from = 0  # what begins before this is inside a final that was read or rejected
        self._quotes_count = True
        self._never_closed: set[str] = set()
        self._lookahead_chars = _LOOKAHEAD_MAX_CHARS

    def fence(self, state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001
        if not fence(state, start, end, silent):
            return False
        if not silent:
            info = state.tokens[-1].info.split(maxsplit=1)
            if info and info[0].lower() in _CELL_WORDS and (code := self._whole_cell(state, start, end)).strip():
                self.cells.append(code.removesuffix("\n"))
                closed = state.line - 1 > start and _closes_fence(state, state.line - 1, state.tokens[-1].markup)
                self.unclosed_cell = not closed or len(_open_quote(code)) == 3
        return True

    def _whole_cell(self, state: StateBlock, start: int, end: int) -> str:
        """The code of the fence just read, and on to its real end (moving `state.line`) if a string is open in it."""
        token = state.tokens[-1]
        quote = _open_quote(token.content)
        if len(quote) != 3 or self._lookahead_chars <= 0:
            return token.content
        stop = start + 1 + token.content.count("\n")
        for line in range(stop, end):
            if len(quote) <= 1 and _closes_fence(state, line, token.markup):
                state.line = line + 1
                return state.getLines(start + 1, line, state.sCount[start], keepLastLF=True)
            quote = _open_quote(state.src[state.bMarks[line] : state.eMarks[line] + 1], quote)
        self._lookahead_chars -= len(state.src) - state.bMarks[stop]
        return token.content

    def final_answer(self, state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
        pos = state.bMarks[start] + state.tShift[start]
        if pos != self._final_at and not self._read_final(state.src, pos):
            return False
        if not silent:
            state.line = start + 1 + state.src.count("\n", pos, self._final_close)
        return True

    def _read_final(self, src: str, pos: int) -> bool:
        begun = _FINAL.match(src, pos)
        if not begun or pos < self._finals_from or not _begins_line(src, pos):
            return False
        close = self._closing_parenthesis(src, begun.end())
        if close < 0:
            self.unclosed_final = True
            self._finals_from = len(src)
            return False
        self._finals_from = close
        line_end = src.find("\n", close)
        rest = src[close + 1 : line_end if line_end >= 0 else None]
        final = _text_final(src[begun.end() : close].strip(), is_variable=bool(begun["var"]))
        if final is None or re.sub(r"[.;\s]", "", rest) != begun["mark"][::-1]:
            return False
        self.final = self.final or final
        self._final_at, self._final_close = pos, close
        return True

    def _closing_parenthesis(self, src: str, pos: int) -> int:
        """Where the parenthesis opened before `pos` closes, or -1.

        All parentheses count. Only if the text begins with a quote do those between quotes of that kind not, unless
        the balance fails that way.
        """
        if self._quotes_count and src.startswith(("'", '"'), pos):
            if (close := _balance(src, pos, src[pos])) >= 0:
                return close
            self._quotes_count = False  # tried once a reply: each try may read all of it
        return _balance(src, pos, "")

    def hidden(self, state: StateBlock, start: int, _end: int, silent: bool) -> bool:  # noqa: FBT001
        pos = state.bMarks[start] + state.tShift[start]
        begun = _HIDDEN.match(state.src, pos)
        if not begun or not _begins_line(state.src, pos):
            return False
        closing = f"</{begun[1]}>" if begun[1] else "-->"
        close = -1 if closing in self._never_closed else state.src.find(closing, pos)
        if close < 0:
            self._never_closed.add(closing)
            return False
        if not silent:
            state.line = start + 1 + state.src.count("\n", pos, close)
        return True


def _skip_to_notable_line(state: StateBlock, start: int, end: int, _silent: bool) -> bool:  # noqa: FBT001
    found = _NOTABLE_LINE.search(state.src, state.eMarks[start])
    state.line = bisect.bisect_left(state.bMarks, found.start(), start + 1) if found else end
    return True


def _begins_line(src: str, pos: int) -> bool:
    before = src[src.rfind("\n", 0, pos) + 1 : pos]
    return before in ("", " ", "  ", "   ")


def _closes_fence(state: StateBlock, line: int, markup: str) -> bool:
    text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip(" \t")
    return text.startswith(markup) and not text.strip(markup[0]) and not state.is_code_block(line)


def _open_quote(code: str, quote: str = "") -> str:
    """The quote of the string that Python code, begun inside of `quote`, leaves open; "" outside of strings.

    Not `tokenize`: that is quadratic before Python 3.12, and gives up at the first error after.
    """
    pos = 0
    while found := _PYTHON_QUOTES[quote].search(code, pos):
        pos = found.end()
        if quote:
            quote = "" if found[0] in (quote, "\n") else quote
        elif found[0][0] != "#":
            quote = found[0]
    return quote


def _balance(src: str, pos: int, quote: str) -> int:
    depth, inside = 1, ""
    for found in _BALANCE_MARKS[quote].finditer(src, pos):
        mark = found[0]
        if inside:
            inside = "" if mark == inside else inside
        elif mark == "(":
            depth += 1
        elif mark == ")":
            depth -= 1
            if depth == 0:
                return found.start()
        elif mark[0] == quote:
            inside = mark
    return -1


def _text_final(content: str, *, is_variable: bool) -> TextFinal | None:
    if is_variable:
        name = content.strip("`'\" \t\n")
        return TextFinal("variable", name) if name.isidentifier() and not keyword.iskeyword(name) else None
    if not content:
        return None
    text = _literal_text(content)
    return TextFinal("value", content) if text is None else TextFinal("text", text)


def _literal_text(content: str) -> str | None:
    """The value of a Python string literal (line breaks are fine between any quotes); None for other text."""
    literal = _LITERAL.fullmatch(content)
    if not literal:
        return None
    quotes = literal["quote"][0] * 3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "C:\dir" is a doubtful escape, and a plausible answer
            value = str(ast.literal_eval(f"{quotes}{literal['body']}{quotes}"))
    except (SyntaxError, ValueError):
        return None
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # "\ud83d\ude00", as JSON has it
