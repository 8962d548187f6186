import json

import pytest

from sandbox_image import provider


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "?", "retry-after": "1"}, 1),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:30 GMT"}, 30),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 0),
    ],
)
def test_reads_retry_after_in_all_its_forms(headers, seconds):
    assert provider.retry_after_s(headers, now=60.0) == seconds


@pytest.mark.parametrize("content", [None, "", "text"])
def test_no_content_is_the_empty_text(content):
    body = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    assert provider.read_completion(json.dumps(body).encode()) == provider.ProviderAnswer(
        text=content or "", input_tokens=0, cached_input_tokens=0, output_tokens=0
    )


def test_usage_counts_cached_tokens():
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    body = {"choices": [{"message": {"content": "t"}}], "usage": usage}
    answer = provider.read_completion(json.dumps(body).encode())
    assert (answer.input_tokens, answer.cached_input_tokens, answer.output_tokens) == (9, 4, 2)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_an_answer_that_is_no_completion_is_a_passing_fault_in_the_providers_words(body):
    with pytest.raises(provider.ProviderFailedError) as raised:
        provider.read_completion(body)
    assert raised.value.kind == "transient"
    assert body.decode() in str(raised.value)


@pytest.mark.parametrize(
    "words", ["maximum context length is 8192 tokens", "exceeds the available context size", "Prompt is too long"]
)
def test_the_window_is_known_by_the_words_of_servers_that_have_no_code_for_it(words):
    assert provider._is_about_the_window(words)
