import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from rlm import Limits
from rlm.budget import Budget, estimated_tokens
from rlm.errors import LimitReachedError
from rlm.usage import Price, PriceList, TokenUsage

PRICES = PriceList({"m": Price(input=2e6, cached_input=1e6, output=4e6)})
USED = TokenUsage(input_tokens=10, cached_input_tokens=4, output_tokens=5)


def test_a_reservation_counts_until_it_is_settled():
    budget = Budget(Limits(max_calls=3, max_tokens=100), PRICES)
    with budget.reserve("m", [40, 40]) as reserved:
        assert budget.left() == {"calls": 1, "tokens": 80, "usd": None, "seconds": None}
        for index in range(2):
            reserved.begin(index)
        reserved.settle(0, USED)
        reserved.settle(1, None)
        assert budget.left() == {"calls": 1, "tokens": 85, "usd": None, "seconds": None}


def test_what_is_not_settled_is_given_back_but_calls_that_had_begun_count():
    budget = Budget(Limits(max_calls=10, max_tokens=100), PRICES)
    with budget.reserve("m", [40, 40, 40]) as reserved:
        reserved.begin(0)
        reserved.begin(1)
        reserved.settle(1, USED)
    assert budget.left() == {"calls": 8, "tokens": 85, "usd": None, "seconds": None}


def test_nothing_is_settled_twice():
    budget = Budget(Limits(), PRICES)
    with budget.reserve("m", [40]) as reserved:
        reserved.begin(0)
        reserved.settle(0, USED)
        with pytest.raises(KeyError):
            reserved.settle(0, USED)
    assert budget.total == USED


def test_a_batch_that_would_go_over_a_limit_is_refused_whole():
    budget = Budget(Limits(max_calls=3), PRICES)
    with pytest.raises(LimitReachedError, match="4 calls asked for, 3 left of the run's limit of 3 calls") as caught:
        budget.reserve("m", [1, 1, 1, 1])
    assert (caught.value.kind, caught.value.used, caught.value.limit, caught.value.asked) == ("calls", 0, 3, 4)
    budget.reserve("m", [1, 1, 1])
    assert budget.used_up().kind == "calls"


def test_a_child_spends_its_parents_too_and_sees_what_the_parent_has_left():
    parent = Budget(Limits(max_calls=5), PRICES)
    child = parent.child()
    reserved = child.reserve("m", [1] * 4)
    reserved.settle(0, USED)
    assert (parent.sub_calls, child.sub_calls, parent.total) == (4, 4, USED)
    assert child.left()["calls"] == 1
    with pytest.raises(LimitReachedError):
        child.reserve("m", [1, 1])
    parent.reserve("m", [1])
    assert child.used_up().kind == "calls"


def test_a_childs_replies_are_calls_and_the_top_runs_are_not():
    parent = Budget(Limits(max_calls=1), PRICES)
    with parent.reserve_reply("m", 40) as reserved:
        reserved.begin(0)
    assert parent.sub_calls == 0
    with parent.child().reserve_reply("m", 40) as reserved:
        reserved.begin(0)
    assert parent.sub_calls == 1
    with pytest.raises(LimitReachedError):
        parent.child().reserve_reply("m", 40)


def test_only_the_last_reply_of_the_top_run_may_go_over_a_limit():
    parent = Budget(Limits(max_tokens=5), PRICES)
    for refused in (parent.reserve_reply, parent.child().reserve_reply, parent.child().reserve_last_reply):
        with pytest.raises(LimitReachedError, match="10 tokens asked for, 5 left"):
            refused("m", 40)
    with parent.reserve_last_reply("m", 40) as reserved:
        reserved.settle(0, USED)
    assert parent.total == USED


def test_dollars_are_reserved_for_the_prompt_and_settled_with_the_answer():
    budget = Budget(Limits(max_usd=100), PRICES)
    reserved = budget.reserve("m", [40])
    assert budget.left()["usd"] == 80
    reserved.settle(0, USED)
    assert budget.cost_usd == 6 * 2 + 4 * 1 + 5 * 4
    assert budget.left()["usd"] == 100 - 36


def test_an_unknown_price_makes_the_cost_unknown():
    budget = Budget(Limits(), PRICES)
    budget.reserve("m", [1]).settle(0, USED)
    assert budget.cost_usd == 36
    budget.reserve("another", [1]).settle(0, USED)
    assert budget.cost_usd is None
    assert budget.account()["usd"] == {"spent": None, "left": None}


def test_what_was_spent_is_known_without_a_limit():
    budget = Budget(Limits(), PRICES)
    budget.reserve("m", [40]).settle(0, USED)
    account = budget.account()
    assert account["seconds"].pop("spent") >= 0
    assert account == {
        "calls": {"spent": 1, "left": None},
        "tokens": {"spent": 15, "left": None},
        "usd": {"spent": 36.0, "left": None},
        "seconds": {"left": None},
    }


def test_what_is_measured_is_what_was_spent_since():
    budget = Budget(Limits(), PRICES)
    budget.reserve("m", [40]).settle(0, USED)
    since = budget.measure()
    assert (since().calls, since().tokens, since().usd) == (0, 0, 0)
    budget.child().reserve("m", [40]).settle(0, USED)
    assert (since().calls, since().tokens, since().usd) == (1, 15, 36)


def test_no_calls_allowed_does_not_end_a_run_that_makes_none():
    budget = Budget(Limits(max_calls=0), PRICES)
    assert budget.used_up() is None
    with pytest.raises(LimitReachedError):
        budget.reserve("m", [1])


class TestTime:
    def test_it_is_a_limit_like_the_others(self):
        assert Budget(Limits(timeout_s=0), PRICES).used_up().kind == "time"
        assert Budget(Limits(timeout_s=60), PRICES).used_up() is None
        with pytest.raises(LimitReachedError, match="limit of 0 seconds is used up"):
            Budget(Limits(timeout_s=0), PRICES).reserve("m", [1])

    @pytest.mark.parametrize(("timeout_s", "kept_s"), [(5, 1), (100, 20), (7_200, 120)])
    def test_a_share_is_kept_back_for_the_last_request(self, timeout_s, kept_s):
        budget = Budget(Limits(timeout_s=timeout_s), PRICES)
        assert budget.left()["seconds"] == pytest.approx(timeout_s - kept_s, abs=1)

    def test_the_last_request_may_use_all_that_is_left_but_no_more_than_its_limit(self):
        assert Budget(Limits(timeout_s=5), PRICES).last_request_s() == pytest.approx(5, abs=1)
        assert Budget(Limits(timeout_s=7_200), PRICES).last_request_s() == 120
        assert Budget(Limits(), PRICES).last_request_s() == 120
        assert Budget(Limits(timeout_s=0), PRICES).last_request_s() == 0

    def test_a_childs_last_request_ends_with_its_parents_time(self):
        assert Budget(Limits(timeout_s=10), PRICES).child().last_request_s() <= 8

    @pytest.mark.parametrize("of_a_child", [False, True])
    def test_what_goes_on_too_long_is_cancelled(self, of_a_child):
        budget = Budget(Limits(timeout_s=0.01), PRICES)

        async def wait():
            async with (budget.child() if of_a_child else budget).within_time():
                await asyncio.Event().wait()

        with pytest.raises(LimitReachedError, match=r"limit of 0\.01 seconds is used up") as caught:
            asyncio.run(wait())
        assert caught.value.kind == "time"

    def test_another_time_out_is_not_taken_for_the_runs(self):
        async def wait():
            async with Budget(Limits(timeout_s=60), PRICES).within_time():
                raise TimeoutError("of something else")

        with pytest.raises(TimeoutError, match="of something else"):
            asyncio.run(wait())


class Spending(RuleBasedStateMachine):
    """A tree of budgets with calls under way in any order.

    Nothing is begun beyond a limit, nothing is counted twice, and what is over a limit in the end is no more than the
    answers of what was under way.
    """

    MAX_CALLS, MAX_TOKENS = 12, 400
    budgets = Bundle("budgets")
    batches = Bundle("batches")

    @initialize(target=budgets)
    def top(self):
        self.root = Budget(Limits(max_calls=self.MAX_CALLS, max_tokens=self.MAX_TOKENS), PRICES)
        self.calls = self.answers = 0
        self.open = []
        return self.root

    @rule(target=budgets, parent=budgets)
    def child(self, parent):
        return parent.child()

    @rule(target=batches, budget=budgets, chars=st.lists(st.integers(0, 200), min_size=1, max_size=5))
    def reserve(self, budget, chars):
        return self.take(budget, chars, lambda: budget.reserve("m", chars), counted=len(chars))

    @rule(target=batches, budget=budgets, chars=st.integers(0, 200))
    def reserve_reply(self, budget, chars):
        is_top = budget is self.root
        return self.take(budget, [chars], lambda: budget.reserve_reply("m", chars), counted=0 if is_top else 1)

    def take(self, _budget, chars, reserve, *, counted):
        tokens = sum(map(estimated_tokens, chars))
        fits = self.calls + counted <= self.MAX_CALLS and self.tokens_held() + tokens <= self.MAX_TOKENS
        try:
            reserved = reserve()
        except LimitReachedError:
            assert not fits
            return None
        assert fits
        self.calls += counted
        batch = {"reserved": reserved, "open": dict(enumerate(chars)), "begun": set(), "each": counted // len(chars)}
        self.open.append(batch)
        return batch

    @rule(batch=batches, index=st.integers(0, 4), answered=st.booleans())
    def settle(self, batch, index, answered):
        if batch is None or index not in batch["open"]:
            return
        del batch["open"][index]
        batch["reserved"].begin(index)
        batch["reserved"].settle(index, USED if answered else None)
        self.answers += answered

    @rule(batch=batches, index=st.integers(0, 4))
    def begin(self, batch, index):
        if batch is not None and index in batch["open"]:
            batch["begun"].add(index)
            batch["reserved"].begin(index)

    @rule(batch=consumes(batches))
    def leave(self, batch):
        if batch is None:
            return
        batch["reserved"].__exit__(None, None, None)
        self.calls -= batch["each"] * len(batch["open"].keys() - batch["begun"])
        self.open.remove(batch)

    def tokens_held(self):
        held = (estimated_tokens(chars) for batch in self.open for chars in batch["open"].values())
        return self.answers * USED.total_tokens + sum(held)

    @invariant()
    def it_counts_as_the_model_does(self):
        if not hasattr(self, "root"):
            return
        assert self.root.sub_calls == self.calls <= self.MAX_CALLS
        assert self.root.left()["tokens"] == max(0, self.MAX_TOKENS - self.tokens_held())
        assert self.root.total.total_tokens == self.answers * USED.total_tokens


TestSpending = Spending.TestCase


@given(st.integers(0, 10**9))
def test_the_estimate_never_rounds_down(chars):
    assert estimated_tokens(chars) * 4 >= chars
