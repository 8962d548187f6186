"""HTTP as we speak it, to a provider and to a worker: read in a bounded way, failures told in words of our own.

An error of aiohttp holds the request with its Authorization header, so nothing of it is ever shown.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl
import urllib.request
import zlib
from collections.abc import AsyncIterator, Sequence

import aiohttp
import httpx2
from yarl import URL

CONNECT_TIMEOUT_S = 30
MAX_BODY_BYTES = 4 * 2**20  # decoded. The longest answers of today's models, as escaped JSON, take half of it
PIECE_BYTES = 2**16
LONG_BODY_BYTES = 2**20
KEPT_HEADERS = ("content-type", "retry-after", "retry-after-ms", "location")  # all that we read of an answer's headers
EVENT_STREAM = "text/event-stream"


class BodyTooLargeError(Exception):
    """A body is longer than it may be."""


def open_session(*, tls: ssl.SSLContext | bool = True) -> aiohttp.ClientSession:
    """A session that keeps no cookies and decodes nothing by itself, on connections that notice a dead peer."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=_socket),
        headers={"Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def _socket(address: tuple[int, int, int, str, object]) -> socket.socket:
    """A socket with TCP keep-alive: it tells a peer that thinks for minutes from one that is gone within three."""
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
        if (option := getattr(socket, name, None)) is not None:
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
    return opened


def payload(body: bytes) -> bytes | io.BytesIO:
    """What aiohttp takes as the body: a long one as a file, so that writing it does not hold the event loop up."""
    return body if len(body) <= LONG_BODY_BYTES else io.BytesIO(body)


async def pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body, decoded, in pieces of a bounded size.

    Raises: httpx2.DecodingError for an encoding that cannot be taken off.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        async for piece in response.content.iter_chunked(PIECE_BYTES):
            yield piece
        return
    if encoding not in ("gzip", "deflate"):
        raise httpx2.DecodingError("its answer is encoded in a way that was not asked for")
    decoder = zlib.decompressobj(wbits=47)  # gzip or zlib, as its first bytes tell
    try:
        async for piece in response.content.iter_chunked(PIECE_BYTES):
            while piece:
                yield decoder.decompress(piece, PIECE_BYTES)
                await asyncio.sleep(0)  # a little can decode to very much: who waits may lose patience meanwhile
                piece = decoder.unconsumed_tail  # noqa: PLW2901
    except zlib.error:
        raise httpx2.DecodingError("its answer is compressed, and broken") from None


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body, decoded.

    Raises: BodyTooLargeError, before more than `max_bytes` are taken into memory; httpx2.DecodingError.
    """
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) > max_bytes:
            raise BodyTooLargeError(f"its answer is longer than {max_bytes:,} bytes")
    return bytes(body)


class ProviderTransport(httpx2.AsyncBaseTransport):
    """What the SDK sends its requests with: aiohttp, which carries half as many calls again as httpx2's own.

    An answer comes whole, unless it is a stream of events, and the request accepts one.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises: httpx2.TransportError, httpx2.DecodingError."""
        url = URL(str(request.url), encoded=True)
        if self._session is None:  # all requests go to one provider; reading the certificates takes its time
            self._proxy = proxy_for(url)
            self._session = open_session(tls=httpx2.create_ssl_context() if url.scheme == "https" else True)
        try:
            response = await self._session.request(
                request.method,
                url,
                headers={**request.headers, "accept-encoding": "identity"},
                data=payload(request.content),
                allow_redirects=False,  # the key is for the one who was named, and nobody else
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _translated(exc) from None
        headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        headers["content-type"] = kind  # without a charset: what we read is UTF-8
        if kind == EVENT_STREAM == request.headers.get("accept") and response.status == 200:
            return httpx2.Response(200, headers=headers, stream=_Stream(response))
        try:
            content = await read_body(response, MAX_BODY_BYTES)
        except (aiohttp.ClientError, OSError, ValueError, BodyTooLargeError) as exc:
            raise _translated(exc) from None
        finally:
            response.close()  # a connection that was read to its end has gone back to the pool already
        return httpx2.Response(response.status, headers=headers, content=content)

    async def aclose(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in pieces(self._response):
                yield piece
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise _translated(exc) from None

    async def aclose(self) -> None:
        self._response.close()


def proxy_for(url: URL) -> str | None:
    """The proxy that the environment names for the URL."""
    proxies = urllib.request.getproxies()
    if not proxies or urllib.request.proxy_bypass(url.host or ""):
        return None
    return proxies.get(url.scheme) or proxies.get("all")


def _translated(exc: Exception) -> httpx2.TransportError:
    timed_out = isinstance(exc, TimeoutError)
    return (httpx2.TimeoutException if timed_out else httpx2.TransportError)(words_for(exc))


# What went wrong, from the special to the general, as aiohttp's classes derive from one another.
PLAIN_WORDS: Sequence[tuple[type[Exception], str]] = (
    (aiohttp.ClientConnectorCertificateError, "no TLS connection: its certificate is not to be trusted"),
    (aiohttp.ClientSSLError, "no TLS connection: the handshake failed"),
    (aiohttp.ClientProxyConnectionError, "the proxy cannot be reached"),
    (aiohttp.ClientHttpProxyError, "the proxy refuses to connect"),
    (aiohttp.ClientResponseError, "its answer is no HTTP, or has too many or too long headers"),
    (aiohttp.ClientPayloadError, "its answer broke off"),
    (aiohttp.InvalidURL, "its address is no URL that can be called"),
    (TimeoutError, "it did not answer in time"),
)


def words_for(exc: Exception) -> str:
    """What went wrong between us and who we called: in our words, with nothing that came from there, and no key."""
    if isinstance(exc, BodyTooLargeError):
        return str(exc)
    for kind, words in PLAIN_WORDS:
        if isinstance(exc, kind):
            return words
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"cannot connect to {exc.host}:{exc.port}: {exc.os_error.strerror or 'the network fails'}"
    if isinstance(exc, OSError) and exc.errno:
        return f"the connection failed: {os.strerror(exc.errno)}"
    return "the connection was closed" if isinstance(exc, aiohttp.ClientConnectionError) else "it cannot be asked so"
