"""The deployed app over HTTPS: runs by id, workers that stay warm, what goes wrong underneath."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from rlm.offline.server import Fault, OfflineSettings
from tests.conftest import cell
from tests.modal.conftest import ENDED, cloud_of, deployed

pytestmark = pytest.mark.usefixtures("needs_isolation")

LEASE = "It begins in March.\nThe lease was signed by Ada Lovelace.\n"
QUESTION, ANSWER = "Who signed the lease?", "The lease was signed by Ada Lovelace."


def until(holds: Callable[[], bool]) -> bool:
    """Wait until something about the cloud holds, of which no event tells."""
    deadline = time.monotonic() + 15
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


class TestRuns:
    def test_a_run_is_started_looked_at_and_answered(self, api):
        record = api.ask(QUESTION, LEASE)
        assert (record["state"], record["answer"], record["stopped_by"]) == ("succeeded", ANSWER, "answer")
        assert record["usage"]["gpt-5-nano"]["calls"] == 1
        assert (record["cost_usd"], record["error"]) == (None, None)

    def test_the_second_run_finds_the_worker_of_the_first_and_starts_none(self, api):
        api.ask(QUESTION, LEASE)
        before = api.cloud.sandboxes("worker")
        assert len(before) == 1
        assert api.ask(QUESTION, LEASE)["answer"] == ANSWER
        assert api.cloud.sandboxes("worker") == before
        assert api.cloud.sandboxes("repl") == []

    def test_after_every_worker_was_killed_a_run_starts_new_ones(self, api):
        api.ask(QUESTION, LEASE)
        old = api.cloud.sandboxes("worker")
        for sandbox_id in old:
            api.cloud.double.faults.kill_sandbox(sandbox_id)
        assert api.ask(QUESTION, LEASE)["answer"] == ANSWER
        assert set(api.cloud.sandboxes("worker")).isdisjoint(old)

    def test_json_is_a_context_too(self, api):
        record = api.ask(QUESTION, {"pages": [{"text": "nothing"}, {"text": ANSWER}]})
        assert ANSWER.rstrip(".") in record["answer"]

    def test_the_reconciler_keeps_what_is_in_use(self, api):
        api.ask(QUESTION, LEASE)
        before = api.cloud.sandboxes("worker")
        swept = api.cloud.double.run_schedule_sync("rlm", "reconcile")
        assert (swept["kept"], swept["orphans"], swept["lost"]) == (len(before), 0, 0)
        assert api.cloud.sandboxes("worker") == before


class TestManyRuns:
    def test_workers_on_their_way_are_kept_for_later_runs_and_keep_no_answer_back(self):
        ask = cell("parallel_llm_query([f'Is there anything in text {i}?' for i in range(78)])")
        with cloud_of(OfflineSettings(latency_s=0.02, script=(ask, "FINAL(done)"))) as cloud, deployed(cloud) as api:
            cloud.double.faults.creation_rate(2, per_s=25)  # the REPL and one worker; the others must wait
            assert api.ask("q", "c")["answer"] == "done"
            assert len(cloud.sandboxes("worker")) == 1
            cloud.double.faults.clear()
            assert until(lambda: len(cloud.sandboxes("worker")) == 4)
            workers = cloud.sandboxes("worker")
            for _ in range(2):
                before = cloud.double.rpc_counts["SandboxCreateV2"]
                assert api.ask("q", "c")["answer"] == "done"
                assert cloud.double.rpc_counts["SandboxCreateV2"] == before + 1  # a REPL
            assert cloud.sandboxes("worker") == workers

    @pytest.mark.slow
    @pytest.mark.timeout(120)
    def test_eight_at_once_share_four_workers(self):
        lines = [f"It is line {n} of many.\n" for n in range(12_000)]
        with cloud_of(OfflineSettings(latency_s=1.0)) as cloud, deployed(cloud) as api:
            contexts = ["".join([*lines[:n], LEASE, *lines[n:]]) for n in range(0, 8_000, 1_000)]
            runs = [api.start(QUESTION, context, pool_size=4) for context in contexts]
            most = 0
            while any(api.http.get(f"/v1/runs/{run}").json()["state"] not in ENDED for run in runs):
                most = max(most, len(cloud.sandboxes("worker")))
                time.sleep(0.2)
            records = [api.wait(run) for run in runs]
            assert [record["answer"] for record in records] == [ANSWER] * 8
            assert (most, len(cloud.sandboxes("worker"))) == (4, 4)
            assert cloud.sandboxes("repl") == []
            counted = sum(record["usage"]["gpt-5-nano"]["calls"] for record in records)
            assert cloud.provider.stats().sub_requests == counted  # nothing lost, nothing asked twice


class TestTheDoor:
    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "the-api-token"}])
    def test_without_the_token_every_route_but_healthz_is_shut(self, api, headers):
        with httpx.Client(base_url=api.http.base_url, headers=headers) as stranger:
            assert stranger.get("/v1/runs/x").status_code == 401
            assert stranger.post("/v1/runs", json={"question": "q", "context": "c"}).status_code == 401
            assert stranger.delete("/v1/runs/x").status_code == 401
            assert stranger.get("/healthz").json() == {"ok": True}

    def test_without_its_secret_the_app_deploys_closed(self):
        with cloud_of(OfflineSettings()) as cloud, deployed(cloud, token="") as api:
            assert api.http.get("/healthz").status_code == 200
            answer = api.http.post("/v1/runs", json={"question": "q", "context": "c"})
            assert answer.status_code == 503
            assert "rlm-api-token" in answer.json()["detail"]

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"context": "c"}, "question"),
            ({"question": "", "context": "c"}, "question"),
            ({"question": "q"}, "context"),
            ({"question": "q", "context": "c", "max_iterations": 0}, "max_iterations must be 1 or more"),
            ({"question": "q", "context": "c", "surprise": 1}, "surprise"),
        ],
    )
    def test_a_body_that_makes_no_sense_is_refused_by_name(self, api, body, words):
        answer = api.http.post("/v1/runs", json=body)
        assert answer.status_code == 422
        assert words in answer.text

    def test_a_run_that_is_not_there_is_404(self, api):
        assert api.http.get("/v1/runs/none").status_code == 404
        assert api.http.delete("/v1/runs/none").status_code == 404


class TestCancelling:
    def test_a_cancelled_run_ends_its_call_and_its_repl(self):
        script = (cell("import time; time.sleep(60)"),)
        with cloud_of(OfflineSettings(script=script)) as cloud, deployed(cloud) as api:
            run = api.start("q", "c")
            while not cloud.sandboxes("repl"):
                time.sleep(0.05)
            api.wait(run, lambda record: record["state"] == "running")
            assert api.http.delete(f"/v1/runs/{run}").json()["state"] == "cancelled"
            while cloud.sandboxes("repl"):
                time.sleep(0.05)
            assert api.http.get(f"/v1/runs/{run}").json()["state"] == "cancelled"
            assert api.http.delete(f"/v1/runs/{run}").json()["state"] == "cancelled"


class TestWhatGoesWrong:
    def test_a_refused_key_is_a_failed_run_that_says_so(self):
        with cloud_of(OfflineSettings(api_key="another")) as cloud, deployed(cloud) as api:
            record = api.ask("q", "c")
            assert record["state"] == "failed"
            assert "does not accept the API key" in record["error"]

    def test_a_worker_killed_in_the_middle_of_200_prompts_costs_no_answer(self):
        code = (
            "found = parallel_llm_query([f'p{n}' for n in range(200)])\nFINAL(found == [f'P{n}' for n in range(200)])"
        )
        settings = OfflineSettings(script=(cell(code),), sub_replies=str.upper, latency_s=1.0)
        with cloud_of(settings) as cloud, deployed(cloud) as api:
            run = api.start("q", "c", pool_size=2)
            while cloud.provider.stats().in_flight < 100:
                time.sleep(0.02)
            cloud.double.faults.kill_sandbox(cloud.sandboxes("worker")[0])
            assert api.wait(run)["value"] is True
            stats = cloud.provider.stats()
            assert stats.distinct_sub_prompts == 200
            assert stats.sub_requests <= 200 + 64  # asked again: what the killed worker had in flight

    def test_a_preempted_run_is_made_again_and_answered(self):
        hang = Fault(match="hang", hang_s=2.0)
        script = (cell("llm_query('ha' + 'ng'); FINAL('answered')"),)
        with cloud_of(OfflineSettings(script=script, faults=(hang,))) as cloud, deployed(cloud) as api:
            run = api.start("q", "c")
            while not cloud.provider.stats().sub_requests:
                time.sleep(0.02)
            assert cloud.double.faults.preempt("solve") == 1
            assert api.wait(run)["answer"] == "answered"

    def test_a_dict_that_is_unavailable_for_a_while_does_not_end_the_run(self, api):
        for rpc in ("DictGet", "DictUpdate"):
            api.cloud.double.faults.unavailable(rpc, 2)
        assert api.ask(QUESTION, LEASE)["answer"] == ANSWER
