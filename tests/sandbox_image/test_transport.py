"""The client's HTTP: whom it calls, and that it notices who is gone."""

import asyncio
import re
import socket
from pathlib import Path

import pytest

from rlm.offline.server import OfflineSettings, serve_offline
from sandbox_image.failures import ProviderFailedError
from sandbox_image.provider import ProviderClient

MESSAGES = [{"role": "user", "content": "hello"}]


def ask(base_url, timeout_s=10):
    async def main():
        async with ProviderClient(api_key="sk-0123456789abcdef", base_url=base_url) as client:
            return (await client.ask("m", MESSAGES, timeout_s=timeout_s)).text

    return asyncio.run(main())


@pytest.fixture
def server():
    with serve_offline(OfflineSettings(sub_replies=str.upper)) as serving:
        yield serving


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
    assert ask("http://nowhere.invalid/v1") == "HELLO"


def test_a_host_that_needs_no_proxy_has_none(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://nowhere.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ask(server.base_url) == "HELLO"


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("http://127.0.0.1:1/v1", "cannot connect to 127.0.0.1:1"),
        ("http://nowhere.invalid/v1", "cannot connect to nowhere.invalid:80"),
    ],
)
def test_who_is_not_there_is_named(base_url, says):
    with pytest.raises(ProviderFailedError, match=says) as raised:
        ask(base_url)
    assert raised.value.kind == "transient"


def test_a_server_that_speaks_no_tls_is_told_as_such(server):
    with pytest.raises(ProviderFailedError, match="no TLS connection"):
        ask(server.base_url.replace("http:", "https:"))


def test_a_redirect_is_not_followed(server):
    """The key goes to the one who was named, and nobody else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def main():
            async def redirect(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                place = f"{server.base_url}/chat/completions"
                writer.write(f"HTTP/1.1 307 Go\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
                writer.close()

            client = ProviderClient(api_key="k", base_url=f"http://127.0.0.1:{port}/v1")
            async with await asyncio.start_server(redirect, sock=listener), client:
                with pytest.raises(ProviderFailedError, match=f"redirects to {server.base_url}") as raised:
                    await client.ask("m", MESSAGES, timeout_s=10)
            assert raised.value.kind == "wrong_url"

        port = listener.getsockname()[1]
        asyncio.run(main())
    assert server.stats().requests == 0


def timers_of_connections_to(port):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[5] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not tell")
def test_a_connection_that_waits_has_keep_alive(server):
    """`timer` 02 with time on it is TCP's keep-alive: the only sign of a peer that went away without a word."""

    async def main():
        async with ProviderClient(api_key="k", base_url=server.base_url) as client:
            await client.ask("m", MESSAGES, timeout_s=10)
            port = int(re.search(r":(\d+)/", server.base_url)[1])
            timers = timers_of_connections_to(port)
            assert timers
            assert all(timer.startswith("02:") for timer in timers)

    asyncio.run(main())
