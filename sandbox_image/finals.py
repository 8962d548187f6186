"""Final answers: what a value becomes as text, and what stands in the parentheses of a FINAL written in prose."""

from __future__ import annotations

import ast
import builtins
import collections
import json
import re
import sys
import types
import warnings
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from sandbox_image.report import is_larger

MAX_ANSWER_CHARS = 10_000_000
LISTED: tuple[type, ...] = (
    *(range, map, filter, zip, enumerate, types.GeneratorType, collections.deque),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
AS_TEXT = frozenset({"decimal", "fractions", "pathlib", "uuid"})  # modules whose values are best told by str()
F_STRING = re.compile(r"""(?P<prefix>[rR]?[fF][rR]?)(?P<quote>["'])(?P<body>.*)(?P=quote)""", re.DOTALL)
NUMBERS = int, float, complex


class Finished(BaseException):
    """Raised by FINAL to end the cell at once. Never leaves the driver."""


class Final(NamedTuple):
    """A final answer: a text, or the JSON of a value that is none."""

    text: str
    is_json: bool


def as_final(value: object) -> Final:
    """The value as an answer: JSON where it can be that (also a set, a date, a NumPy array), or else its str().

    Raises: ValueError when it is too long, and what the value's own methods raise.
    """
    if not isinstance(value, str):
        if is_larger(value, MAX_ANSWER_CHARS):  # before anything of that size is made
            raise ValueError(f"an answer may have {MAX_ANSWER_CHARS:,} characters; this one would have more")
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_plain)
        except (TypeError, ValueError, RecursionError):  # not JSON, NaN, a key that is none, too deep
            value = as_text(value)
        else:
            if text[0] != '"':
                return Final(text=bounded(text), is_json=True)
            value = json.loads(text)  # a date is a text, without JSON's quotes
    return Final(text=bounded(str.__str__(value)), is_json=False)


def as_text(value: object) -> str:
    """str(value).

    Raises: ValueError when it is nested too deep for that.
    """
    try:
        return str(value)
    except RecursionError:
        raise ValueError("this value is nested too deep to be written out: give a text as the answer") from None


def bounded(text: str) -> str:
    """The text.

    Raises: ValueError when it is too long for an answer.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise ValueError(f"an answer may have {MAX_ANSWER_CHARS:,} characters; this one has {len(text):,}")
    return text


def as_plain(value: Any) -> object:  # noqa: ANN401  # whatever a cell has made
    """What json.dumps does not know, as something that it does.

    Raises: TypeError when there is no such thing.
    """
    kind = type(value)
    if issubclass(kind, set | frozenset):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if issubclass(kind, LISTED):
        return list(value)
    if issubclass(kind, Mapping):
        return dict(value)
    module = kind.__module__.partition(".")[0]
    if module == "numpy":
        return value.tolist()
    if module == "datetime":
        return value.isoformat() if hasattr(value, "isoformat") else str(value)
    if module in AS_TEXT:
        return str(value)
    if hasattr(kind, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in kind.__dataclass_fields__}
    raise TypeError(f"{kind.__name__} is not JSON")


def read_final(text: str, variables: Mapping[str, object], known: Container[str]) -> Final | str:
    """What `FINAL(text)` in a reply's prose means: code to evaluate, or else the answer, a literal or plain words.

    Code is an f-string, and an expression that uses a variable of the cells and no name that is unknown. Builtins
    and functions alone are words, and so is what is no Python. `variables` are what cells have made, `known` is what
    they may use besides.
    """
    text = text.strip()
    words = Final(text=text, is_json=False)
    f_string = F_STRING.fullmatch(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(f"({text}\n)", mode="eval")
            literal = read_literal(text, tree.body)
            is_code = literal is None and (f_string or uses_variables(text, tree, variables, known))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        if f_string is None:
            return words
        if "\n" in f_string["body"]:  # LMs break lines inside of simple quotes, too
            text = f_string["prefix"] + f_string["quote"] * 3 + f_string["body"] + f_string["quote"] * 3
        return f"FINAL({text})"
    if literal is not None:
        return literal
    if not is_code:
        return words
    is_tuple = isinstance(tree.body, ast.Tuple)
    return f"FINAL(({text}\n))" if is_tuple or "#" in text else f"FINAL({text})"


def read_literal(text: str, node: ast.expr) -> Final | None:
    """The value that a literal is; words where it was hardly meant as one; None when it is no literal."""
    words = Final(text=text, is_json=False)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):  # TypeError: a key that is none
        return Final(text=text, is_json=True) if text[:1] in ("[", "{") and is_json(text) else None
    if isinstance(value, str):
        return as_final(value)
    is_bare_tuple = isinstance(node, ast.Tuple) and node.col_offset == 0  # "1,234"
    if value is ... or isinstance(value, bytes) or is_bare_tuple:
        return words
    if isinstance(value, NUMBERS) and not isinstance(value, bool):
        return Final(text=text, is_json=is_json(text))  # 3.10 stays 3.10
    return as_final(value)


def is_json(text: str) -> bool:
    """Whether the text is one JSON value."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


def uses_variables(text: str, tree: ast.Expression, variables: Mapping[str, object], known: Container[str]) -> bool:
    """Whether an expression is code over the cells' variables."""
    if any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree)):
        return True
    if isinstance(tree.body, ast.Name):
        value = variables.get(tree.body.id)
        return tree.body.id in variables and not issubclass(type(value), types.ModuleType | types.FunctionType | type)
    names = free_names(f"({text}\n)")
    return any(name in variables for name in names) and all(
        name in variables or name in known or hasattr(builtins, name) or name in sys.stdlib_module_names
        for name in names
    )


def free_names(expression: str) -> set[str]:
    """The names that an expression takes from around it."""
    import symtable  # 3 ms that few runs need

    found: set[str] = set()
    tables = [symtable.symtable(expression, "<final>", "eval")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        is_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            if symbol.is_global() if not is_top else symbol.is_referenced() and not symbol.is_assigned():
                found.add(symbol.get_name())
    return found


def parse_cell(code: str, filename: str, names: Container[str]) -> ast.Module:
    """The code of a cell, in which FINAL_VAR(x) means the value of x; final_var too, where it is no name of its own."""
    tree = ast.parse(code, filename)
    is_alias = "final_var" in code and "final_var" not in names and not binds(tree, "final_var")
    changed: ast.Module = BareFinalVar({"FINAL_VAR", "final_var"} if is_alias else {"FINAL_VAR"}).visit(tree)
    return changed


class BareFinalVar(ast.NodeTransformer):
    """FINAL_VAR(x) means the value of x, as FINAL_VAR("x") does: root LMs write both."""

    def __init__(self, names: Container[str]) -> None:
        self._names = names

    def visit_Call(self, node: ast.Call) -> ast.AST:  # the name ast asks for
        """Give a bare name's value."""
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name() as function, args=[ast.Name()], keywords=[]) if function.id in self._names:
                function.id = "FINAL"
        return node


def binds(tree: ast.AST, name: str) -> bool:
    """Whether code makes a variable, a function or an import of that name."""
    return any(
        name in (getattr(node, "id", None), getattr(node, "name", None), getattr(node, "arg", None))
        and not isinstance(getattr(node, "ctx", None), ast.Load)
        for node in ast.walk(tree)
    )


def is_untouched(answer: object) -> bool:
    """Whether the dict of the answer protocol is as it was made."""
    if not is_draft(answer):
        return False
    content, ready = answer["content"], answer["ready"]  # type: ignore[index]
    return type(content) is str and not content and ready is False  # no == of whatever a cell put there


def is_draft(value: object) -> bool:
    """Whether the value is the dict of the answer protocol, given to FINAL in place of what it holds."""
    return type(value) is dict and value.keys() == {"content", "ready"}
