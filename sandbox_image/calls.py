"""What a cell may ask the host: sub-LLMs, child runs, the budget.

No `from __future__ import annotations`: `help(llm_query)` shows the annotations as they are.
"""

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sandbox_image.channel import Channel
from sandbox_image.clock import CellClock

MAX_PROMPTS = 100_000  # of one call
MAX_CHILDREN = 1_000
MAX_CALL_MIB = 256  # as Python holds it: a text takes 1, 2 or 4 bytes a character, as its widest one needs
MAX_MODEL_CHARS = 200
CUT_MARK = "\n[cut: the sub-LLM reached its output limit]"

F = TypeVar("F", bound=Callable[..., object])
Outcome = dict[str, Any]  # {"text"} with {"cut"}, or {"error"} with {"index", "attempts", "budget"}


class SubLLMError(RuntimeError):
    """A call to a sub-LLM, or a child run, failed for good. The message holds the provider's words.

    `index` is the prompt's place in its batch, `attempts` the number of times it was tried, and `answers` what
    the batch's other prompts were answered: a list in the order of the prompts, None where there is no answer.
    """

    __module__ = "__main__"  # so that a traceback names it as a cell does

    def __init__(self, message: str, index: int = 0, attempts: int = 0, answers: Iterable[str | None] = ()) -> None:
        super().__init__(message)
        self.index = index
        self.attempts = attempts
        self.answers = list(answers)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.index, self.attempts, self.answers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class BudgetError(SubLLMError):
    """The call was not made: it would cost more than what is left of the run's budget."""

    __module__ = "__main__"


class Calls:
    """The calls under way. Any thread may ask, and waits for its answer."""

    def __init__(self, channel: Channel, clock: CellClock, cell: Callable[[], int]) -> None:
        self._channel = channel
        self._clock = clock
        self._cell = cell
        self._inboxes: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._last = 0
        self._lock = threading.Lock()

    def ask(self, kind: str, texts: list[str], model: str | None = None) -> list[Outcome]:
        """Send the call and wait. One outcome for each item.

        Raises: SubLLMError when the host could not answer at all; ValueError when the texts are too large.
        """
        check_size(texts)
        inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        cell = self._cell()
        with self._lock:
            self._last += 1
            call = self._last
            self._inboxes[call] = inbox
        try:
            with self._clock.paused(cell):
                self._channel.send("call", texts, kind=kind, id=call, cell=cell, model=model)
                reply = inbox.get()
        finally:
            del self._inboxes[call]
        if "failed" in reply:
            raise SubLLMError(reply["failed"])
        outcomes: list[Outcome] = reply["outcomes"]
        return outcomes

    def deliver(self, reply: dict[str, Any]) -> None:
        """The host's answer, handed to the thread that waits for it."""
        if inbox := self._inboxes.get(reply["id"]):
            inbox.put(reply)


def what_a_cell_may_ask(calls: Calls, max_prompt_chars: int | None) -> dict[str, object]:
    """The functions that make calls, by the names that cells know."""

    def llm_query(prompt: str, model: str | None = None) -> str:
        """Ask a sub-LLM one question and return its answer.

        The sub-LLM sees this prompt and nothing else: put the question and the text to read into it.
        Raises SubLLMError when it fails for good, BudgetError when the budget does not allow the call.
        """
        text = checked_prompt(prompt, "llm_query: the prompt", max_prompt_chars)
        answers: list[str] = results(calls.ask("llm", [text], checked_model(model)))
        return answers[0]

    def parallel_llm_query(
        prompts: Iterable[str],
        model: str | None = None,
        return_exceptions: bool = False,  # noqa: FBT001, FBT002
    ) -> list[str]:
        """Ask sub-LLMs all prompts at once: a list of answers, in the order of the prompts.

        A prompt that fails for good raises SubLLMError, whose `answers` holds what the others were answered.
        With return_exceptions=True the error takes the answer's place in the list, and nothing is raised.
        """
        texts = checked_prompts("parallel_llm_query", prompts, max_prompt_chars, MAX_PROMPTS)
        model = checked_model(model)
        return results(calls.ask("llm", texts, model), keep_errors=return_exceptions) if texts else []

    def rlm_query(prompt: str, context: object = None) -> str:
        """Let another LLM, with a REPL of its own that holds `context`, answer the prompt.

        The context is a str or any JSON value. For hard sub-questions over much text; slower than llm_query.
        Raises SubLLMError when the child run ends without an answer.
        """
        text = checked_prompt(prompt, "rlm_query: the prompt", max_prompt_chars)
        answers: list[str] = results(calls.ask("rlm", child_question(text, context)))
        return answers[0]

    def rlm_query_batched(
        prompts: Iterable[str],
        contexts: Iterable[object] | None = None,
        return_exceptions: bool = False,  # noqa: FBT001, FBT002
    ) -> list[str]:
        """rlm_query for many: `contexts` has one context for each prompt. A list of answers, in order.

        Fails as parallel_llm_query does.
        """
        texts = checked_prompts("rlm_query_batched", prompts, max_prompt_chars, MAX_CHILDREN)
        given = [None] * len(texts) if contexts is None else list(contexts)
        if len(given) != len(texts):
            raise ValueError(f"rlm_query_batched: {len(texts)} prompts but {len(given)} contexts")
        items = [part for pair in zip(texts, given, strict=True) for part in child_question(*pair)]
        return results(calls.ask("rlm", items), keep_errors=return_exceptions) if items else []

    def budget() -> dict[str, Any]:
        """What the run has spent and what is left of its budget, a dict; None is without limit."""
        (spent,) = calls.ask("budget", [])
        if "error" in spent:
            raise SubLLMError(spent["error"])
        return spent

    return {
        "llm_query": public(llm_query),
        "parallel_llm_query": public(parallel_llm_query),
        "llm_query_batched": parallel_llm_query,
        "rlm_query": public(rlm_query),
        "rlm_query_batched": public(rlm_query_batched),
        "budget": public(budget),
        "SubLLMError": SubLLMError,
        "BudgetError": BudgetError,
    }


def public(function: F) -> F:
    """The function under the name that cells know, in help and errors too."""
    function.__qualname__ = function.__name__
    function.__module__ = "__main__"
    return function


def checked_prompts(function: str, prompts: Iterable[str], max_chars: int | None, most: int) -> list[str]:
    """A batch's prompts.

    Raises: TypeError, ValueError for what cannot be sent; nothing has been sent then.
    """
    if isinstance(prompts, str | bytes | dict):
        raise TypeError(f"{function} takes a list of prompts, not one {type(prompts).__name__}")
    texts: list[str] = []
    for index, prompt in enumerate(prompts):
        if index == most:
            raise ValueError(f"{function}: one call may have {most:,} prompts, and this one has more")
        texts.append(checked_prompt(prompt, f"{function}: the prompt at index {index}", max_chars))
    return texts


def checked_prompt(prompt: object, what: str, max_chars: int | None) -> str:
    """One prompt as a plain str.

    Raises: TypeError when it is none; ValueError when it is longer than a sub-LLM takes.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{what} must be a str, not {type(prompt).__name__}: {advice(prompt)}")
    text = str.__str__(prompt)
    if max_chars is not None and len(text) > max_chars:
        raise ValueError(
            f"{what} has {len(text):,} characters, and a sub-LLM takes {max_chars:,}: cut the text into chunks and "
            "ask about each. Nothing was sent"
        )
    return text


def advice(prompt: object) -> str:
    """What to pass in place of it."""
    if prompt is None:
        return "there is no text to ask about"
    if isinstance(prompt, bytes):
        return "decode the bytes first"
    if isinstance(prompt, list | tuple | dict):
        return "write what it holds into one text, or ask a list of prompts with parallel_llm_query"
    return "write it into a text with the question, like an f-string"


def checked_model(model: object) -> str | None:
    """The model's name; None is the run's own.

    Raises: TypeError, ValueError when it cannot be one.
    """
    if model is None:
        return None
    if not isinstance(model, str):
        raise TypeError(f"model must be the name of a model, a str, not {type(model).__name__}")
    if len(model) > MAX_MODEL_CHARS:
        raise ValueError(f"model must be the name of a model: this has {len(model):,} characters")
    return str.__str__(model)


def child_question(prompt: str, context: object) -> list[str]:
    """A question for a child run in three texts: its context as it is, or as JSON, which the host need not read."""
    if isinstance(context, str):
        return [prompt, str.__str__(context), "text"]
    return [prompt, json.dumps(context), "json"]


def check_size(texts: list[str]) -> None:
    """Whether one call may carry the texts.

    Raises: ValueError when it may not.
    """
    size_mib = sum(map(sys.getsizeof, texts)) >> 20
    if size_mib > MAX_CALL_MIB:
        raise ValueError(f"one call may carry {MAX_CALL_MIB} MB; this one has {size_mib} MB")


def results(outcomes: list[Outcome], *, keep_errors: bool = False) -> list[Any]:
    """The answers of a batch; the first failure is raised, unless errors are to take the answers' places."""
    found: list[str | SubLLMError] = []
    errors: list[SubLLMError] = []
    for place, outcome in enumerate(outcomes):
        if "error" in outcome:
            errors.append(error_of(outcome, place))
            found.append(errors[-1])
        else:
            found.append(outcome["text"] + (CUT_MARK if outcome.get("cut") else ""))
    if not errors or keep_errors:
        return found
    error = errors[0]
    error.answers = [None if isinstance(item, SubLLMError) else item for item in found]
    if len({outcome.get("error") for outcome in outcomes}) > 1:
        others = "the others' answers are e.answers, after `except SubLLMError as e`"
        others = others if len(errors) < len(outcomes) else "none was answered"
        failed = f"{len(errors)} of {len(outcomes)} prompts failed, the first at index {error.index}"
        error.args = (f"{error} [{failed}; {others}]",)
    raise error


def error_of(outcome: Outcome, place: int) -> SubLLMError:
    """The exception that tells of one failed prompt, and how often it was tried."""
    attempts = outcome.get("attempts", 0)
    tried = f" (tried {attempts} times)" if attempts > 1 else ""
    kind = BudgetError if outcome.get("budget") else SubLLMError
    return kind(f"{outcome['error']}{tried}", outcome.get("index", place), attempts)
