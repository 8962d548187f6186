"""Events of a run, with what a test does not care about filled in."""

from __future__ import annotations

from rlm import events
from rlm.events import Answer, CellCost, CellOutput
from rlm.usage import TokenUsage


def started(run_id, *, depth=0):
    return events.RunStarted(
        run_id=run_id,
        parent_id="r" if depth else None,
        parent_cell=1 if depth else None,
        depth=depth,
        question="q",
        context="a str",
        files=[],
        model="m",
        recursive_model="s",
        max_iterations=99 if depth else 4,
        settings={},
        version="0",
        scripted=True,
        starting_s=0.0,
    )


STARTED = started("r")


def said(content, *, run_id="r"):
    return events.MessageSent(run_id=run_id, role="user", content=content)


def replied(iteration, *, run_id="r", usage=None):
    return events.RootReplied(run_id=run_id, iteration=iteration, text="", usage=usage or TokenUsage(), latency_s=1)


def asked(count):
    return events.SubCallsStarted(run_id="r", iteration=1, cell=1, batch=1, count=count, model="s")


def finished(index, *, run_id="r", error=None):
    return events.SubCallFinished(
        run_id=run_id,
        iteration=1,
        cell=1,
        batch=1,
        index=index,
        prompt="p",
        text=None if error else "t",
        error=error,
        usage=TokenUsage(input_tokens=10, output_tokens=1),
        attempts=1,
        in_flight=7,
    )


def cell_begins(code, *, cell=1, run_id="r"):
    return events.CellStarted(run_id=run_id, iteration=1, cell=cell, code=code)


def cell_ends(stdout="", *, cell=1, run_id="r", error=None, final=None, calls=0):
    answer = None if final is None else Answer(text=final)
    return events.CellFinished(
        run_id=run_id,
        iteration=1,
        cell=cell,
        result=CellOutput(stdout=stdout, stderr="", value="", error=error, final=answer, late=[]),
        error=None,
        cost=CellCost(seconds=0.25, calls=calls),
    )
