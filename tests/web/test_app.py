"""The HTTP API as its users see it, behind a real server on loopback; the runs are only remembered."""

from __future__ import annotations

import json
from dataclasses import fields

import httpx
import pytest

from rlm.config import RunConfig
from rlm.runs.store import RunRecord
from rlm.web.body import MAX_CONTAINERS
from tests.web.conftest import TOKEN

HEADERS = {"Authorization": f"Bearer {TOKEN}".encode()}


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served.url, headers=HEADERS, timeout=15) as http:
        yield http


def test_a_run_is_started_looked_at_and_cancelled(http, served):
    answer = http.post("/v1/runs", json={"question": "q", "context": [1, {"a": None}]})
    assert answer.status_code == 202
    run_id = answer.json()["id"]
    (request,) = served.store.requests
    assert (request.run_id, request.question, request.source.value) == (run_id, "q", [1, {"a": None}])
    assert request.config == RunConfig()
    assert http.get(f"/v1/runs/{run_id}").json()["state"] == "queued"
    assert http.delete(f"/v1/runs/{run_id}").json()["state"] == "cancelled"
    assert http.get("/v1/runs/none").status_code == http.delete("/v1/runs/none").status_code == 404


def test_the_limits_are_those_of_the_command_line(http, served):
    limits = {"max_calls": 3, "max_tokens": 4, "max_usd": 0.5, "timeout_s": 6, "max_depth": 0}
    repl = {"cell_timeout_s": 7.5, "max_output_chars": 8}
    rest = {
        "model": "m",
        "recursive_model": "s",
        "max_iterations": 2,
        "pool_size": 3,
        "prompts": "small",
        "request_timeout_s": 5.0,
        "max_children": 1,
    }
    body = {"question": "q", "context": "c", "sub_llm_chars": 9, "force_parallel": True, **limits, **repl, **rest}
    assert http.post("/v1/runs", json=body).status_code == 202
    config = served.store.requests[-1].config
    assert {name: getattr(config.limits, name) for name in limits} == limits
    assert {name: getattr(config.repl, name) for name in repl} == repl
    assert {name: getattr(config, name) for name in rest} == rest
    assert (config.sub_llm_chars, config.force_parallel) == (9, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"context": "c"}, "question: Field required"),
        ({"question": "", "context": "c"}, "question: String should have at least 1 character"),
        ({"question": " \n", "context": "c"}, "the question is empty"),
        ({"question": "q"}, "context: Field required"),
        ({"question": "q", "context": "c", "max_iterations": 0}, "max_iterations must be 1 or more"),
        ({"question": "q", "context": "c", "max_iterations": "3"}, "max_iterations: Input should be a valid integer"),
        ({"question": "q", "context": "c", "pool_size": True}, "pool_size: Input should be a valid integer"),
        ({"question": "q", "context": "c", "max_usd": -1}, "max_usd must not be negative"),
        ({"question": "q", "context": "c", "prompts": "/etc"}, "prompts: String should match pattern"),
        ({"question": "q", "context": "c", "prompts": "default\n"}, "prompts: String should match pattern"),
        ({"question": "q", "context": "c", "surprise": 1}, "there is no field 'surprise': use question, context"),
        ({"question": "q", "context": "c", "s" * 1_000_000: 1}, "there is no field 'sss"),
        ({"question": ["q" * 1_000_000], "context": "c"}, "question: Input should be a valid string"),
        ({"question": "q" * 1_000_000, "context": "c"}, "question: String should have at most 100000 characters"),
        ({"question": "q", "context": "c", "pool_size": -(10**4_000)}, "pool_size must be 1 or more: -1000"),
        (["question"], "the body must be a JSON object"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_by_name_and_not_echoed(http, served, body, words):
    answer = http.post("/v1/runs", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert len(answer.content) < 1_000
    assert served.store.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"question=q",
        b'{"question": "q", "context": NaN}',
        b'{"question": "q", "context": -Infinity}',
        b'{"question": "\\ud800", "context": "c"}',
        b'{"question": "q", "context": "\\ud800"}',
        b'{"question": "q", "context": "\xff"}',
        b'{"question": "q", "context": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"question": "q", "context": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b'{"question": "q", "context": ' + b"1" * 100_000 + b"}",
        b'{"question": "q", "context": "c", "max_usd": Infinity}',
        b'{"question": "q", "context": "c", "max_usd": 1e400}',
        b'{"question": "q", "context": "c", "max_usd": 1' + b"0" * 400 + b"}",
        b'{"question": "q", "context": "c", "timeout_s": 1e400}',
        b'{"question": "q", "context": [' + b"[]," * MAX_CONTAINERS + b"[]]}",
    ],
    ids=range(16),
)
def test_what_is_no_json_or_too_much_of_it_is_422(http, served, body):
    answer = http.post("/v1/runs", content=body)
    assert answer.status_code == 422
    assert len(answer.content) < 1_000
    assert served.store.requests == []


def test_a_large_number_of_the_context_stays_as_it_is(http, served):
    number = 10**400
    assert http.post("/v1/runs", content=f'{{"question": "q", "context": {number}}}').status_code == 202
    assert served.store.requests[0].source.value == number


def test_an_answer_with_half_a_character_can_be_looked_at(http, served):
    served.store.records["x"] = RunRecord(id="x", state="succeeded", answer="a\ud800é")
    answer = http.get("/v1/runs/x")
    assert answer.status_code == 200
    assert json.loads(answer.content)["answer"] == "a\ud800é"


def test_the_api_describes_itself(http):
    told = http.get("/openapi.json").json()
    assert told["info"]["title"] == "rlm"
    assert told["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    post = told["paths"]["/v1/runs"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert {"question", "context", "max_usd", "timeout_s"} <= set(schema["properties"])
    assert schema["examples"][0]["question"]
    assert post["security"] == [{"HTTPBearer": []}]
    assert set(told["components"]["schemas"]["Run"]["properties"]) == {field.name for field in fields(RunRecord)}
