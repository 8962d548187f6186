import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm import Limits
from rlm.budget import Budget, estimated_tokens
from rlm.errors import LimitReachedError
from rlm.usage import Price, PriceList, TokenUsage

PRICES = PriceList({"m": Price(input=2e6, cached_input=1e6, output=4e6)})
USED = TokenUsage(input_tokens=10, cached_input_tokens=4, output_tokens=5)


def test_a_reservation_counts_until_it_is_settled():
    budget = Budget(Limits(max_calls=3, max_tokens=100), PRICES)
    budget.reserve("m", [40, 40])
    assert budget.left() == {"calls": 1, "tokens": 80, "usd": None, "seconds": None}
    budget.settle("m", 40, USED)
    budget.settle("m", 40, None)
    assert budget.left() == {"calls": 1, "tokens": 85, "usd": None, "seconds": None}


def test_a_batch_that_would_go_over_a_limit_is_refused_whole():
    budget = Budget(Limits(max_calls=3), PRICES)
    with pytest.raises(LimitReachedError) as caught:
        budget.reserve("m", [1, 1, 1, 1])
    assert (caught.value.kind, caught.value.used, caught.value.limit) == ("calls", 0, 3)
    budget.reserve("m", [1, 1, 1])
    assert budget.used_up().kind == "calls"


def test_a_child_spends_its_parents_too_and_sees_what_the_parent_has_left():
    parent = Budget(Limits(max_calls=5), PRICES)
    child = parent.child()
    child.reserve("m", [1] * 4)
    child.settle("m", 1, USED)
    assert (parent.sub_calls, child.sub_calls, parent.total) == (4, 4, USED)
    assert child.left()["calls"] == 1
    with pytest.raises(LimitReachedError):
        child.reserve("m", [1, 1])
    parent.reserve("m", [1])
    assert child.used_up().kind == "calls"


def test_dollars_are_reserved_for_the_prompt_and_settled_with_the_answer():
    budget = Budget(Limits(max_usd=100), PRICES)
    budget.reserve("m", [40])
    assert budget.left()["usd"] == 80
    budget.settle("m", 40, USED)
    assert budget.cost_usd == 6 * 2 + 4 * 1 + 5 * 4
    assert budget.left()["usd"] == 100 - 36


def test_an_unknown_price_makes_the_cost_unknown():
    budget = Budget(Limits(), PRICES)
    budget.spend("m", USED)
    assert budget.cost_usd == 36
    budget.spend("another", USED)
    assert budget.cost_usd is None


def test_time_is_a_limit_like_the_others():
    assert Budget(Limits(timeout_s=0), PRICES).used_up().kind == "time"
    assert Budget(Limits(timeout_s=60), PRICES).used_up() is None


def test_no_calls_allowed_does_not_end_a_run_that_makes_none():
    budget = Budget(Limits(max_calls=0), PRICES)
    assert budget.used_up() is None
    with pytest.raises(LimitReachedError):
        budget.reserve("m", [1])


@given(st.lists(st.tuples(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.booleans()), max_size=20))
def test_whatever_is_reserved_and_settled_nothing_is_left_set_aside(batches):
    parent = Budget(Limits(max_tokens=10_000_000, max_usd=1e12), PRICES)
    child = parent.child()
    for lengths, answered in batches:
        child.reserve("m", lengths)
        for length in lengths:
            child.settle("m", length, USED if answered else None)
    answers = sum(len(lengths) for lengths, answered in batches if answered)
    assert parent.left()["tokens"] == 10_000_000 - answers * USED.total_tokens
    assert parent.left()["usd"] == pytest.approx(1e12 - answers * 36)


@given(st.integers(0, 10**9))
def test_the_estimate_never_rounds_down(chars):
    assert estimated_tokens(chars) * 4 >= chars
