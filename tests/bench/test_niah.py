import time
import tracemalloc

import pytest

from rlm.bench.niah import make_haystack, matches


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first = make_haystack(tmp_path / "first", num_lines=70_000, seed=5)
    second = make_haystack(tmp_path / "second", num_lines=70_000, seed=5)
    other = make_haystack(tmp_path / "other", num_lines=70_000, seed=6)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.expected == second.expected != other.expected
    assert first.path.read_bytes() != other.path.read_bytes()


@pytest.mark.parametrize("num_lines", [1, 2, 3, 10, 65_535, 65_536, 65_537, 200_000])
def test_there_are_exactly_so_many_lines_and_one_needle_in_the_middle_of_them(tmp_path, num_lines):
    haystack = make_haystack(tmp_path / "haystack", num_lines=num_lines, seed=1)
    text = haystack.path.read_text("ascii")
    assert text.endswith("\n")
    lines = text[:-1].split("\n")
    assert len(lines) == num_lines
    needles = [number for number, line in enumerate(lines) if line == f"The magic number is {haystack.expected}"]
    assert len(needles) == 1
    assert num_lines * 2 // 5 <= needles[0] <= num_lines * 3 // 5
    assert sum(any(map(str.isdigit, line)) for line in lines) == 1
    assert all(line.strip() for line in lines)


def test_needles_of_many_seeds_lie_apart_and_their_numbers_have_seven_digits(tmp_path):
    haystacks = [make_haystack(tmp_path / str(seed), num_lines=1_000, seed=seed) for seed in range(30)]
    assert all(len(haystack.expected) == 7 for haystack in haystacks)
    places = {haystack.path.read_text("ascii").split("The magic")[0].count("\n") for haystack in haystacks}
    assert len(places) > 20


def test_memory_does_not_grow_with_the_lines(tmp_path):
    def peak_bytes(num_lines: int) -> int:
        tracemalloc.start()
        make_haystack(tmp_path / "haystack", num_lines=num_lines, seed=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak_bytes(520_000) < 1.2 * peak_bytes(130_000)


def test_time_grows_no_faster_than_the_lines(tmp_path):
    def seconds(num_lines: int) -> float:
        times = []
        for _ in range(3):
            started = time.process_time()
            make_haystack(tmp_path / "haystack", num_lines=num_lines, seed=1)
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(800_000) < 2 * 4 * seconds(200_000)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ("1234567", True),
        ("The magic number is 1234567.", True),
        ("**1234567** (said twice: 1234567)", True),
        ("It is 1234567, found among 100000 lines", True),
        ("1234567 or 7654321", False),
        ("12345678", False),
        ("7654321", False),
        ("1,234,567", False),
        ("I do not know", False),
        ("", False),
        (None, False),
    ],
)
def test_an_answer_matches_when_it_names_the_number_and_no_other(answer, match):
    assert matches(answer, "1234567") is match
