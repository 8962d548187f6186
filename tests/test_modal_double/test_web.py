"""Web Functions over HTTP."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import modal
import pytest

from tests.modal_double import PROXY_KEY, PROXY_SECRET, Faults, ModalDouble


@pytest.fixture(scope="module")
def url(deployed: ModalDouble) -> str:
    return deployed.web_url("site", "web")


def test_the_client_knows_the_address(deployed: ModalDouble, url: str) -> None:
    assert modal.Function.from_name("site", "web").get_web_url() == url


def test_requests_and_answers(url: str) -> None:
    with httpx.Client(base_url=url, timeout=15) as client:
        answer = client.get("/items/a%20b", params={"q": "x y"}, headers={"X-Thing": "t"})
        assert answer.json() == {"name": "a b", "q": "x y", "header": "t"}
        answer = client.post("/length", content=b"x" * 5_000_000)
        assert (answer.status_code, answer.json()) == (201, 5_000_000)
        assert client.delete("/items/some").status_code == 204
        assert client.delete("/items/none").status_code == 404
        assert client.get("/boom").status_code == 500


def test_events_are_streamed_as_they_come(url: str) -> None:
    started, seen = time.monotonic(), []
    with httpx.stream("GET", url + "/events", params={"n": 3, "pause_s": 0.3}, timeout=15) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data:"):
                seen.append((line, time.monotonic() - started))
    assert [line for line, _ in seen] == ["data: 0", "data: 1", "data: 2"]
    assert seen[2][1] - seen[0][1] > 0.5


def test_the_app_learns_that_the_client_went_away(deployed: ModalDouble, url: str) -> None:
    with httpx.stream("GET", url + "/events", params={"n": 1000, "pause_s": 0.05}, timeout=15) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 10
    while "the client went away" not in deployed.logs("site"):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_many_at_once(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        client.get("/items/warm")
    started = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: httpx.get(url + "/slow", params={"seconds": 0.5}), range(10)))
    assert {a.json() for a in answers} == {"at last"}
    assert time.monotonic() - started < 4


def test_proxy_auth(deployed: ModalDouble) -> None:
    url = deployed.web_url("site", "guarded")
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"Modal-Key": PROXY_KEY, "Modal-Secret": "wrong"}).status_code == 401
    answer = httpx.get(url, headers={"Modal-Key": PROXY_KEY, "Modal-Secret": PROXY_SECRET}, timeout=15)
    assert answer.json() == "come in"


def test_a_slow_answer_is_cut_and_can_be_polled(url: str, modal_faults: Faults) -> None:
    modal_faults.cut_web_answers(after_s=0.5)
    answer = httpx.get(url + "/slow", params={"seconds": 1.2}, timeout=15)
    assert answer.status_code == 303
    answer = httpx.get(answer.headers["location"], follow_redirects=True, timeout=15)
    assert (answer.status_code, answer.json()) == (200, "at last")
