"""What can happen in a run. A run log is a sequence of these, and so is what a live view shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, cast

from rlm.usage import TokenUsage

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"


MAX_VALUE_DEPTH = 100  # of lists and dicts in each other


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A final answer as text; where it was another value than a str, as that value's JSON.

    It comes from where model-written code runs, so that `is_json` may be a lie.
    """

    text: str
    is_json: bool = False

    @property
    def value(self) -> JsonValue:
        """What was given: the text, or the value that it is the JSON of. Any text is its own value if it is none."""
        if not self.is_json:
            return self.text
        try:
            value = json.loads(self.text)
            # What can be written again everywhere: no NaN, no half characters, nothing too deep for a recursion.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            return self.text
        return cast("JsonValue", value) if _depth_within(value, MAX_VALUE_DEPTH) else self.text


def _depth_within(value: object, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [inner for item in level if isinstance(item, list | dict) for inner in _items(item)]
        if not level:
            return True
    return False


def _items(value: list[object] | dict[str, object]) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class LateOutput:
    """What threads or processes of an earlier cell printed after it had ended."""

    cell: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOutput:
    """What a cell did. `value` is the repr of its last expression, `error` its traceback, `final` its answer."""

    stdout: str
    stderr: str
    value: str
    error: str | None
    final: Answer | None
    late: list[LateOutput]
    new_names: list[str] = field(default_factory=list)
    """Variables it made, each in a few words: "rows: list of 120"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCost:
    """What was spent while a cell ran: sub-LLM calls, tokens of all models, US dollars (None is unknown)."""

    seconds: float
    calls: int = 0
    tokens: int = 0
    usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """One file of a context."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run, or a child run (`depth` 1 and more), begins to ask; `starting_s` are the seconds its REPL took.

    `parent_cell` is the number of the parent's cell that asked for a child. `settings` is the whole RunConfig,
    `version` the program's.
    """

    run_id: str
    parent_id: str | None
    parent_cell: int | None
    depth: int
    question: str
    context: str
    files: list[ContextFile]
    model: str
    recursive_model: str
    max_iterations: int
    settings: Mapping[str, JsonValue]
    version: str
    scripted: bool
    starting_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSent:
    """A message is added to what the root LM is asked; its replies are `RootReplied`.

    Said once, not for every request that repeats it. Two in a row of one role are sent as one, with an empty line
    between them.
    """

    run_id: str
    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesShortened:
    """The messages were too long for the model: from the third on, each is cut to `keep_chars` characters."""

    run_id: str
    keep_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RootReplied:
    """The root LM has answered; `latency_s` in seconds. `cut`: it reached the provider's output limit."""

    run_id: str
    iteration: int
    text: str
    usage: TokenUsage
    latency_s: float
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted:
    """A cell begins to run; the cells of a run are numbered from 1."""

    run_id: str
    iteration: int
    cell: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinished:
    """A cell has run; `result` is None where the REPL died of it, and `error` tells how."""

    run_id: str
    iteration: int
    cell: int
    result: CellOutput | None
    error: str | None
    cost: CellCost

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.cost.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallsStarted:
    """A cell asked `count` prompts of a sub-LLM. `cell` and `iteration`: of the thread that asked."""

    run_id: str
    iteration: int
    cell: int
    batch: int
    count: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallFinished:
    """A sub-LLM has answered, or failed for good (`error`). `cut`: it reached the provider's output limit."""

    run_id: str
    iteration: int
    cell: int
    batch: int
    index: int
    prompt: str
    text: str | None
    error: str | None
    usage: TokenUsage
    attempts: int
    in_flight: int
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallRetried:
    """A sub-LLM call is tried again, after `wait_s` seconds."""

    run_id: str
    batch: int
    index: int
    reason: str
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the whole run has used so far; `cost_usd` None is unknown."""

    run_id: str
    tokens: TokenUsage
    sub_calls: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something the user should know, once."""

    run_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run has ended in order. `answer` None: there is none; `value` is what it is the text of."""

    run_id: str
    answer: str | None
    value: JsonValue
    stopped_by: str
    iterations: int
    usage: Mapping[str, Mapping[str, int]]
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """The machinery failed, or the run was stopped from outside; with what was spent until then."""

    run_id: str
    error: str
    sub_calls: int
    usage: Mapping[str, Mapping[str, int]]
    cost_usd: float | None


Event = (
    RunStarted
    | MessageSent
    | MessagesShortened
    | RootReplied
    | CellStarted
    | CellFinished
    | SubCallsStarted
    | SubCallFinished
    | SubCallRetried
    | Spent
    | Notice
    | RunFinished
    | RunFailed
)
Emit = Callable[[Event], None]


def as_json(value: Any) -> Any:  # noqa: ANN401  # any field of an event
    """An event, or a part of one, as JSON values."""
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: as_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
