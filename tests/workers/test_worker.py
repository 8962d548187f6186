"""The worker's HTTP contract, on the real process, and what it makes of a provider's answers."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest

from rlm.errors import WorkerError
from rlm.local.workers import LocalLauncher
from rlm.offline.server import Fault, OfflineSettings, WrongAnswer, serve_offline
from rlm.usage import TokenUsage
from rlm.workers.base import Answer, Prompt, ProviderFailure, WorkerBusy
from rlm.workers.client import HttpWorkerClient
from sandbox_image import worker
from tests.workers.support import echo, provider_env, until


@asynccontextmanager
async def one_worker(settings=None, **env):
    with serve_offline(settings or OfflineSettings(sub_replies=echo)) as server:
        launcher = LocalLauncher(provider_env(server, **env))
        entry = await launcher.start()
        client = HttpWorkerClient(entry)
        try:
            yield entry, client, server
        finally:
            await client.aclose()
            await launcher.stop(entry)


def ask(text, model="offline"):
    return Prompt(text=text, model=model)


def test_answers_a_prompt_with_text_and_usage():
    async def main():
        async with one_worker() as (_, client, server):
            answer = await client.complete(ask("hello"))
            assert isinstance(answer, Answer)
            assert answer.text == "echo of hello"
            assert answer.usage.input_tokens > 0
            assert answer.usage.output_tokens > 0
            assert server.stats().answered == 1

    asyncio.run(main())


def test_any_text_goes_through():
    async def main():
        async with one_worker() as (_, client, _server):
            for text in ("lone \ud800 surrogate", "NUL \x00 byte", "", "emoji 🎉 中文", "a\r\nb\u2028c"):
                answer = await client.complete(ask(text))
                assert isinstance(answer, Answer)
                assert answer.text == "echo of " + text.replace("\ud800", "\ufffd")

    asyncio.run(main())


def test_wants_the_token_for_all_but_healthz():
    async def main():
        async with one_worker() as (entry, _, server), aiohttp.ClientSession() as session:
            wrong = {"Authorization": "Bearer wrong"}
            body = json.dumps({"prompt": "p", "model": "m"})
            seen = []
            for headers in ({}, wrong):
                async with session.post(f"{entry.url}/complete", data=body, headers=headers) as response:
                    seen.append(response.status)
                async with session.get(f"{entry.url}/stats", headers=headers) as response:
                    seen.append(response.status)
            assert seen == [401] * 4
            async with session.get(f"{entry.url}/healthz") as response:
                assert response.status == 200
            assert server.stats().requests == 0

    asyncio.run(main())


def test_says_that_it_is_full_and_counts():
    async def main():
        slow = OfflineSettings(faults=(Fault(match="slow", hang_s=1),), sub_replies=echo)
        async with one_worker(slow, RLM_WORKER_CONCURRENCY="2") as (entry, client, _server):
            outcomes = await asyncio.gather(*(client.complete(ask(f"slow {i}")) for i in range(3)))
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Answer", "Answer", "WorkerBusy"]
            assert next(o for o in outcomes if isinstance(o, WorkerBusy)).retry_after_s > 0
            headers = {"Authorization": f"Bearer {entry.token}"}
            async with aiohttp.request("GET", f"{entry.url}/stats", headers=headers) as response:
                assert await response.json() == {"limit": 2, "in_flight": 0, "done": 2, "failed": 0}

    asyncio.run(main())


def test_a_call_that_is_cancelled_is_cancelled_at_the_provider():
    async def main():
        async with one_worker(OfflineSettings(latency_s=60)) as (_, client, server):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.complete(ask("never mind"))
            await until(lambda: server.stats().abandoned)
            assert server.stats().in_flight == 0

    asyncio.run(main())


def test_a_provider_that_takes_too_long_is_a_passing_fault():
    async def main():
        async with one_worker(OfflineSettings(latency_s=60)) as (entry, _, _server):
            client = HttpWorkerClient(entry, timeout_s=0.2)
            outcome = await client.complete(ask("slow"))
            await client.aclose()
            assert isinstance(outcome, ProviderFailure)
            assert (outcome.kind, outcome.message) == ("transient", "no answer within 0.2 s")

    asyncio.run(main())


FAILURES = [
    ({"status": 429, "headers": {"Retry-After": "7"}}, "rate_limited", 7.0),
    ({"status": 429, "headers": {"retry-after-ms": "1500", "Retry-After": "2"}}, "rate_limited", 1.5),
    ({"status": 429}, "rate_limited", None),
    ({"status": 500}, "transient", None),
    ({"status": 503, "headers": {"Retry-After": "1"}}, "transient", 1.0),
    ({"drop": True}, "transient", None),
    ({"status": 401}, "key_refused", None),
    ({"status": 403}, "key_refused", None),
    ({"status": 404}, "wrong_url", None),
    ({"answer": WrongAnswer.EMPTY}, "empty", None),
    ({"answer": WrongAnswer.DECLINED}, "declined", None),
    ({"answer": WrongAnswer.FILTERED}, "declined", None),
    ({"status": 413}, "context_window", None),
    ({"status": 422}, "refused", None),
]


def test_sorts_the_failures_of_the_provider():
    faults = tuple(Fault(match=f"case {number};", **fault) for number, (fault, _, _) in enumerate(FAILURES))

    async def main():
        async with one_worker(OfflineSettings(faults=faults)) as (_, client, _server):
            for number, (_, kind, retry_after_s) in enumerate(FAILURES):
                outcome = await client.complete(ask(f"case {number};"))
                assert isinstance(outcome, ProviderFailure)
                assert (outcome.kind, outcome.retry_after_s) == (kind, retry_after_s)
                assert outcome.message or kind == "empty"
                assert "\n" not in outcome.message
                assert (outcome.usage.input_tokens > 0) == ("answer" in FAILURES[number][0])

    asyncio.run(main())


def test_a_prompt_over_the_window_is_told_as_such():
    async def main():
        async with one_worker(OfflineSettings(window_tokens=10)) as (_, client, _server):
            outcome = await client.complete(ask("word " * 1000))
            assert isinstance(outcome, ProviderFailure)
            assert outcome.kind == "context_window"

    asyncio.run(main())


NO_PROMPTS = (
    *(b"{", b"[]", b'{"prompt": "p", "model": "m"}', b"\xff", b"[" * 200_000),
    *(b'{"prompt": "p", "model": "m", "timeout_s": %s}' % seconds for seconds in (b"0", b"-1", b"NaN", b"1e999")),
)


def test_an_answer_that_was_cut_is_told_as_such():
    async def main():
        cut = OfflineSettings(faults=(Fault(answer=WrongAnswer.CUT),), sub_replies=echo)
        async with one_worker(cut) as (_, client, _server):
            assert (await client.complete(ask("x" * 12))) == Answer("echo of xx", usage_of(3, 3), cut=True)

    asyncio.run(main())


def usage_of(sent, got):
    return TokenUsage(input_tokens=sent, output_tokens=got)


def test_a_prompt_longer_than_anybody_takes_is_refused_unread():
    async def main():
        async with one_worker() as (_, client, server):
            outcome = await client.complete(ask("x" * (worker.MAX_BODY_BYTES + 1)))
            assert isinstance(outcome, ProviderFailure)
            assert outcome.kind == "refused"
            assert server.stats().requests == 0

    asyncio.run(main())


def test_a_body_that_is_no_prompt_is_our_fault_and_not_the_providers():
    async def main():
        async with one_worker() as (entry, _, _server):
            headers = {"Authorization": f"Bearer {entry.token}"}
            for body in NO_PROMPTS:
                async with aiohttp.request("POST", f"{entry.url}/complete", data=body, headers=headers) as response:
                    assert response.status == 400

    asyncio.run(main())


def test_a_worker_that_is_gone_or_is_no_worker_is_a_worker_error():
    async def main():
        async with one_worker() as (entry, client, server):
            await client.check()
            no_worker = HttpWorkerClient(entry.__class__(**{**_fields(entry), "url": server.base_url}))
            for call in (no_worker.check(), no_worker.complete(ask("p"))):
                with pytest.raises(WorkerError, match="status 404"):
                    await call
            await no_worker.aclose()
        gone = HttpWorkerClient(entry)
        for call in (gone.check(), gone.complete(ask("p"))):
            with pytest.raises(WorkerError, match="did not answer"):
                await call
        await gone.aclose()

    asyncio.run(main())


def _fields(entry):
    return {name: getattr(entry, name) for name in ("id", "url", "token", "created", "expires")}


def test_refuses_to_listen_to_the_world_without_a_token():
    done = subprocess.run(
        [sys.executable, worker.__file__, "--host", "0.0.0.0"],
        env={"PATH": os.environ["PATH"], "OPENAI_API_KEY": "k"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "RLM_WORKER_TOKEN" in done.stderr
