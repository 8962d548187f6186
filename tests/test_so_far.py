from rlm import events
from rlm.so_far import SoFar
from rlm.usage import TokenUsage
from tests.progress_support import STARTED, cell_ends, replied, started

SPENT = events.Spent(run_id="r", tokens=TokenUsage(input_tokens=7), sub_calls=3, cost_usd=0.25)
FAILED = events.RunFailed(
    run_id="r", error="gone", sub_calls=4, usage={"m": {"calls": 1, "input_tokens": 9}}, cost_usd=0.5
)


def after(*some):
    so_far = SoFar()
    for event in some:
        so_far.hear(event)
    return so_far


def test_it_has_the_figures_that_a_failed_run_has_told():
    result = after(STARTED, replied(2), SPENT, FAILED).result("error")
    assert (result.answer, result.stopped_by, result.run_id, result.scripted) == (None, "error", "r", True)
    assert (result.iterations, result.sub_calls, result.cost_usd, result.usage) == (2, 4, 0.5, FAILED.usage)


def test_a_run_that_could_not_tell_its_end_leaves_what_it_told_before():
    result = after(STARTED, replied(1), SPENT).result("error")
    assert (result.iterations, result.sub_calls, result.cost_usd, result.usage) == (1, 3, 0.25, {})


def test_what_was_found_is_what_the_last_cell_gave_that_gave_something():
    found = cell_ends("page 7")
    so_far = after(STARTED, cell_ends("page 1"), found, cell_ends(), started("c", depth=1), cell_ends("x", run_id="c"))
    assert so_far.found is found


def test_a_child_run_does_not_count_for_its_parent():
    child = (started("c", depth=1), replied(9, run_id="c"))
    assert after(STARTED, replied(1), *child).result("interrupted").iterations == 1


def test_before_a_run_has_started_there_is_nothing():
    assert (after().started, after().result("error").run_id, after().result("error").cost_usd) == (None, "", 0.0)
