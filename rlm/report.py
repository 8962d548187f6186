"""What is said of a run that is over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlm.bench.niah import matches
from rlm.run import RunResult

ENDED = {"answer": "", "error": ", then it failed", "interrupted": ", then interrupted"}
MORE = {
    "iterations": "a higher --max-iterations",
    "calls": "a higher --max-calls",
    "tokens": "a higher --max-tokens",
    "usd": "a higher --max-usd",
    "time": "a higher --timeout-s",
    "context_window": "a --model that takes more",
}


def as_json(result: RunResult, error: str | None = None) -> dict[str, Any]:
    """What --json prints; `error` is why there is no answer, or None."""
    if error is None and result.answer is None:
        error = no_answer(result)
    return {**asdict(result), "elapsed_s": round(result.elapsed_s, 3), "error": error}


def no_answer(result: RunResult) -> str:
    """Why a run that ended in order has no answer, and what to try."""
    more = MORE.get(result.stopped_by)
    return f"there is no answer: cut short by {result.stopped_by}" + (f"; try {more}, or ask for less" if more else "")


def summary(result: RunResult) -> str:
    """The figures of a run in a line."""
    tokens_in = sum(used["input_tokens"] for used in result.usage.values())
    tokens_out = sum(used["output_tokens"] for used in result.usage.values())
    cost = "cost unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"
    stopped = ENDED.get(result.stopped_by, f", cut short by {result.stopped_by}")
    return (
        f"{result.elapsed_s:.1f} s, {result.iterations} iterations, {result.sub_calls:,} sub-calls, "
        f"{tokens_in:,} tokens in, {tokens_out:,} out, {cost}{stopped}"
    )


def niah_as_json(result: RunResult, *, expected: str, seed: int) -> dict[str, Any]:
    """What `rlm niah --json` prints."""
    return {**as_json(result), "expected": expected, "match": matches(result.answer, expected), "seed": seed}


def niah_lines(result: RunResult, *, expected: str, seed: int) -> str:
    """What `rlm niah` and `modal run modal_app.py` print."""
    return (
        f"Result: {'(no answer)' if result.answer is None else result.answer}\n"
        f"Expected: {expected}\n"
        f"Match: {matches(result.answer, expected)}\n"
        f"Summary: {summary(result)}, seed {seed}"
    )
