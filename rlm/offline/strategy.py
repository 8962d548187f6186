"""What the scripted root LM writes into its cells: each function here is sent to the REPL as source.

So they use nothing but the imports here and each other. They print, as that is what a root LM gets to see.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise


def look(context: object) -> None:
    """Print the context's type, its sizes and a sample."""

    def brief(value: object) -> str:
        if isinstance(value, str):
            return f"{len(value):,} chars, {value.count(chr(10)) + 1:,} lines, begins {value[:120]!r}"
        return f"{type(value).__name__} of {len(value):,}" if isinstance(value, (list, dict)) else repr(value)

    print(type(context).__name__, "-", brief(context))  # noqa: T201
    sample = context.items() if isinstance(context, dict) else enumerate(context if isinstance(context, list) else ())
    for key, value in islice(sample, 5):
        print(f"  {key}: {brief(value)}")  # noqa: T201


def pieces(value: object, name: str = "") -> Iterator[str]:
    """Every text in the context, one at a time."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from pieces(item, name)
    elif isinstance(value, dict):
        are_files = not name and all(isinstance(item, str) for item in value.values())
        yield from value.values() if are_files else record(value, name)
    elif value is not None:
        yield f"{name}: {value}" if name else str(value)


def record(value: dict[str, object], name: str) -> Iterator[str]:
    """A JSON object: its plain values as one line of JSON, or as lines of their own if they are long; then the rest."""
    plain = {key: item for key, item in value.items() if not isinstance(item, (list, dict))}
    line = json.dumps(plain, ensure_ascii=False)
    if plain and len(line) <= 500:
        yield f"{name}: {line}" if name else line
    elif plain:
        yield from (f"{key}: {item}" for key, item in plain.items())
    for key, item in value.items():
        if isinstance(item, (list, dict)):
            yield from pieces(item, f"{name}.{key}" if name else key)


def chunks(context: object, size: int = 4000, overlap: int = 200) -> Iterator[str]:
    """Texts of up to `size` chars that end at lines; neighbours in a long text share about `overlap` chars."""
    short: list[str] = []
    held = 0
    for text in pieces(context):
        if held + len(text) > size and short:
            yield "\n".join(short)
            short, held = [], 0
        if len(text) <= size:
            short.append(text)
            held += len(text) + 1
            continue
        start = end = 0
        while end < len(text):
            end = min(start + size, len(text))
            if end < len(text):
                end = text.rfind("\n", start + size // 2, end) + 1 or end
            yield text[start:end]
            start = text.rfind("\n", end - overlap, end - 1) + 1 or end - overlap
    if short:
        yield "\n".join(short)


def score(text: str, words: Sequence[str], *, wants_number: bool) -> int:
    """How many of the words the text's best line holds; more if they are neighbours, or there is a wanted number."""
    low = text.lower()
    held = [word for word in words if word in low]
    pairs = [f"{first} {second}" for first, second in pairwise(held)]
    best = len(held[:1])
    for line in low.split("\n") if len(held) > 1 or wants_number else ():
        points = sum(word in line for word in held) + sum(pair in line for pair in pairs)
        if points and points >= best:
            best = max(best, points + (wants_number and re.search(r"\d", line) is not None))
    return best


def fan_out(
    context: object,
    question: str,
    words: Sequence[str],
    query: Callable[..., list[object]],
    *,
    most: int,
    wants_number: bool,
) -> tuple[list[str], list[object]]:
    """Ask a sub-LLM about every chunk, or, where those are more than `most`, about up to 100 whose words fit best."""
    every = chunks(context)
    parts = list(islice(every, most + 1))
    if len(parts) > most:
        parts = heapq.nlargest(
            min(most, 100), chain(parts, every), key=lambda part: score(part, words, wants_number=wants_number)
        )
    answers = query([f"Question: {question}\n\nText:\n{part}" for part in parts], return_exceptions=True)
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    if failed and len(failed) == len(answers):
        raise failed[0]
    found = sum(isinstance(answer, str) and answer != "NOT FOUND" for answer in answers)
    print(f"{len(parts)} chunks asked, {len(failed)} failed, {found} with a candidate")  # noqa: T201
    return parts, answers


def verify(parts: list[str], answers: list[object], words: Sequence[str], *, wants_number: bool) -> str | None:
    """The best candidate that really stands in the chunk it came from: by words it shares, then by votes."""
    votes: Counter[str] = Counter()
    for part, answer in zip(parts, answers):  # noqa: B905
        if isinstance(answer, str) and answer != "NOT FOUND" and answer in part:
            votes[answer] += 1
    if not votes:
        print("no candidate")  # noqa: T201
        return None

    def rank(line: str) -> tuple[int, int]:
        return score(line, words, wants_number=wants_number), votes[line]

    best = max(votes, key=rank)
    for line in sorted(votes, key=rank, reverse=True)[:5]:
        print(f"{votes[line]} x, score {rank(line)[0]}: {line[:200]}")  # noqa: T201
    numbers = re.findall(r"(?<![\w.,])[-+]?\d[\d,]*(?:\.\d+)?(?!\w)", best) if wants_number else []
    best = numbers[0].strip(",") if len(numbers) == 1 else best
    print("best:", " ".join(best.split()))  # noqa: T201
    return best
