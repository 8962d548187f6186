"""Bytes in and out of a Sandbox's own network: connect tokens, tunnels, and the way out to the host's loopback.

Every Sandbox may listen on the same port, since each has a network of its own. Nothing runs inside for this: the
sockets belong to the inside and are handled out here.
"""

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .jail import Jail, JailError
from .wire import log

_HEAD_BYTES = 64 << 10
_CHUNK = 256 << 10
_LOOPBACK_URL = re.compile(r"\bhttps?://(?:127\.0\.0\.1|localhost):(\d{1,5})")


async def connect_inside(jail: Jail, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port of the Sandbox. Raises OSError, JailError."""
    sock = await jail.socket()
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=sock, limit=_CHUNK)
    except BaseException:
        sock.close()
        raise


def loopback_ports(env: Iterable[str]) -> set[int]:
    """The ports of the host's loopback that the environment names in URLs, such as OPENAI_BASE_URL."""
    return {int(port) for value in env for port in _LOOPBACK_URL.findall(value) if int(port) < 65536}


class Relay:
    """Listeners whose connections are piped elsewhere. `close` ends them all."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(
        self, sock: socket.socket, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> int:
        """Serve a bound socket; returns its port."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                # Only `close` cancels; asyncio 3.11 would print the cancellation of a connection's task as an error.
                with contextlib.suppress(OSError, JailError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await serve(reader, writer)
            finally:
                self._tasks.discard(task)
                await _hang_up(writer)

        self._servers.append(await asyncio.start_server(handle, sock=sock, limit=_CHUNK))
        port: int = sock.getsockname()[1]
        return port

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._servers.clear()


class Egress:
    """The ports of the host's loopback that one Sandbox can reach, at the same address inside."""

    def __init__(self, jail: Jail) -> None:
        self._jail = jail
        self._relay = Relay()
        self._ports: set[int] = set()

    async def allow(self, ports: Iterable[int]) -> None:
        for port in set(ports) - self._ports:
            self._ports.add(port)
            sock = await self._jail.socket()
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
            except OSError as exc:
                sock.close()
                log.warning("port %d is taken inside the Sandbox: %s", port, exc)
                continue
            await self._relay.listen(sock, _outward(port))

    async def open_proxy(self, allowed: Sequence[str] | None) -> dict[str, str]:
        """A proxy inside for HTTPS to the world: to the `allowed` domains, or all of them. Returns variables for it."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            verb, _, rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").partition(" ")
            host, _, port = rest.partition(" ")[0].rpartition(":")
            if verb != "CONNECT" or not (allowed is None or _within(host, allowed)):
                await _refuse(writer, "403 Forbidden", f"{host or rest} is not allowed from this Sandbox")
                return
            there = await asyncio.open_connection(host, int(port), limit=_CHUNK)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _splice(reader, writer, *there)

        sock = await self._jail.socket()
        sock.bind(("127.0.0.1", 0))
        port = await self._relay.listen(sock, serve)
        proxy = f"http://127.0.0.1:{port}"
        return {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "127.0.0.1,localhost"}

    async def close(self) -> None:
        await self._relay.close()


def _within(host: str, domains: Iterable[str]) -> bool:
    return any(host == d or (d.startswith("*.") and host.endswith(d[1:])) for d in domains)


def _outward(port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port, limit=_CHUNK)
        await _splice(reader, writer, to_reader, to_writer)

    return serve


@dataclass
class ConnectToken:
    port: int
    user_metadata: str
    expired: bool = False


@dataclass(eq=False)
class Gate:
    """The public face of one Sandbox: an address, and the tokens that are good there."""

    jail: Callable[[], Jail | None]
    url: str = ""
    tokens: dict[str, ConnectToken] = field(default_factory=dict)

    def mint(self, port: int, user_metadata: str) -> str:
        token = secrets.token_urlsafe(24)
        self.tokens[token] = ConnectToken(port, user_metadata)
        return token

    def expire(self) -> int:
        fresh = [token for token in self.tokens.values() if not token.expired]
        for token in fresh:
            token.expired = True
        return len(fresh)


class ConnectProxy:
    """HTTP in front of Sandboxes: one address each, a bearer token for every request.

    One request per connection: the answer tells the client to close, so that no later request slips past the check.
    """

    def __init__(self) -> None:
        self._relay = Relay()

    async def open(self, gate: Gate) -> None:
        """Give the gate its address; it stays, and answers 404 when its Sandbox is gone."""
        sock = _loopback()
        port = await self._relay.listen(sock, lambda reader, writer: self._serve(gate, reader, writer))
        gate.url = f"http://127.0.0.1:{port}"

    async def tunnel(self, jail: Callable[[], Jail | None], port: int) -> int:
        """A plain TCP way to a port of the Sandbox; returns the port out here."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (inside := jail()) is not None:
                await _splice(reader, writer, *await connect_inside(inside, port))

        return await self._relay.listen(_loopback(), serve)

    async def close(self) -> None:
        await self._relay.close()

    async def _serve(self, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await _refuse(writer, "431 Request Header Fields Too Large", "the head of the request is too large")
            return
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        token = _bearer(first, headers)
        grant = gate.tokens.get(token)
        if grant is None or grant.expired:
            await _refuse(writer, "401 Unauthorized", "the connect token is missing, wrong or expired")
            return
        jail = gate.jail()
        if jail is None:
            await _refuse(writer, "404 Not Found", "the Sandbox has ended")
            return
        try:
            inside = await connect_inside(jail, grant.port)
        except (OSError, JailError):
            await _refuse(writer, "502 Bad Gateway", f"nothing listens on port {grant.port} of the Sandbox")
            return
        upgrade = any(name.lower() == "upgrade" for name, _ in headers)
        drop = {"x-verified-user-data"} if upgrade else {"x-verified-user-data", "connection", "keep-alive"}
        kept = [(name, value) for name, value in headers if name.lower() not in drop]
        kept.append(("X-Verified-User-Data", grant.user_metadata))
        if not upgrade:
            kept.append(("Connection", "close"))
        inside[1].write("\r\n".join([first, *(f"{n}: {v}" for n, v in kept), "", ""]).encode("latin-1"))
        await _splice(reader, writer, *inside, prologue=None if upgrade else _say_close)


def _bearer(first: str, headers: Iterable[tuple[str, str]]) -> str:
    for name, value in headers:
        if name.lower() == "authorization" and value.lower().startswith("bearer "):
            return value[7:].strip()
    found = re.search(r"[?&]_modal_connect_token=([\w-]+)", first)
    return found.group(1) if found else ""


async def _refuse(writer: asyncio.StreamWriter, status: str, why: str) -> None:
    body = why.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _say_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on the head of an answer with `Connection: close`, which not every server says though it does so."""
    head = b"HTTP/1.1 100"
    while head.split(b" ", 2)[1].startswith(b"1"):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(head if b" 100 " in head[:16] else head[:-2] + b"Connection: close\r\n\r\n")


async def _splice(
    a_reader: asyncio.StreamReader,
    a_writer: asyncio.StreamWriter,
    b_reader: asyncio.StreamReader,
    b_writer: asyncio.StreamWriter,
    *,
    prologue: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None,
) -> None:
    """Pipe both ways until b has said all it had to say, or one side is gone. `prologue` takes the first of that."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    forth = asyncio.ensure_future(pipe(a_reader, b_writer))
    try:
        if prologue is not None:
            await prologue(b_reader, a_writer)
        await pipe(b_reader, a_writer)
    finally:
        b_writer.close()  # before the first await, at which we may be cancelled
        forth.cancel()
        await asyncio.gather(forth, return_exceptions=True)
        await _hang_up(b_writer)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _loopback() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock
