import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest

from rlm.errors import InputError
from rlm.offline.server import Fault, OfflineSettings, WrongAnswer, read_script, run_offline, serve_offline

SUB = [{"role": "user", "content": "Question: Who signed the lease?\n\nText:\nThe lease was signed by Ada."}]
ROOT = [{"role": "system", "content": "You are the root LM."}, {"role": "user", "content": "hello"}]


@pytest.fixture
def serve():
    """Starts servers and clients for a test, and ends them with it."""
    open_now = []

    def start(**settings):
        serving = serve_offline(OfflineSettings(**settings))
        server = serving.__enter__()
        client = openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0)
        open_now.extend([client, serving])
        return server, client

    yield start
    for one in open_now:
        one.__exit__(None, None, None)


def ask(client, text, **options):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **options)


async def ask_all(server, prompts):
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
        calls = [
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])
            for prompt in prompts
        ]
        return await asyncio.gather(*calls, return_exceptions=True)


def statuses(results):
    return [getattr(result, "status_code", 200) for result in results]


def test_a_sub_call_is_answered_by_the_rule_with_usage_by_chars(serve):
    server, client = serve()
    completion = client.chat.completions.create(model="any-name", messages=SUB)
    assert completion.choices[0].message.content == "The lease was signed by Ada."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "any-name"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (17, 7, 24)
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert server.base_url.startswith("http://127.0.0.1:")


def test_a_request_with_a_system_or_developer_message_is_the_root_lms(serve):
    server, client = serve(script=("I am the root.",))
    assert client.chat.completions.create(model="m", messages=ROOT).choices[0].message.content == "I am the root."
    developer = [{"role": "developer", "content": "x"}, *SUB]
    assert client.chat.completions.create(model="m", messages=developer).choices[0].message.content == "I am the root."
    client.chat.completions.create(model="m", messages=SUB)
    stats = server.stats()
    assert (stats.requests, stats.root_requests, stats.sub_requests, stats.answered) == (3, 2, 1, 3)


def test_the_script_replies_by_turn_and_repeats_its_last(serve):
    _, client = serve(script=("one", "two", "three"))
    messages, replies = list(ROOT), []
    for _ in range(4):
        replies.append(client.chat.completions.create(model="m", messages=messages).choices[0].message.content)
        messages += [{"role": "assistant", "content": replies[-1]}, {"role": "user", "content": "go on"}]
    assert replies == ["one", "two", "three", "three"]


def test_the_rule_for_sub_calls_can_be_given(serve):
    _, client = serve(sub_replies=str.upper)
    assert ask(client, "hello").choices[0].message.content == "HELLO"


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": "a part"}], "\ud83d alone"])
def test_any_content_of_a_message_is_taken(serve, content):
    _, client = serve(sub_replies=lambda prompt: f"<{prompt}>")
    port = client.base_url.port
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
    connection.request("POST", "/v1/chat/completions", body)
    answer = json.load(connection.getresponse())
    connection.close()
    assert answer["choices"][0]["message"]["content"] in ("<>", "<a part>", "<\ud83d alone>")


@pytest.mark.parametrize("reply", ["", "short", "long and with\n\nblank lines é " * 50])
def test_a_stream_holds_the_same_text_and_ends_with_the_usage(serve, reply):
    _, client = serve(sub_replies=lambda _: reply)
    with ask(client, "x", stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == -(-len(reply) // 4)


def test_a_stream_without_the_option_has_no_usage(serve):
    _, client = serve()
    with ask(client, "x", stream=True) as stream:
        assert all(chunk.usage is None and chunk.choices for chunk in stream)


def test_max_tokens_cut_the_answer(serve):
    _, client = serve(sub_replies=lambda _: "x" * 100)
    choice = ask(client, "x", max_completion_tokens=5).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("x" * 20, "length")


def test_a_wrong_key_is_refused_with_openais_error(serve):
    server, client = serve(api_key="sk-other")
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(client, "x")
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert server.stats().errors[401] == 2
    assert ask(client.with_options(api_key="sk-other"), "x")


def test_an_unknown_model_is_not_found(serve):
    _, client = serve(models=("gpt-5", "gpt-5-nano"))
    assert [model.id for model in client.models.list()] == ["gpt-5", "gpt-5-nano"]
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "x")
    assert refused.value.code == "model_not_found"


def test_messages_longer_than_the_window_are_refused(serve):
    _, client = serve(window_tokens=10)
    assert ask(client, "x" * 40)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "x" * 41)
    assert refused.value.code == "context_length_exceeded"


def test_over_the_rate_limit_is_429_with_retry_after(serve):
    server, client = serve(rate_limit=2)
    ask(client, "1")
    ask(client, "2")
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client, "3")
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["retry-after"] == "1"
    assert 0 < int(refused.value.response.headers["retry-after-ms"]) <= 500
    assert ask(client.with_options(max_retries=1), "3"), "a client that waits as told gets its answer"
    assert server.stats().errors == {429: 2}


def test_a_fault_strikes_each_prompt_the_given_number_of_times(serve):
    server, client = serve(faults=(Fault(match="bad", times=2, status=503, headers={"retry-after": "7"}),))
    for prompt in ("bad 1", "bad 2"):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as refused:
                ask(client, prompt)
            assert refused.value.status_code == 503
            assert refused.value.response.headers["retry-after"] == "7"
        assert ask(client, prompt)
    assert ask(client, "good")
    assert server.stats().errors == {503: 4}
    assert server.stats().prompts_answered_more_than_once == 0


def test_a_fault_can_drop_the_connection(serve):
    server, client = serve(faults=(Fault(match="x", drop=True),))
    with pytest.raises(openai.APIConnectionError):
        ask(client, "x")
    assert ask(client, "x")
    assert server.stats().dropped == 1
    assert server.stats().in_flight == 0


WRONG_ANSWERS = [
    (WrongAnswer.EMPTY, "", None, "stop"),
    (WrongAnswer.DECLINED, "", "I cannot help with that.", "stop"),
    (WrongAnswer.FILTERED, "x" * 50, None, "content_filter"),
    (WrongAnswer.CUT, "x" * 50, None, "length"),
]


@pytest.mark.parametrize(("how", "content", "refusal", "finish_reason"), WRONG_ANSWERS)
def test_a_fault_can_spoil_an_answer(serve, how, content, refusal, finish_reason):
    _, client = serve(sub_replies=lambda _: "x" * 100, faults=(Fault(answer=how, times=2),))
    completion = ask(client, "x")
    (choice,) = completion.choices
    assert (choice.message.content, choice.message.refusal) == (content, refusal)
    assert choice.finish_reason == finish_reason
    assert completion.usage.completion_tokens == -(-len(content) // 4)
    with ask(client, "x", stream=True) as stream:
        choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.delta.content or "" for choice in choices) == content
    assert "".join(choice.delta.refusal or "" for choice in choices) == (refusal or "")
    assert choices[-1].finish_reason == finish_reason
    assert ask(client, "x").choices[0].finish_reason == "stop"


def test_a_server_that_cannot_stream_says_so(serve):
    _, client = serve(streams=False)
    assert ask(client, "x")
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        ask(client, "x", stream=True)


def test_who_stops_waiting_is_not_answered(serve):
    server, client = serve(faults=(Fault(match="x", hang_s=60),))
    with pytest.raises(openai.APITimeoutError):
        ask(client, "x", timeout=0.05)
    assert ask(client, "x")
    stats = server.stats()
    assert (stats.requests, stats.answered, stats.abandoned, stats.in_flight) == (2, 1, 1, 0)
    assert stats.prompts_answered_more_than_once == 0


def test_the_end_of_the_server_cuts_open_requests_off():
    with serve_offline(OfflineSettings(latency_s=60)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0)
        failed = []

        def call():
            try:
                ask(client, "x")
            except openai.APIConnectionError as exc:
                failed.append(exc)

        caller = threading.Thread(target=call)
        caller.start()
        while not server.stats().in_flight:
            time.sleep(0.001)
    caller.join()
    client.close()
    assert len(failed) == 1


def test_requests_wait_for_the_latency_side_by_side(serve):
    server, _ = serve(latency_s=0.2)
    start = time.perf_counter()
    results = asyncio.run(ask_all(server, [f"prompt {number}" for number in range(50)]))
    assert 0.2 <= time.perf_counter() - start < 5
    assert statuses(results) == [200] * 50
    stats = server.stats()
    assert (stats.peak_in_flight, stats.in_flight, stats.distinct_sub_prompts) == (50, 0, 50)
    assert stats.prompts_answered_more_than_once == 0


def test_a_blocked_event_loop_does_not_keep_the_server_from_answering(serve):
    async def blocked():
        _, client = serve()
        return ask(client, "x")  # a synchronous call, inside of a coroutine

    assert asyncio.run(blocked())


def test_an_error_rate_strikes_the_same_prompts_whatever_their_order(serve):
    prompts = [f"prompt {number}" for number in range(60)]
    first, _ = serve(error_rate=0.3, seed=4)
    second, _ = serve(error_rate=0.3, seed=4)
    other, _ = serve(error_rate=0.3, seed=5)
    struck = statuses(asyncio.run(ask_all(first, prompts)))
    assert 8 <= struck.count(500) <= 28
    assert statuses(asyncio.run(ask_all(second, prompts[::-1])))[::-1] == struck
    assert statuses(asyncio.run(ask_all(other, prompts))) != struck


def test_jitter_goes_by_seed_and_prompt(serve):
    def order_of_answers(seed, prompts):
        order = []
        server, _ = serve(latency_s=0.2, jitter=1, seed=seed, sub_replies=lambda p: order.append(p) or "ok")
        asyncio.run(ask_all(server, prompts))
        return "".join(order)

    # seeds whose draws for these prompts are far apart: 0.07, 0.56, 1.14, 1.98 and 0.02, 1.20, 1.63, 1.87 latencies
    assert order_of_answers(40, "abcd") == order_of_answers(40, "dcba") == "acbd"
    assert order_of_answers(0, "abcd") == "bdac"


def test_prompts_answered_twice_are_counted(serve):
    server, client = serve()
    for prompt in ("a", "b", "a", "a", "c", "c"):
        ask(client, prompt)
    stats = server.stats()
    assert (stats.prompts_answered_more_than_once, stats.distinct_sub_prompts) == (2, 3)
    assert stats.recent_prompts == ("a", "b", "a", "a", "c", "c")


def test_stats_are_served_and_unknown_addresses_and_bodies_refused(serve):
    _, client = serve(faults=(Fault(status=418),))
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port)

    def fetch(method, path, body=None):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.load(response)

    with pytest.raises(openai.APIStatusError):
        ask(client, "x")
    for body in ("", "no json", "[]", "{}", '{"model": "m", "messages": []}', '{"model": "m", "messages": [1]}'):
        status, answer = fetch("POST", "/v1/chat/completions", body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert fetch("GET", "/v1/nothing")[0] == 404
    status, stats = fetch("GET", "/stats")
    connection.close()
    assert (status, stats["requests"], stats["errors"]) == (200, 7, {"418": 1, "400": 6})


@pytest.mark.parametrize(
    "wrong", [{"latency_s": -1}, {"rate_limit": -1}, {"jitter": 2}, {"error_rate": 1.5}, {"script": ()}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        OfflineSettings(**wrong)


def test_a_script_file_holds_replies_between_lines_of_dashes(tmp_path):
    path = tmp_path / "script.txt"
    path.write_text("one\n\n```repl\nx = '---'\n```\n---\ntwo\n")
    assert read_script(path) == ("one\n\n```repl\nx = '---'\n```", "two")
    with pytest.raises(InputError):
        read_script(tmp_path / "none")


def test_in_the_foreground_it_serves_until_a_signal():
    program = (
        "from rlm.offline.server import OfflineSettings, run_offline\n"
        "run_offline(OfflineSettings(), port=0, on_listening=lambda url: print(url, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            with openai.OpenAI(base_url=process.stdout.readline().strip(), api_key="k", max_retries=0) as client:
                assert ask(client, "x")
                process.terminate()
                assert process.wait() == -signal.SIGTERM
        finally:
            process.kill()


def test_a_taken_port_is_an_input_error():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        run_offline(OfflineSettings(), port=taken.getsockname()[1], on_listening=pytest.fail)
