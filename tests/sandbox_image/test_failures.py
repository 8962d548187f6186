import pytest

from sandbox_image.failures import MAX_RETRY_AFTER_S, failure, one_line, retry_after_s


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "?", "retry-after": "1"}, 1),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:30 GMT"}, 30),
        # what would have us ask again at once, or never
        ({"retry-after": "0"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after-ms": "-5000"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1" + "0" * 400}, None),
        ({"retry-after": "1000000000"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, MAX_RETRY_AFTER_S),
    ],
)
def test_reads_retry_after_in_all_its_forms(headers, seconds):
    assert retry_after_s(headers, now=60.0) == seconds


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"code": "rate_limit_exceeded"}, "rate_limited"),
        (429, {"code": "insufficient_quota"}, "out_of_quota"),
        (402, {"message": "Insufficient credits"}, "out_of_quota"),
        (401, {}, "key_refused"),
        (403, {}, "key_refused"),
        (500, {}, "transient"),
        (529, {}, "transient"),
        (408, {}, "transient"),
        (404, {"code": "model_not_found", "message": "gpt-6 does not exist"}, "unknown_model"),
        (404, {"message": "model 'x' not found, try pulling it first"}, "unknown_model"),
        (404, {"message": "Invalid URL (POST /v2/chat/completions)"}, "wrong_url"),
        (404, {"detail": "Not Found"}, "wrong_url"),
        (405, {}, "wrong_url"),
        (307, "it redirects to http://other/", "wrong_url"),
        (413, {}, "context_window"),
        (400, {"code": "context_length_exceeded"}, "context_window"),
        (400, {"message": "maximum context length is 8192 tokens"}, "context_window"),
        (400, {"message": "the request exceeds the available context size"}, "context_window"),
        (400, {"message": "Prompt is too long"}, "context_window"),
        (400, {"message": ["no text"], "code": ["no code"]}, "refused"),
        (422, "<html>", "refused"),
    ],
)
def test_failures_are_sorted_by_what_to_do(status, error, kind):
    body = error if isinstance(error, str) else {"error": error}
    assert failure(status, body).kind == kind


@pytest.mark.parametrize("body", [None, "", {}, {"error": None}, [], {"error": {"message": None}}])
def test_without_words_the_status_is_said(body):
    assert str(failure(500, body)) == "status 500"


def test_words_are_one_line_of_bounded_length_that_drives_no_terminal():
    assert one_line("a\r\n\tb \x1b[2J\x07 c") == "a b \ufffd[2J\ufffd c"
    assert len(one_line("x" * 10**6)) == 1000
