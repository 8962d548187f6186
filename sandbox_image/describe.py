"""What the root LM is told of the context: what it is and how large, its parts, a few samples; a small one whole.

The first line is a summary. What stems from the context itself is quoted, each line behind "> ", or is a repr, so
that it is not taken for words of ours.
"""

from __future__ import annotations

import heapq
import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

from sandbox_image.report import cap, is_larger

DESCRIPTION_CHARS = 4_000
SMALL_CHARS = 2_000
SAMPLE_LINES = 3
SAMPLE_CHARS = 200
NAME_CHARS = 80
NAMES_TOLD = 30
FOLDERS_TOLD = 10
KEYS_TOLD = 20
ITEMS_LOOKED_AT = 1_000
GOLDEN_RATIO = (5**0.5 - 1) / 2


def describe(value: object, json_chars: int | None = None) -> str:
    """The context in lines; `json_chars` is the length of the JSON it was read from."""
    summary = summary_of(value)
    if json_chars is not None and isinstance(value, list | dict):
        summary = f"{summary}; {json_chars:,} characters as JSON"
    whole = whole_of(value)
    details = whole if whole is not None else details_of(value)
    return cap("\n".join([summary, *details]), DESCRIPTION_CHARS)


def summary_of(value: object) -> str:
    """The kind and size of a value in one line."""
    if isinstance(value, str):
        lines = value.count("\n") + (value[-1:] not in ("", "\n"))
        return f"a str of {len(value):,} characters in {lines:,} lines"
    if is_files(value):
        return f"a dict of {len(value):,} names to str, {sum(map(len, value.values())):,} characters in all"
    if isinstance(value, dict):
        return f"a dict of {len(value):,} items"
    if isinstance(value, list):
        counts = Counter(type(item).__name__ for item in value)
        kinds = " and ".join(f"{count:,} {kind}" for kind, count in counts.most_common(4)) or "empty"
        texts = [item for item in value if isinstance(item, str)]
        size = f", {sum(map(len, texts)):,} characters in all" if texts else ""
        return f"a list of {len(value):,} items ({kinds}){size}"
    return f"{type(value).__name__}: {reprlib.repr(value)}"


def is_files(value: object) -> TypeGuard[dict[str, str]]:
    """Whether it is a dict of texts, as several files are."""
    return isinstance(value, dict) and bool(value) and all(isinstance(item, str) for item in value.values())


def whole_of(value: object) -> list[str] | None:
    """All of a small context; None when it is not small, or is told by its summary."""
    lines: list[str] = []
    if isinstance(value, str) and len(value) <= SMALL_CHARS:
        lines = quoted(value)
    elif is_files(value) and sum(len(name) + len(text) for name, text in value.items()) <= SMALL_CHARS:
        for name, text in value.items():
            lines += [f"{short(name)}, {len(text):,} characters:", *quoted(text)]
    elif isinstance(value, list | dict) and not is_larger(value, SMALL_CHARS):
        try:
            text = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            return None
        if len(text) > SMALL_CHARS:
            return None
        lines = quoted(text)
    if not lines or sum(map(len, lines)) + len(lines) > DESCRIPTION_CHARS - 2 * SAMPLE_CHARS:
        return None
    return ['All of it, each line behind "> ":', *lines]


def details_of(value: object) -> Iterator[str]:
    """What is inside of a larger context."""
    if isinstance(value, str):
        start = value[: SAMPLE_LINES * 10 * SAMPLE_CHARS].split("\n")[:SAMPLE_LINES]
        yield f'It begins, each line behind "> " and cut to {SAMPLE_CHARS} characters:'
        yield from quoted("\n".join(line[:SAMPLE_CHARS] for line in start))
    elif is_files(value):
        yield from files_told(value)
    elif isinstance(value, dict):
        yield "Its keys:"
        yield from keys_told(value)
    elif isinstance(value, list) and value:
        yield from items_told(value)


def files_told(files: dict[str, str]) -> Iterator[str]:
    """Each name and size; of many, the largest, and how much each folder holds."""
    if len(files) <= NAMES_TOLD:
        yield "Their names and characters:"
        told: Iterable[tuple[str, str]] = files.items()
    else:
        yield from folders_told(files)
        yield f"The {NAMES_TOLD} largest, with their characters:"
        told = heapq.nlargest(NAMES_TOLD, files.items(), key=lambda item: len(item[1]))
    for name, text in told:
        yield f"- {short(name)}: {len(text):,}"


def folders_told(files: dict[str, str]) -> Iterator[str]:
    """How many files, and how much, there is in each folder below the one that all share."""
    shared = os.path.commonprefix(list(files))  # noqa: RUF071  # by characters, so cut back to a folder
    shared = shared[: shared.rfind("/") + 1]
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, text in files.items():
        folder, slash, _ = name[len(shared) :].partition("/")
        place = shared + (folder + slash if slash else "")
        counts[place] += 1
        sizes[place] += len(text)
    if len(counts) == 1:
        return
    yield "By folder:"
    for place, size in sizes.most_common(FOLDERS_TOLD):
        yield f"- {short(place) if place else 'at the top'}: {counts[place]:,} files, {size:,} characters"
    if len(sizes) > FOLDERS_TOLD:
        yield f"- and {len(sizes) - FOLDERS_TOLD:,} more folders"


def keys_told(value: dict[str, object]) -> Iterator[str]:
    """Each key with what it holds."""
    for key in list(value)[:KEYS_TOLD]:
        yield f"- {short(key)}: {held(value[key])}"
    if len(value) > KEYS_TOLD:
        yield f"- and {len(value) - KEYS_TOLD:,} more keys"


def items_told(items: list[object]) -> Iterator[str]:
    """What the items have in common, and the first of them."""
    looked_at = sample_of(items)
    texts = [len(item) for item in looked_at if isinstance(item, str)]
    if texts:
        yield f"Its str have {min(texts):,} to {max(texts):,} characters{sampled(looked_at, items)}."
    dicts = [item for item in looked_at if isinstance(item, dict)]
    if dicts:
        yield f"The keys of its dict{sampled(looked_at, items)}:"
        yield from common_keys_told(dicts)
    yield f"The first item: {cap(short_repr(items[0], 2 * SAMPLE_CHARS), 4 * SAMPLE_CHARS)}"


def sample_of(items: list[object]) -> list[object]:
    """All of the items, or some from everywhere, without a period that the items may have too."""
    if len(items) <= ITEMS_LOOKED_AT:
        return items
    return [items[int(number * GOLDEN_RATIO % 1 * len(items))] for number in range(ITEMS_LOOKED_AT)]


def sampled(looked_at: Sequence[object], items: Sequence[object]) -> str:
    """A remark on how much was looked at, if not all was."""
    return f" (in a sample of {len(looked_at):,})" if len(looked_at) < len(items) else ""


def common_keys_told(dicts: list[dict[str, object]]) -> Iterator[str]:
    """Each key of the dicts with the types and sizes of what it holds."""
    counts: Counter[str] = Counter(key for item in dicts for key in item)
    for key, count in counts.most_common(KEYS_TOLD):
        values = [item[key] for item in dicts if key in item]
        kinds = "/".join(sorted({type(value).__name__ for value in values}))
        longest = max((len(value) for value in values if isinstance(value, str)), default=0)
        size = f" of up to {longest:,} characters" if longest else ""
        share = f", in {count:,} of {len(dicts):,}" if count < len(dicts) else ""
        yield f"- {short(key)}: {kinds}{size}{share}"
    if len(counts) > KEYS_TOLD:
        yield f"- and {len(counts) - KEYS_TOLD:,} more keys"


def held(value: object) -> str:
    """What one key of a dict holds: a short value itself, of others type and size."""
    if isinstance(value, str) and len(value) > NAME_CHARS:
        return f"str of {len(value):,} characters"
    if isinstance(value, list):
        kinds = ", ".join(sorted({type(item).__name__ for item in value}))
        return f"list of {len(value):,}{kinds and f' ({kinds})'}"
    if isinstance(value, dict):
        keys = ", ".join(map(short, list(value)[:5])) + (", ..." if len(value) > 5 else "")
        return f"dict of {len(value):,}{keys and f' (keys {keys})'}"
    return cap(short_repr(value), NAME_CHARS)


def quoted(text: str) -> list[str]:
    """The lines of a text, each behind a mark, with what is not printable escaped."""
    return [f"> {printable(line)}" for line in text.removesuffix("\n").split("\n")]


def printable(line: str) -> str:
    """The line with what is not printable as escapes."""
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def short(name: str) -> str:
    """A name as its repr, cut."""
    return repr(name) if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 3]!r}..."


def short_repr(value: object, max_chars: int = NAME_CHARS) -> str:
    """A repr in which nothing is longer than `max_chars`."""
    shortening = reprlib.Repr()
    shortening.maxstring = shortening.maxother = shortening.maxlong = max_chars
    shortening.maxdict = shortening.maxlist = 8
    shortening.maxlevel = 3
    try:
        return shortening.repr(value)
    except ValueError:  # an int of too many digits
        return type(value).__name__
