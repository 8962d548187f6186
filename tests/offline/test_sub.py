import random
import time

import pytest

from rlm.offline.sub import NOT_FOUND, answer, asks_number, keywords

LEASE = """LEASE AGREEMENT
This agreement is about the flat at 12 Mill Road.
The rent is 900 pounds a month.
The lease was signed by Ada Smith on 3 May 2019.
The lease ends after five years."""


def ask(question, text):
    return answer(f"Question: {question}\n\nText:\n{text}")


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ("Who signed the lease?", "The lease was signed by Ada Smith on 3 May 2019."),
        ("How much is the rent a month?", "The rent is 900 pounds a month."),
        ("Which flats is the agreement about?", "This agreement is about the flat at 12 Mill Road."),
        ("Who is the king of Spain?", NOT_FOUND),
        ("What is it?", NOT_FOUND),
        ("", NOT_FOUND),
    ],
)
def test_the_line_that_shares_the_telling_words_is_the_answer(question, line):
    assert ask(question, LEASE) == line


def test_a_sentence_of_a_long_paragraph_is_quoted_alone():
    filler = "Nothing of note was seen that day, said the keeper. " * 20
    assert ask("Where is the golden key?", f"{filler}The golden key lies under the mat. {filler}") == (
        "The golden key lies under the mat."
    )


def test_words_inside_other_words_do_not_count():
    assert ask("Where is the cat?", "the category of concatenation") == NOT_FOUND
    assert ask("Where are the cats?", "One cat is on the mat") == "One cat is on the mat"


def test_a_line_with_digits_wins_where_a_number_is_asked_for():
    text = "The magic number is a secret\nThe magic number is 1234567"
    assert ask("What is the magic number?", text) == "The magic number is 1234567"


@pytest.mark.parametrize(
    "prompt",
    [
        f"Who signed the lease?\n\n{LEASE}",
        f"{LEASE}\n\nWho signed the lease?",
        f"Who signed the lease?\n{LEASE}",
        f"Question: Who signed the lease?\n\nText:\n{LEASE}",
    ],
)
def test_prompts_of_other_forms_are_understood(prompt):
    assert "Ada Smith" in answer(prompt)


@pytest.mark.parametrize("prompt", ["", "\n\n", "?", "\ud83d", "Question: \n\nText:\n", "İ\n\nİİİ x" * 50])
def test_any_prompt_gets_an_answer(prompt):
    assert isinstance(answer(prompt), str)


def test_keywords_are_stems_in_order_without_stop_words():
    assert keywords("Who signed the leases of Ada's cats in 2019?") == ("sign", "leas", "ada", "cat", "2019")
    assert asks_number("How many leases are there?")
    assert not asks_number("Who signed the lease?")


def test_ten_thousand_chars_take_about_a_millisecond():
    rng = random.Random(1)
    words = ["magic", "number", "table", "river", "window", "paper", "stone"]
    text = "\n".join(" ".join(rng.choices(words, k=8)) for _ in range(220))
    assert len(text) > 9_000
    times = []
    for turn in range(5):
        start = time.perf_counter()
        ask(f"What is the magic number of stone {turn}?", text)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003
