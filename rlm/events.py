"""What can happen in a run. A run log is a sequence of these, and so is what a live view shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, cast

from rlm.usage import TokenUsage

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

_LONE_SURROGATE = re.compile(r"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")  # our own JSON has no escape of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A final answer as text; where it was another value than a str, as that value's JSON."""

    text: str
    is_json: bool = False

    @property
    def value(self) -> JsonValue:
        """What was given: the text, or the value that it is the JSON of. JSON that is none stays text."""
        return value_of(self.text) if self.is_json else self.text


def value_of(text: str) -> JsonValue:
    """The value that JSON stands for, or the text where it is none: a cell may claim what it likes."""
    if _LONE_SURROGATE.search(text):
        return text
    try:
        return cast("JsonValue", json.loads(text, parse_constant=_refuse, parse_float=_finite))
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError("a number beyond all floats")
    return value


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
    """Variables it made or rebound, each in a few words: "rows: list of 120"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run, or a child run (`depth` 1 and more), begins to ask; `starting_s` are the seconds its REPL took."""

    run_id: str
    parent_id: str | None
    depth: int
    question: str
    context: str
    model: str
    recursive_model: str
    max_iterations: int
    scripted: bool
    starting_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RootReplied:
    """The root LM has answered; `latency_s` in seconds."""

    run_id: str
    iteration: int
    text: str
    usage: TokenUsage
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted:
    """A cell begins to run."""

    run_id: str
    iteration: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFinished:
    """A cell has run; `result` is None where the REPL died of it, and `error` tells how."""

    run_id: str
    iteration: int
    result: CellOutput | None
    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallsStarted:
    """A cell asked `count` prompts of a sub-LLM."""

    run_id: str
    batch: int
    count: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubCallFinished:
    """A sub-LLM has answered, or failed for good (`error`)."""

    run_id: str
    batch: int
    index: int
    prompt: str
    text: str | None
    error: str | None
    usage: TokenUsage
    attempts: int
    in_flight: int


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
    """The run has ended in order. `answer` None: there is none."""

    run_id: str
    answer: str | None
    stopped_by: str
    iterations: int
    usage: Mapping[str, Mapping[str, int]]
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """The machinery failed, or the run was stopped from outside."""

    run_id: str
    error: str


Event = (
    RunStarted
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
