import json

import pytest

from sandbox_image.completion import StreamedCompletion, read_completion
from sandbox_image.failures import ProviderFailedError, Usage


def completion(content, *, finish_reason="stop", usage=None, **message):
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def failure(body):
    with pytest.raises(ProviderFailedError) as raised:
        read_completion(body)
    return raised.value


@pytest.mark.parametrize("content", ["text", [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}, 7]])
def test_the_text_is_read_also_from_parts(content):
    assert read_completion(completion(content)).text == "text"


def test_usage_counts_cached_tokens():
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    assert read_completion(completion("t", usage=usage)).usage == Usage(9, 4, 2)


@pytest.mark.parametrize("count", ["-3", "NaN", "Infinity", "-Infinity", "1e300", "true", '"7"', "null", "[1]", "{}"])
def test_a_count_that_is_none_is_not_known(count):
    text = completion("t", usage={"prompt_tokens": 1, "completion_tokens": 1}).decode()
    answer = read_completion(text.replace('"completion_tokens": 1', f'"completion_tokens": {count}').encode())
    assert answer.usage == Usage(1, 0, 0)


def test_more_cached_tokens_than_were_sent_cannot_be():
    usage = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 50}}
    assert read_completion(completion("t", usage=usage)).usage == Usage(5, 5, 0)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"{}", b'"text"', b'{"choices": []}', b'{"choices": [{"message": null}]}', b'{"choices": 7}'],
)
def test_an_answer_that_is_no_completion_is_a_passing_fault_in_the_providers_words(body):
    error = failure(body)
    assert error.kind == "transient"
    assert body.decode() in str(error)


@pytest.mark.parametrize(
    ("finish_reason", "reads"), [("stop", "stop"), (None, "stop"), ("eos", "stop"), (7, "stop"), ("length", "length")]
)
def test_how_it_ended_is_told(finish_reason, reads):
    assert read_completion(completion("text", finish_reason=finish_reason)).finish_reason == reads


USAGE = {"prompt_tokens": 9, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (completion("", usage=USAGE), "empty", ""),
        (completion(None, usage=USAGE, finish_reason="tool_calls"), "empty", ""),
        (completion(" \n", usage=USAGE), "empty", ""),
        (completion("", usage=USAGE, finish_reason="length"), "empty", "output limit before the first word"),
        (completion(None, usage=USAGE, refusal="I cannot."), "declined", "I cannot."),
        (completion("half of", usage=USAGE, finish_reason="content_filter"), "declined", "content filter"),
    ],
)
def test_an_answer_without_words_is_a_failure_that_was_paid_for(body, kind, words):
    error = failure(body)
    assert (error.kind, error.usage) == (kind, Usage(9, 0, 2))
    assert words in str(error)


@pytest.mark.parametrize(("code", "kind"), [(502, "transient"), (429, "rate_limited"), (None, "transient")])
def test_an_error_with_status_200_is_that_error(code, kind):
    error = failure(json.dumps({"error": {"code": code, "message": "upstream is away"}}).encode())
    assert (error.kind, str(error)) == (kind, "upstream is away")


def streamed(*chunks):
    completion = StreamedCompletion()
    for chunk in chunks:
        completion.add(json.dumps(chunk))
    return completion


def chunk(finish_reason=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def test_a_stream_is_put_together():
    answer = streamed(
        chunk(role="assistant", content=""),
        chunk(content="te"),
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        chunk(content="xt"),
        chunk("length"),
        {"choices": [], "usage": USAGE},
    ).answer()
    assert (answer.text, answer.finish_reason, answer.usage) == ("text", "length", Usage(9, 0, 2))


def test_a_refusal_that_is_streamed_is_one():
    with pytest.raises(ProviderFailedError, match=r"^I cannot\.$"):
        streamed(chunk(refusal="I "), chunk("stop", refusal="cannot.")).answer()


def test_a_stream_that_ends_before_the_answer_broke_off():
    with pytest.raises(ProviderFailedError, match="broke off"):
        streamed(chunk(content="half")).answer()
