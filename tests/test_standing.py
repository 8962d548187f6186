from rlm import events
from rlm.standing import Standing
from rlm.usage import TokenUsage
from tests.progress_support import STARTED, finished, replied, said, started


def told(*some):
    standing = Standing()
    for event in some:
        standing.hear(event)
    return standing


def test_it_gathers_what_has_happened():
    standing = told(
        STARTED,
        replied(2, usage=TokenUsage(output_tokens=5)),
        events.SubCallsStarted(run_id="r", iteration=1, cell=1, batch=1, count=3, model="s"),
        events.SubCallRetried(run_id="r", batch=1, index=0, reason="500", wait_s=1),
        finished(0),
        finished(1, error="refused"),
        events.Spent(run_id="r", tokens=TokenUsage(), sub_calls=3, cost_usd=0.25),
    )
    assert standing.line() == (
        "iteration 2/4 · waiting for sub-LLMs · 27 tokens · $0.2500 · "
        "sub-calls 2/3 · 7 in flight · 1 retries · 1 errors"
    )


def test_a_cost_that_is_not_known_is_called_unknown():
    standing = told(events.Spent(run_id="r", tokens=TokenUsage(), sub_calls=0, cost_usd=None))
    assert standing.line().endswith("cost unknown")


def test_the_iteration_is_the_one_that_goes_on():
    standing = told(STARTED, said("question"))
    seen = [standing.steps()]
    for number in range(1, 5):
        standing.hear(replied(number))
        seen.append(standing.steps())
        standing.hear(said("what the cell printed"))
        seen.append(standing.steps())
    assert [step.rpartition(" · ")[0] for step in seen] == [
        "iteration 1/4 · asking the root LM",
        "iteration 1/4 · the root LM has replied",
        "iteration 2/4 · asking the root LM",
        "iteration 2/4 · the root LM has replied",
        "iteration 3/4 · asking the root LM",
        "iteration 3/4 · the root LM has replied",
        "iteration 4/4 · asking the root LM",
        "iteration 4/4 · the root LM has replied",
        "iteration 4/4 · asking for the answer alone",
    ]


def test_a_child_run_does_not_move_the_iteration_of_its_parent():
    standing = told(
        STARTED,
        started("child", depth=1),
        replied(9, run_id="child"),
        said("more", run_id="child"),
        finished(0, run_id="child"),
    )
    assert standing.line().startswith("iteration 1/4")
    assert standing.finished == 1
