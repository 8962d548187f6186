"""The scripted sub-LLM: finds the line of a text that shares the most telling words with a question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

NOT_FOUND = "NOT FOUND"
LONG_LINE_CHARS = 300  # a longer line is prose, and is taken sentence by sentence

_STOP_WORDS = """
    a about all also an and any are as asked at be been being but by can could did do does find following for from
    give had has have he her here hers him his how i if in into is it its just list many may me mention mentioned
    might more most much must my name named no not of on one or our out please said say says she should show so some
    state stated tell text than that the their them then there these they this those to under up us was we were what
    when where which who whom whose why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
_ENDINGS = (("'s", 2), ("ies", 4), ("ing", 4), ("ed", 4), ("es", 4), ("s", 3))  # with the letters that must remain
_ASKS_NUMBER = re.compile(r"\b(numbers?|how many|how much|count|amount|total|year)\b", re.IGNORECASE)


def answer(prompt: str) -> str:
    """The best line of the prompt's text, word for word, or `NOT FOUND`."""
    question, text = _parts(prompt)
    words = keywords(question)
    needed = max(min(2, len(words)), math.ceil(len(words) / 2))
    hits: list[tuple[str, str, list[str]]] = []
    lines_with: Counter[str] = Counter()
    for line in _lines(text) if words else ():
        low = line.lower()
        shared = [word for word in words if word in low and _pattern(word).search(low)]
        lines_with.update(shared)
        if len(shared) >= needed:
            hits.append((line, low, shared))
    if not hits:
        return NOT_FOUND
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    digits = asks_number(question)

    def score(hit: tuple[str, str, list[str]]) -> float:
        line, low, shared = hit
        rare = sum(1 + 1 / lines_with[word] for word in shared)
        return rare + sum(pair in low for pair in pairs) + (digits and any(map(str.isdigit, line)))

    return max(hits, key=score)[0].strip()


@lru_cache(maxsize=1024)
def keywords(question: str) -> tuple[str, ...]:
    """The stems of the question's words that tell something, in their order, each once, in lower case."""
    words = re.findall(r"\w+(?:'s)?", question.lower())
    return tuple(dict.fromkeys(_stem(word) for word in words if word not in _STOP and len(word) > 1))


def asks_number(question: str) -> bool:
    """Whether the answer is to be a number."""
    return _ASKS_NUMBER.search(question) is not None


def _stem(word: str) -> str:
    for ending, rest in _ENDINGS:
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= rest:
            return word[: -len(ending)]
    return word


@lru_cache(maxsize=4096)
def _pattern(stem: str) -> re.Pattern[str]:
    """A word that begins with the stem; a short stem or a number must be the whole word but for a plural s."""
    whole = len(stem) < 4 or stem.isdigit()
    return re.compile(rf"\b{re.escape(stem)}" + (r"s?\b" if whole else ""))


def _parts(prompt: str) -> tuple[str, str]:
    """The question and the text; in an unknown form the first or the last paragraph is the question."""
    question, mark, text = prompt.partition("\n\nText:\n")
    if mark:
        return question.removeprefix("Question:"), text
    first, _, rest = prompt.strip().partition("\n\n")
    before, _, last = prompt.strip().rpartition("\n\n")
    if "?" not in first and "?" in last:
        return last, before
    if rest:
        return first, rest
    question, _, text = first.partition("\n")
    return question, text


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if len(line) <= LONG_LINE_CHARS:
            yield line
        else:
            yield from re.split(r"(?<=[.!?])\s+", line)
