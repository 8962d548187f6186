"""What is said of a run that is over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlm.bench.niah import matches
from rlm.run import RunResult


def as_json(result: RunResult) -> dict[str, Any]:
    """What --json prints."""
    return {**asdict(result), "elapsed_s": round(result.elapsed_s, 3)}


def summary(result: RunResult) -> str:
    """The figures of a run in a line."""
    tokens_in = sum(used["input_tokens"] for used in result.usage.values())
    tokens_out = sum(used["output_tokens"] for used in result.usage.values())
    cost = "cost unknown" if result.cost_usd is None else f"${result.cost_usd:.4f}"
    stopped = "" if result.stopped_by == "answer" else f", cut short by {result.stopped_by}"
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
