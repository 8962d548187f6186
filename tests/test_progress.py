import io

from rlm import events
from rlm.events import CellCost, CellOutput
from rlm.progress import PlainView, Standing, some_lines
from rlm.usage import TokenUsage

COST = CellCost(seconds=0.25)
STARTED = events.RunStarted(
    run_id="r",
    parent_id=None,
    parent_cell=None,
    depth=0,
    question="q",
    context="a str",
    files=[],
    model="m",
    recursive_model="s",
    max_iterations=4,
    settings={},
    version="0",
    scripted=True,
    starting_s=0.0,
)


def finished(index, *, run_id="r", error=None):
    return events.SubCallFinished(
        run_id=run_id,
        iteration=1,
        cell=1,
        batch=1,
        index=index,
        prompt="p",
        text=None if error else "t",
        error=error,
        usage=TokenUsage(input_tokens=10, output_tokens=1),
        attempts=1,
        in_flight=7,
    )


def test_the_standing_gathers_what_has_happened():
    standing = Standing()
    for event in (
        STARTED,
        events.RootReplied(run_id="r", iteration=2, text="", usage=TokenUsage(output_tokens=5), latency_s=1),
        events.SubCallsStarted(run_id="r", iteration=1, cell=1, batch=1, count=3, model="s"),
        events.SubCallRetried(run_id="r", batch=1, index=0, reason="500", wait_s=1),
        finished(0),
        finished(1, error="refused"),
        events.Spent(run_id="r", tokens=TokenUsage(), sub_calls=3, cost_usd=0.25),
    ):
        standing.hear(event)
    assert standing.line() == (
        "iteration 2/4 · waiting for sub-LLMs · sub-calls 2/3 (7 in flight) · 1 retries · 1 errors · 27 tokens · "
        "$0.2500"
    )


def test_a_cost_that_is_not_known_is_called_unknown():
    standing = Standing()
    standing.hear(events.Spent(run_id="r", tokens=TokenUsage(), sub_calls=0, cost_usd=None))
    assert standing.line().endswith("cost unknown")


def test_a_child_run_does_not_move_the_iteration_of_its_parent():
    standing = Standing()
    standing.hear(STARTED)
    standing.hear(
        events.RunStarted(
            run_id="child",
            parent_id="r",
            parent_cell=1,
            depth=1,
            question="q",
            context="",
            files=[],
            model="m",
            recursive_model="s",
            max_iterations=99,
            settings={},
            version="0",
            scripted=True,
            starting_s=0.0,
        )
    )
    standing.hear(events.RootReplied(run_id="child", iteration=9, text="", usage=TokenUsage(), latency_s=1))
    standing.hear(finished(0, run_id="child"))
    assert standing.line().startswith("iteration 0/4")
    assert standing.finished == 1


def test_long_output_is_cut_to_its_first_and_last_lines():
    shown = some_lines("\n".join(map(str, range(100))), 4).split("\n")
    assert shown == ["0", "1", "... 96 more lines ...", "98", "99"]


def test_plain_lines_tell_the_steps_without_escapes():
    out = io.StringIO()
    result = CellOutput(stdout="\x1b[2Jhello\n", stderr="", value="", error=None, final=None, late=[])
    with PlainView(out) as view:
        view(STARTED)
        view(events.CellFinished(run_id="r", iteration=1, cell=1, result=result, error=None, cost=COST))
        view(events.Notice(run_id="r", text="look out"))
    lines = out.getvalue().splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == [
        "iteration 0/4 · asking the root LM · 0 tokens",
        "cell done in 0.2 s: '\\\\x1b[2Jhello'",
        "note: look out",
    ]
