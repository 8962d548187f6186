"""What a hostile provider can do to a worker, a root LM and a run: none hangs, is flooded, or tells the key."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from rlm.config import Provider
from rlm.errors import ProviderError
from rlm.models import OpenAIChatModel
from rlm.workers.base import Prompt, ProviderFailure, WorkerEntry
from rlm.workers.client import HttpWorkerClient
from rlm.workers.retry import RetryPolicy
from sandbox_image import worker_path
from sandbox_image.redact import REDACTED
from tests.hostile import ATTACKS, Memory, serve_attacks

KEY = "sk-hostile-0123456789abcdef"
TOKEN = "token-0123456789abcdef"
REQUEST_TIMEOUT_S = 1.0
GROWTH_MIB = 200  # less than what is sent at once, and than what a bomb decodes to
ONCE = RetryPolicy(attempts=1, wordless=1)
# What is answered all the same, and as what; every other attack is a failure in plain words.
ANSWERED = {
    "an odd charset": "fine",
    "many cookies": "fine",
    "infinite usage": "fine",
    "negative usage": "fine",
    "huge usage": "fine",
    "a lone surrogate": "\ufffd fine",
    "the key in an answer": f"the key is Bearer {REDACTED}",
    "the key in base64": f"QmVhcmVyIH{REDACTED}g==",
    "the key in a URL": f"http%3A//x/Bearer%20{REDACTED}",
}
ANSWERED_AS_A_STREAM = {"a stream of the key": REDACTED, "a stream after its end": "fine"}


@pytest.fixture(scope="module")
def provider():
    with serve_attacks() as serving:
        yield serving


@pytest.fixture(scope="module")
def worker(provider):
    """One worker process for all attacks. It must stand to the end, and say nothing."""
    process = subprocess.Popen(
        [sys.executable, "-P", str(worker_path()), "--port", "0"],
        env={
            "PATH": os.environ["PATH"],
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": provider.base_url,
            "RLM_WORKER_TOKEN": TOKEN,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    port = json.loads(process.stdout.readline())["port"]
    yield process.pid, WorkerEntry(id="w", url=f"http://127.0.0.1:{port}", token=TOKEN, created=0, expires=1e12)
    stood = process.poll() is None
    process.terminate()
    said = b"".join(process.communicate(timeout=10))
    assert (stood, said) == (True, b"")


def check_no_secret(text: str) -> None:
    for part in (KEY, KEY[:18], KEY[-16:], TOKEN):
        assert part not in text


def check_words(words: str) -> None:
    assert words.isprintable()
    assert len(words) < 1_200


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - ANSWERED_AS_A_STREAM.keys()))
def test_a_worker_stands(worker, name):
    pid, entry = worker
    memory = Memory(pid)

    async def main():
        client = HttpWorkerClient(entry, timeout_s=REQUEST_TIMEOUT_S)
        try:
            return await client.complete(Prompt(text=f"attack: {name}", model="m")), await client.stats()
        finally:
            await client.aclose()

    outcome, stats = asyncio.run(main())
    check_no_secret(repr(outcome))
    assert stats["in_flight"] == 0
    assert memory.growth_mib() < GROWTH_MIB
    if name in ANSWERED:
        assert outcome.text == ANSWERED[name]
        assert outcome.usage.total_tokens in (0, 5)
    else:
        assert isinstance(outcome, ProviderFailure), outcome
        check_words(outcome.message)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_root_lm_stands(provider, capfd, caplog, name):
    caplog.set_level("DEBUG")
    memory = Memory(os.getpid())
    here = Provider(api_key=KEY, base_url=provider.base_url)

    async def main():
        async with OpenAIChatModel(here, "m", timeout_s=REQUEST_TIMEOUT_S, policy=ONCE) as model:
            try:
                return await model.complete([{"role": "user", "content": f"attack: {name}"}])
            except ProviderError as exc:
                return exc

    outcome = asyncio.run(main())
    said = capfd.readouterr()
    check_no_secret(f"{outcome!r} {said.out} {said.err} {caplog.text}")
    assert memory.growth_mib() < GROWTH_MIB
    expected = {**ANSWERED, **ANSWERED_AS_A_STREAM}
    if name in expected:
        assert outcome.text == expected[name]
    else:
        assert isinstance(outcome, ProviderError), outcome
        assert outcome.__cause__ is None
        check_words(str(outcome))


def test_a_long_request_that_nobody_reads_ends_in_time(worker):
    _, entry = worker

    async def main():
        client = HttpWorkerClient(entry, timeout_s=REQUEST_TIMEOUT_S)
        try:
            text = "attack: an answer before the request" + '"' + "x" * 30_000_000
            return await client.complete(Prompt(text=text, model="m"))
        finally:
            await client.aclose()

    assert asyncio.run(main()).message == "no answer within 1 s"


@pytest.mark.parametrize("name", ["a header too long", "the key refused", "the key in an answer"])
def test_a_run_tells_the_key_to_nobody(provider, tmp_path, name):
    context, log = tmp_path / "context.txt", tmp_path / "log.jsonl"
    context.write_text("some text")
    command = [sys.executable, "-m", "rlm", "ask", f"attack: {name}", "--context", context, "--log", log, "--json"]
    done = subprocess.run(
        [*command, "--max-iterations", "1"],
        env={"PATH": os.environ["PATH"], "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.base_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = done.stdout + done.stderr + log.read_text()
    check_no_secret(told)
    assert done.returncode in (0, 3)
    assert "Traceback" not in told
    assert name != "the key in an answer" or REDACTED in json.loads(done.stdout)["answer"]
