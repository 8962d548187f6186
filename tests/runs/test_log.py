import json

import pytest

from rlm import events
from rlm.errors import InputError
from rlm.runs.log import RunLog, event_name
from rlm.usage import TokenUsage

REPLIED = events.RootReplied(
    run_id="r", iteration=1, text="é \ud800 \u2028", usage=TokenUsage(input_tokens=3), latency_s=0.5
)


def test_an_event_is_a_line_of_json_as_soon_as_it_happens(tmp_path):
    with RunLog(tmp_path / "log") as log:
        log(REPLIED)
        (line,) = (tmp_path / "log").read_text("ascii").splitlines()
    row = json.loads(line)
    assert row.pop("time") > 1.7e9
    assert row == {
        "event": "root_replied",
        "run_id": "r",
        "iteration": 1,
        "text": "é \ud800 \u2028",
        "usage": {"input_tokens": 3, "cached_input_tokens": 0, "output_tokens": 0},
        "latency_s": 0.5,
        "cut": False,
    }


def test_a_second_run_is_appended(tmp_path):
    for _ in range(2):
        with RunLog(tmp_path / "log") as log:
            log(REPLIED)
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot write the log"):
        RunLog(tmp_path / "no" / "log")


def test_every_event_has_a_name_of_its_own():
    kinds = events.Event.__args__
    assert len({event_name(kind.__new__(kind)) for kind in kinds}) == len(kinds)
