"""The scripted root LM: looks at the context, fans out to sub-LLMs, verifies what they found, answers.

It keeps nothing between requests. Each cell names its step, and prints a mark when it has come to its end, so the
conversation tells what to do next: the following step, or, where a cell failed or its REPL is gone, the fan-out anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import cache

from rlm.offline import strategy
from rlm.offline.sub import asks_number, keywords

NOTHING_FOUND = "I could not find it."
TRIES = 3

_QUESTION = re.compile(r"\AQuestion: (.*)\n\n(?:Reply with one|Look first: print) ", re.DOTALL)
_STEP = re.compile(r"^# step: (\w+)$", re.MULTILINE)
_IMPORTS = re.compile(r"^(?:import|from (?!__future__)).+$", re.MULTILINE)
_BEST = re.compile(r"^best: (.+)$", re.MULTILINE)
_ANSWER_NOW = re.compile(r"answer now|last request", re.IGNORECASE)
_NEXT_STEP = {"look": "fan_out", "fan_out": "verify", "verify": "answer"}


def reply(messages: Sequence[tuple[str, str]]) -> str:
    """The root LM's next reply to a conversation of (role, text): prose and a cell, or a last `FINAL(...)`."""
    steps: list[str] = []
    output = ""
    for role, text in messages:
        if role == "assistant" and (found := _STEP.search(text)):
            steps.append(found[1])
            output = ""
        else:
            output += f"{text}\n"
    if not steps:
        return _reply_with("look", messages)
    done = f"done: {steps[-1]}" in output
    if _ANSWER_NOW.search(output) or (not done and steps.count("fan_out") >= TRIES):
        best = _best(messages)
        return f"FINAL({best!r})" if re.search(r"[()'\"\\]", best) else f"FINAL({best})"
    return _reply_with(_NEXT_STEP.get(steps[-1], "fan_out") if done else "fan_out", messages)


def _reply_with(step: str, messages: Sequence[tuple[str, str]]) -> str:
    question = _question(messages)
    words, number = list(keywords(question)), f"wants_number={asks_number(question)}"
    match step:
        case "look":
            prose, code = "I look at the context first.", f"{_source('look')}\nlook(context)"
        case "fan_out":
            prose = "I cut the context into chunks and ask a sub-LLM about each."
            code = f"{_source('pieces', 'record', 'chunks', 'score', 'fan_out')}\n"
            code += "calls = budget()['calls']['left']\n"
            code += f"question = {question!r}\nmost = 400 if calls is None else min(400, int(calls))\n"
            code += f"parts, answers = fan_out(context, question, {words!r}, parallel_llm_query, most=most, {number})"
        case "verify":
            prose = "I check that the candidates stand in the context, and take the best."
            code = f"{_source('score', 'verify')}\n"
            code += f"result = verify(parts, answers, {words!r}, {number})\n"
            code += f"result = result or {NOTHING_FOUND!r}"
        case _:
            return '`result` holds the answer.\n\n```repl\n# step: answer\nFINAL_VAR("result")\n```'
    # two arguments, so that the cell's source does not hold the mark
    return f'{prose}\n\n```repl\n# step: {step}\n{code}\nprint("done:", "{step}")\n```'


@cache
def _source(*names: str) -> str:
    functions = "\n\n".join(inspect.getsource(getattr(strategy, name)) for name in names)
    imports = "\n".join(_IMPORTS.findall(inspect.getsource(strategy)))
    return f"{imports}\n\n\n" + re.sub(r"  # noqa: \w+$", "", functions, flags=re.MULTILINE)


def _question(messages: Sequence[tuple[str, str]]) -> str:
    texts = [text for role, text in messages if role == "user"]
    tagged = (found[1] for text in texts if (found := _QUESTION.search(text)))
    return next(tagged, texts[0] if texts else "").strip()


def _best(messages: Sequence[tuple[str, str]]) -> str:
    found = [best for role, text in messages if role != "assistant" for best in _BEST.findall(text)]
    return found[-1] if found else NOTHING_FOUND
