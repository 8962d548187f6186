"""A provider that means harm: raw sockets, so that what it sends need not be HTTP.

A request says by its text which attack it asks for: `attack: NAME`. Attacks get the connection and the request's
Authorization header, as a hostile provider would.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

Attack = Callable[[socket.socket, str], None]

MIB = 2**20
TRICKLE_S = 0.05


def completion(text: object, usage: object = None, **choice: object) -> dict[str, object]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2} if usage is None else usage
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}],
        "usage": usage,
    }


def answered(body: object, status: str = "200 OK", kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(content)}", "Connection: close"]
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + content


def sends(*arguments: object) -> Attack:
    """An attack with one whole answer; `{auth}` in it becomes the Authorization header."""

    def attack(connection: socket.socket, auth: str) -> None:
        filled = [json.loads(json.dumps(argument).replace("{auth}", auth)) for argument in arguments]
        connection.sendall(answered(*filled))

    return attack


def raw(text: str) -> Attack:
    return lambda connection, auth: connection.sendall(text.replace("{auth}", auth).encode("utf-8", "surrogatepass"))


def forever(head: str, piece: bytes, pause_s: float = 0) -> Attack:
    """An attack without an end."""

    def attack(connection: socket.socket, _: str) -> None:
        connection.sendall(head.encode())
        while True:
            connection.sendall(piece)
            if pause_s:
                threading.Event().wait(pause_s)

    return attack


def stream(*events: object, end: bytes = b"data: [DONE]\n\n") -> Attack:
    """Server-sent events; a str is one line as it stands."""

    def attack(connection: socket.socket, auth: str) -> None:
        lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]
        body = "".join(lines).replace("{auth}", auth).encode() + end
        connection.sendall(EVENTS.encode() + body)

    return attack


def delta(text: str = "", **choice: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]}


def bomb(kind: str, data: bytes) -> Attack:
    """`data`, half a GiB of it, as gzip makes it small."""
    packer = zlib.compressobj(wbits=31)
    begin = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(data * (MIB // len(data))) + packer.flush(zlib.Z_FULL_FLUSH)
    return lambda c, _: c.sendall(answered(begin + block * 512, "200 OK", f"{kind}\r\nContent-Encoding: gzip"))


def unread(connection: socket.socket, _: str) -> None:
    """Answers in two halves while the request is still being written."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    threading.Event().wait(30)


JSON_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
EVENTS = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
COOKIES = "".join(f"\r\nSet-Cookie: c{n}={'v' * 4_000}" for n in range(100))
DEEP = "[" * 200_000

ATTACKS: dict[str, Attack] = {
    # The key in what is no proper HTTP
    "a header too long": raw(JSON_HEAD + "X-Echo: {auth}" + "a" * 20_000 + "\r\n\r\n{}"),
    "too many headers": raw(JSON_HEAD + "".join(f"X-{n}: {{auth}}\r\n" for n in range(5_000)) + "\r\n{}"),
    "no HTTP": raw("I know {auth}\r\n\r\n"),
    "HTTP 0.9": raw(json.dumps(completion("{auth}"))),
    "a bad status": raw("HTTP/1.1 99999 {auth}\r\n\r\n"),
    "a bad header": raw("HTTP/1.1 200 OK\r\n{auth}\r\n\r\n"),
    "a bad chunk": raw(JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n{auth}\r\n"),
    "a bad length": raw(JSON_HEAD + "Content-Length: {auth}\r\n\r\n{}"),
    "switching protocols": raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {auth}\r\n\r\n"),
    "an odd encoding": raw(JSON_HEAD + "Content-Encoding: {auth}\r\nContent-Length: 2\r\n\r\n{}"),
    "an odd charset": sends(completion("fine"), "200 OK", "application/json; charset=base64"),
    # The key in words
    "the key in an error": sends({"error": {"message": "no: {auth}\u001b[2J\nand more"}}, "400 Bad Request"),
    "the key at the cut": sends({"error": {"message": "x" * 985 + " {auth}"}}, "400 Bad Request"),
    "the key refused": sends({"error": {"message": "Incorrect API key provided: {auth}"}}, "401 Unauthorized"),
    "the key in a page": sends("<html>{auth}</html>", "500 Internal Server Error", "text/html"),
    "the key in no completion": sends({"hello": "{auth}"}),
    "the key in odd fields": sends({"error": {"message": {"auth": "{auth}"}, "code": ["{auth}"]}}, "400 Bad Request"),
    "the key in an answer": sends(completion("the key is {auth}")),
    "the key in a refusal": sends(completion("", message={"content": None, "refusal": "no, {auth}"})),
    "the key in base64": lambda c, auth: c.sendall(answered(completion(base64.b64encode(auth.encode()).decode()))),
    "the key in a URL": lambda c, auth: c.sendall(answered(completion(urllib.parse.quote(f"http://x/{auth}")))),
    "a redirect": raw(
        "HTTP/1.1 307 Go\r\nConnection: close\r\nLocation: http://127.0.0.1:9/{auth}\r\nContent-Length: 0\r\n\r\n"
    ),
    # Too much, too long
    "300 MB": forever(JSON_HEAD + f"Content-Length: {300 * MIB}\r\n\r\n", b"x" * MIB),
    "chunks without an end": forever(
        JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n", b"100\r\n" + b"x" * 256 + b"\r\n"
    ),
    "trailers without an end": forever(JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"a: b\r\n"),
    "an extension without an end": forever(JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n2;", b"x" * MIB),
    "a chunk too large": raw(JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n" + "f" * 40 + "\r\n{}"),
    "an error without an end": forever("HTTP/1.1 500 No\r\nContent-Type: text/plain\r\n\r\n", b"x" * MIB),
    "headers without an end": forever("HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "1xx without an end": forever("", b"HTTP/1.1 102 Processing\r\n\r\n" * 100),
    "a trickling body": forever(JSON_HEAD + "\r\n", b" ", TRICKLE_S),
    "a trickling header": forever("HTTP/1.1 200 OK\r\nX: ", b"y", TRICKLE_S),
    "nothing at all": forever("", b"", TRICKLE_S),
    "an answer before the request": unread,
    "a gzip bomb": bomb("application/json", b"\0"),
    "many cookies": lambda c, _: c.sendall(
        answered(completion("fine")).replace(b"\r\n\r\n", (COOKIES + "\r\n\r\n").encode(), 1)
    ),
    # Lies
    "a length too long": raw(JSON_HEAD + "Content-Length: 500\r\n\r\n{}"),
    "a length too short": raw(JSON_HEAD + "Content-Length: 5\r\n\r\n" + json.dumps(completion("fine"))),
    "closed at once": lambda *_: None,
    "closed in the middle": raw(JSON_HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "no content": raw("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
    "no UTF-8": lambda c, _: c.sendall(answered(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}')),
    "JSON too deep": sends(DEEP),
    "an error too deep": sends(DEEP, "500 Internal Server Error"),
    "a number too long": sends('{"choices": ' + "9" * 10_000 + "}"),
    "other types": sends({"choices": [{"message": {"content": {"a": 1}}, "finish_reason": [["x"]]}], "usage": [1]}),
    "infinite usage": sends(
        '{"choices": [{"message": {"content": "fine"}}], "usage": {"prompt_tokens": Infinity, '
        '"completion_tokens": NaN, "prompt_tokens_details": {"cached_tokens": -1e999}}}'
    ),
    "negative usage": sends(completion("fine", {"prompt_tokens": -7, "completion_tokens": True})),
    "huge usage": sends(completion("fine", {"prompt_tokens": 10**400, "completion_tokens": "9" * 5_000})),
    "a lone surrogate": sends('{"choices": [{"message": {"content": "\\ud800 fine"}}]}'),
    # Streams
    "a stream broken off": stream(delta("half"), end=b""),
    "a stream cut in an event": stream(delta("half"), 'data: {"choi', end=b""),
    "a stream of comments": forever(EVENTS, b": wait\n\n" * 100),
    "a stream of one line": forever(EVENTS, b"data: " + b"x" * MIB),
    "a stream of words": forever(EVENTS, f"data: {json.dumps(delta('x' * 60_000))}\n\n".encode()),
    "a stream of the key": stream(delta("sk-hostile-"), delta("0123456789abcdef", finish_reason="stop")),
    "a stream too deep": stream(f"data: {DEEP}\n\n"),
    "a stream with an error": stream(delta("half"), {"error": {"message": "overloaded: {auth}", "code": 502}}),
    "a stream that is none": stream("data: hello {auth}\n\n"),
    "a trickling stream": forever(EVENTS, f"data: {json.dumps(delta('.'))}\n\n".encode(), TRICKLE_S),
    "a stream that falls silent": forever(EVENTS + f"data: {json.dumps(delta('half'))}\n\n", b"", TRICKLE_S),
    "a stream with a bomb": bomb("text/event-stream", b":\n"),
    "a stream after its end": forever(
        EVENTS + f"data: {json.dumps(delta('fine', finish_reason='stop'))}\n\ndata: [DONE]\n\n", b": on\n\n"
    ),
}


class Memory:
    """How much more memory a process has had, at the most, than when this was made."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forgets the peak
        self._start_mib = self._peak_mib()

    def _peak_mib(self) -> int:
        return int(re.search(r"VmHWM:\s+(\d+)", self._status.read_text())[1]) // 1024

    def growth_mib(self) -> int:
        return self._peak_mib() - self._start_mib


@dataclass
class HostileProvider:
    """A running server."""

    base_url: str
    attacks: Mapping[str, Attack]
    asked: Counter[str] = field(default_factory=Counter)
    asked_for_a_stream: Counter[str] = field(default_factory=Counter)
    connections: list[socket.socket] = field(default_factory=list)

    def serve(self, connection: socket.socket) -> None:
        """Answer one request, and hang up."""
        with connection, suppress(OSError, ValueError):
            head, _, body = _received(connection).partition(b"\r\n\r\n")
            auth = re.search(rb"(?im)^authorization: *(.*?)\r?$", head)
            named = re.search(rb'attack: ([^"\\]+)', body)
            name = named[1].decode() if named else "no HTTP"
            self.asked[name] += 1
            self.asked_for_a_stream[name] += b'"stream":true' in body
            self.attacks[name](connection, auth[1].decode("latin-1") if auth else "")


def _received(connection: socket.socket) -> bytes:
    """The request's header, and as much of its body as holds the name of the attack."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    length = re.search(rb"(?im)^content-length: *(\d+)", data)
    wanted = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(data) < min(wanted, MIB):
        data += _some(connection)
    return data


def _some(connection: socket.socket) -> bytes:
    if not (piece := connection.recv(65536)):
        raise OSError("closed")
    return piece


@contextmanager
def serve_attacks(attacks: Mapping[str, Attack] = ATTACKS) -> Iterator[HostileProvider]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        provider = HostileProvider(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", attacks)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    provider.connections.append(connection)
                    threading.Thread(target=provider.serve, args=[connection], daemon=True).start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield provider
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in provider.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            acceptor.join()
