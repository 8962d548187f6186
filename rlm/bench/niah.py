"""The needle in a haystack: lines of random words with a magic number somewhere in the middle."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from rlm.context import Context

WORDS = ("blah", "random", "text", "data", "content", "information", "sample")
WORDS_PER_LINE = (3, 8)
QUESTION = "What is the magic number? Answer with the number alone."
NEEDLE = "The magic number is {number}"
DIFFERENT_LINES = 4_096
LINES_AT_ONCE = 65_536
_NUMBER = re.compile(r"(?<!\d)\d{7}(?!\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Haystack:
    """A haystack on disk, and what is to be found in it."""

    path: Path
    question: str
    expected: str


@dataclass(frozen=True, slots=True)
class HaystackLines:
    """The benchmark's haystack, made where it is read."""

    num_lines: int
    seed: int

    @property
    def expected(self) -> str:
        """The magic number in it."""
        return draw_number(random.Random(self.seed))

    def open(self, scratch: Path) -> Context:
        """Make it."""
        haystack = make_haystack(scratch / "haystack.txt", num_lines=self.num_lines, seed=self.seed)
        return Context(kind="text", files=(("haystack.txt", haystack.path),))


def make_haystack(path: Path, *, num_lines: int, seed: int) -> Haystack:
    """Write `num_lines` lines to `path`, the needle in the middle fifth of them. The same seed gives the same bytes.

    Memory does not grow with the number of lines.
    """
    rng = random.Random(seed)
    number = draw_number(rng)
    needle_at = rng.randint(num_lines * 2 // 5, max(num_lines * 2 // 5, num_lines * 3 // 5 - 1))
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(*WORDS_PER_LINE))) for _ in range(DIFFERENT_LINES)]
    with path.open("w", encoding="ascii", newline="\n") as file:
        for start in range(0, num_lines, LINES_AT_ONCE):
            some = rng.choices(lines, k=min(LINES_AT_ONCE, num_lines - start))
            if start <= needle_at < start + len(some):
                some[needle_at - start] = NEEDLE.format(number=number)
            file.write("\n".join(some) + "\n")
    return Haystack(path=path, question=QUESTION, expected=number)


def draw_number(rng: random.Random) -> str:
    """The magic number: the first thing that is drawn from the generator of a seed."""
    return str(rng.randint(1_000_000, 9_999_999))


def haystacks(num_lines: int, seed: int | None, count: int = 1) -> list[HaystackLines]:
    """Haystacks of seeds that follow one another, from a random one if none is given."""
    first = random.randrange(2**32) if seed is None else seed
    return [HaystackLines(num_lines, one) for one in range(first, first + count)]


def matches(answer: str | None, expected: str) -> bool:
    """Whether the answer names the expected number and no other of its length."""
    return set(_NUMBER.findall(answer or "")) == {expected}
