"""Strangers at the door: nothing of theirs is read, and what is read has an end."""

from __future__ import annotations

import json
import resource
import socket
import time

import httpx
import pytest

from tests.web.conftest import TOKEN, serving

AUTHORIZATION = f"Authorization: Bearer {TOKEN}\r\n".encode()
RUN = json.dumps({"question": "q", "context": "c"}).encode()


def spoken(served, *parts, shut=False, pause_s=0.0):
    """What the server says to these bytes before it closes the connection, or has nothing more to say."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)  # a slow client
            if shut:
                connection.shutdown(socket.SHUT_WR)
        except OSError:  # it has closed the connection already
            pass
        said = b""
        try:
            while chunk := connection.recv(65_536):
                said += chunk
                if b'"}' in said.partition(b"\r\n\r\n")[2]:
                    break
        except ConnectionResetError:
            pass
        return said


def post(*, authorization=AUTHORIZATION, extra=b""):
    return b"POST /v1/runs HTTP/1.1\r\nHost: x\r\n" + authorization + extra


@pytest.fixture(scope="module")
def served():
    with serving(max_body_bytes=1_000, body_timeout_s=0.5) as served:
        yield served


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/x", "/openapi.json", "/docs", "/", "/healthz/", "/nothing"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_without_the_token_every_path_but_healthz_is_shut(served, method, path):
    answer = httpx.request(method, served.url + path)
    assert (answer.status_code, answer.json()) == (401, {"detail": "wrong or missing bearer token"})
    assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{served.url}/healthz").json() == {"ok": True}


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Authorization: \r\n",
        b"Authorization: Bearer\r\n",
        b"Authorization: Bearer \r\n",
        b"Authorization: Bearer wrong\r\n",
        b"Authorization: " + TOKEN.encode() + b"\r\n",
        b"Authorization: Basic " + TOKEN.encode() + b"\r\n",
        b"Authorization: Bearer " + TOKEN.encode("latin-1") + b"\r\n",
        b"Authorization: Bearer " + TOKEN.encode() + b"x\r\n",
        b"Authorization: Bearer " + TOKEN.encode()[:-1] + b"\r\n",
        b"Authorization: Bearer \xff\xfe\r\n",
        AUTHORIZATION + AUTHORIZATION,
        AUTHORIZATION + b"Authorization: Bearer wrong\r\n",
        b"Authorization: Bearer wrong\r\n" + AUTHORIZATION,
        b"X-Authorization: Bearer " + TOKEN.encode() + b"\r\n",
        b"Cookie: token=" + TOKEN.encode() + b"\r\n",
    ],
)
def test_only_one_header_with_the_token_opens(served, authorization):
    said = spoken(served, post(authorization=authorization, extra=b"Content-Length: 0\r\n\r\n"))
    assert said.startswith(b"HTTP/1.1 401 ")
    assert served.store.requests == []


def test_a_token_in_the_query_does_not_open(served):
    for name in ("token", "access_token", "authorization"):
        assert httpx.get(f"{served.url}/v1/runs/x", params={name: TOKEN}).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_the_same_in_any_case(served, scheme):
    headers = {"Authorization": f"{scheme} {TOKEN}".encode()}
    assert httpx.get(f"{served.url}/v1/runs/x", headers=headers).status_code == 404


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_without_a_token_of_its_own_it_is_closed_for_everybody(token):
    with serving(token=token) as served:
        for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"}):
            answer = httpx.post(f"{served.url}/v1/runs", headers=headers, json={"question": "q", "context": "c"})
            assert answer.status_code == 503
            assert "rlm-api-token" in answer.json()["detail"]
        assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_a_line_end_in_the_secret_is_not_part_of_the_token():
    with serving(token="abc\n") as served:
        headers = {"Authorization": "Bearer abc"}
        assert httpx.get(f"{served.url}/v1/runs/x", headers=headers).status_code == 404


def test_a_stranger_is_answered_before_the_body_has_come(served):
    said = spoken(served, post(authorization=b"", extra=b"Content-Length: 57000000\r\n\r\n"))
    assert said.startswith(b"HTTP/1.1 401 ")
    said = spoken(served, post(authorization=b"", extra=b"Transfer-Encoding: chunked\r\n\r\n"), b"5\r\n[[[[[\r\n")
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in said


def test_what_a_stranger_sends_takes_no_memory(served):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = b"10000\r\n" + b"[]" * 0x8000 + b"\r\n"
    said = spoken(served, post(authorization=b"", extra=b"Transfer-Encoding: chunked\r\n\r\n"), *[block] * 900)
    assert said.startswith(b"HTTP/1.1 401 ") or said == b""  # b"": the answer was lost with the connection
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize(
    "request_",
    [
        (b"Content-Length: 1001\r\n\r\n",),
        (b"Content-Length: 999999999999999999\r\n\r\n",),
        (b"Transfer-Encoding: chunked\r\n\r\n", *[b"c8\r\n" + b" " * 200 + b"\r\n"] * 6),
    ],
)
def test_a_body_that_is_too_long_is_413_whatever_it_says_of_itself(served, request_):
    said = spoken(served, post(extra=request_[0]), *request_[1:])
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than 1,000 bytes" in said


def test_a_body_of_the_full_length_is_taken(served):
    body = RUN + b" " * (1_000 - len(RUN))
    said = spoken(served, post(extra=b"Content-Length: 1000\r\n\r\n"), body)
    assert said.startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize(
    "request_",
    [
        (b"Content-Length: 900\r\n\r\n", *[b"x"] * 20),
        (b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 20),
    ],
)
def test_a_body_that_trickles_is_given_up(served, request_):
    said = spoken(served, post(extra=request_[0]), *request_[1:], pause_s=0.05)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"the body took longer than 0.5 s to arrive" in said


def test_a_client_that_goes_away_in_mid_body_starts_nothing(served):
    count = len(served.store.requests)
    spoken(served, post(extra=b"Content-Length: 900\r\n\r\n"), RUN, shut=True)
    assert len(served.store.requests) == count


def test_huge_headers_are_refused_by_the_server(served):
    said = spoken(served, post(extra=b"X: " + b"x" * 1_000_000 + b"\r\nContent-Length: 0\r\n\r\n"))
    assert not said.startswith(b"HTTP/1.1 2")
    assert httpx.get(f"{served.url}/healthz").status_code == 200
