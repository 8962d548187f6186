"""What follows an answer on Modal: what fails of it is told, and costs nothing."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

import modal
import pytest

from rlm import RunConfig, events
from rlm.context import context_from_paths
from rlm.modal.runs import DictRunStore, follow, remember
from rlm.run import RunResult
from rlm.runs.request import Inline, LocalFiles, RunRequest
from rlm.runs.store import RunRecord

OFTEN = 1_000  # more than the client tries
RESULT = RunResult(
    answer="42",
    value=42,
    stopped_by="answer",
    iterations=1,
    sub_calls=0,
    usage={},
    cost_usd=None,
    run_id="r",
    elapsed_s=1.0,
    scripted=True,
)


@dataclass
class Solving:
    """What `follow` needs of a generator Function: it gives these items, and keeps its request."""

    items: tuple[object, ...]
    requests: list[RunRequest] = field(default_factory=list)

    @property
    def remote_gen(self):
        return self

    async def aio(self, request):
        self.requests.append(request)
        for item in self.items:
            yield item


@pytest.fixture
def volume(modal_double):
    return modal.Volume.from_name(f"rlm-{uuid.uuid4().hex[:8]}", create_if_missing=True)


def test_an_upload_that_cannot_be_removed_is_a_notice(modal_faults, volume, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    request = RunRequest(
        question="q", source=LocalFiles(context_from_paths([str(tmp_path)], tmp_path)), config=RunConfig()
    )
    told = []
    for rpc in ("VolumeRemoveFile", "VolumeRemoveFile2"):
        modal_faults.unavailable(rpc, OFTEN)
    assert asyncio.run(follow(request, Solving((RESULT,)), volume, told.append)) == RESULT
    assert [(type(event), event.run_id) for event in told] == [(events.Notice, request.run_id)]
    assert "cleaning up failed" in told[0].text


def test_a_listener_that_raises_does_not_end_what_is_followed(volume):
    def broken(event):
        raise BrokenPipeError("nobody reads")

    started = events.Notice(run_id="r", text="something")
    solving = Solving((started, RESULT))
    request = RunRequest(question="q", source=Inline("text"), config=RunConfig())
    assert asyncio.run(follow(request, solving, volume, broken)) == RESULT


def test_a_record_that_cannot_be_written_costs_nothing_and_is_told(modal_faults, store, capsys):
    modal_faults.unavailable("DictUpdate", OFTEN)
    asyncio.run(remember(store, RunRecord(id="r", state="succeeded", answer="42")))
    assert "run r is succeeded, which could not be written down" in capsys.readouterr().err


def test_a_record_keeps_the_value(store):
    async def written():
        await remember(store, RunRecord(id="r", state="succeeded", answer="[1]", value=[1]))
        return await DictRunStore(store, None).get("r")

    assert asyncio.run(written()).value == [1]
