"""The client of a worker against who is none, and means harm: all of it is a WorkerError without the token."""

import asyncio
import os

import pytest

from rlm.errors import WorkerError
from rlm.workers.base import Prompt, WorkerEntry
from rlm.workers.client import HttpWorkerClient
from tests import hostile

TOKEN = "token-0123456789abcdef"
ERROR = {"kind": "transient", "message": "no", "retry_after_s": None, "usage": {}}
ANSWER = {"text": "t", "finish_reason": "stop", "usage": {"input_tokens": 1, "output_tokens": 1}}
NO_WORKERS = {
    "no usage": hostile.sends(ANSWER),
    "usage that is none": hostile.sends(ANSWER | {"usage": {"input_tokens": [], "cached_input_tokens": {}}}),
    "endless usage": hostile.sends(
        '{"text": "t", "finish_reason": "stop", "usage": '
        '{"input_tokens": Infinity, "cached_input_tokens": 0, "output_tokens": 0}}'
    ),
    "a text that is none": hostile.sends(
        ANSWER | {"text": 7, "usage": {"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 1}}
    ),
    "an unknown kind": hostile.sends({"error": ERROR | {"kind": ["new"]}}, "502 Bad Gateway"),
    "a wait below zero": hostile.sends({"error": ERROR | {"kind": "busy", "retry_after_s": -1}}, "503 Busy"),
    "an endless wait": hostile.sends('{"error": {"kind": "busy", "message": "", "retry_after_s": 1e999}}', "503 Busy"),
    "a failure without usage": hostile.sends({"error": ERROR}, "502 Bad Gateway"),
}
ATTACKS = hostile.ATTACKS | NO_WORKERS


@pytest.fixture(scope="module")
def served():
    with hostile.serve_attacks(ATTACKS) as serving:
        yield serving


@pytest.mark.parametrize("name", ATTACKS)
def test_who_is_no_worker_is_a_worker_error(served, name):
    entry = WorkerEntry(id="w", url=served.base_url, token=TOKEN, created=0, expires=1e12)
    memory = hostile.Memory(os.getpid())

    async def main():
        client = HttpWorkerClient(entry, timeout_s=1, grace_s=0, check_timeout_s=1)
        try:
            with pytest.raises(WorkerError) as raised:
                await client.complete(Prompt(text=f"attack: {name}", model="m"))
        finally:
            await client.aclose()
        return raised.value

    error = asyncio.run(main())
    assert error.__cause__ is None
    assert str(error).isprintable()
    assert len(str(error)) < 400
    assert TOKEN not in str(error)
    assert memory.growth_mib() < 200
