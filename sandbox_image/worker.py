"""A sub-LLM worker: an HTTP server that turns prompts into completions, many at once.

It runs by itself in its Image, so nothing of `rlm` is imported here. Its environment: `OPENAI_API_KEY` and
`OPENAI_BASE_URL` (the provider), `RLM_WORKER_TOKEN`, `RLM_WORKER_CONCURRENCY`.

    POST /complete   {"prompt", "model", "timeout_s"}
                     -> 200 {"text", "finish_reason", "usage"}
                        502 {"error": {"kind", "message", "retry_after_s", "usage"}}   the provider failed
                        503 the same, kind "busy": the worker is full
                        400 the same, kind "bad_request": this is no prompt, or longer than anybody takes
    GET  /stats      -> {"in_flight", "done", "failed", "limit"}
    GET  /healthz    -> 200, without a token

The worker never retries: only the pool sees all workers and knows what the provider asked of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hmac
import json
import math
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass

gc.disable()  # the imports below make a million objects and no garbage: a fifth of the time to start

import uvicorn  # noqa: E402
from fastapi import FastAPI, Request, Response  # noqa: E402

from sandbox_image.failures import ProviderFailedError, Usage  # noqa: E402
from sandbox_image.provider import ProviderClient  # noqa: E402

gc.freeze()
gc.enable()

LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEEP_ALIVE_S = 120  # longer than any client keeps an idle connection, so that we are never the one who hangs up
SHUTDOWN_GRACE_S = 1
MAX_BODY_BYTES = 64 * 2**20  # far more than any model takes
STDIN = 0


@dataclass(slots=True)
class Stats:
    """What `/stats` reports."""

    limit: int
    in_flight: int = 0
    done: int = 0
    failed: int = 0


def reply(status: int, content: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response. Plain: FastAPI's response models would cost more than all the rest of our own work."""
    return Response(json.dumps(content, ensure_ascii=False), status, headers, media_type="application/json")


def failure(
    status: int, kind: str, message: str, *, retry_after_s: float | None = None, usage: Usage | None = None
) -> Response:
    """The one shape of everything that is not a 200."""
    headers = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}
    error = {"kind": kind, "message": message, "retry_after_s": retry_after_s, "usage": asdict(usage or Usage())}
    return reply(status, {"error": error}, headers)


async def read_prompt(request: Request) -> tuple[str, str, float]:
    """The prompt, the model, and the seconds there are. Raises: ValueError, LookupError, TypeError, RecursionError."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ValueError("too long")
    asked = json.loads(body)
    timeout_s = float(asked["timeout_s"])
    if not 0 < timeout_s < math.inf:
        raise ValueError("no time")
    return str(asked["prompt"]), str(asked["model"]), timeout_s


@contextlib.asynccontextmanager
async def cancelled_on_disconnect(request: Request) -> AsyncIterator[None]:
    """Cancel the body when the client hangs up: a completion nobody waits for is not worth its price."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
    finally:
        watcher.cancel()


def build_app(client: ProviderClient, *, limit: int, token: str) -> FastAPI:
    """The worker's HTTP face. An empty `token` lets everybody in."""
    app = FastAPI(openapi_url=None)
    stats = Stats(limit)
    expected = f"Bearer {token}".encode()

    def refused(request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return bool(token) and not hmac.compare_digest(given, expected)

    @app.get("/healthz")
    async def healthz() -> Response:
        return reply(200, {"ok": True})

    @app.get("/stats")
    async def get_stats(request: Request) -> Response:
        if refused(request):
            return failure(401, "unauthorized", "the worker's token is missing or wrong")
        return reply(200, asdict(stats))

    async def post_complete(request: Request) -> Response:
        if refused(request):
            return failure(401, "unauthorized", "the worker's token is missing or wrong")
        try:
            prompt, model, timeout_s = await read_prompt(request)
        except (ValueError, LookupError, TypeError, RecursionError):
            wanted = f'wanted {{"prompt", "model", "timeout_s"}} in up to {MAX_BODY_BYTES:,} bytes'
            return failure(400, "bad_request", wanted)
        if stats.in_flight >= stats.limit:
            return failure(503, "busy", f"{stats.limit} prompts are in flight", retry_after_s=0.5)
        stats.in_flight += 1
        try:
            async with cancelled_on_disconnect(request):
                answer = await client.ask(model, [{"role": "user", "content": prompt}], timeout_s=timeout_s)
                stats.done += 1
                return reply(200, asdict(answer))
            return Response(status_code=499)  # to nobody
        except ProviderFailedError as exc:
            stats.failed += 1
            return failure(502, exc.kind, str(exc), retry_after_s=exc.retry_after_s, usage=exc.usage)
        finally:
            stats.in_flight -= 1

    app.add_route("/complete", post_complete, methods=["POST"])  # the bare route: no dependency solving on the hot path
    return app


def exit_when_stdin_closes() -> None:
    """End with the process that started us, however that one ended: its end of our stdin closes with it."""
    mode = os.fstat(STDIN).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(STDIN, 4096):
            loop.remove_reader(STDIN)
            signal.raise_signal(signal.SIGTERM)

    loop.add_reader(STDIN, readable)


def main() -> None:
    """Listen, say on stdout on which port, serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="a sub-LLM worker")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument("--behind-connect-token", action="store_true", help="a proxy in front of us checks the token")
    args = parser.parse_args()
    token = os.environ.get("RLM_WORKER_TOKEN", "")
    if args.host not in LOOPBACK and not token and not args.behind_connect_token:
        parser.error(f"{args.host} can be reached by others: set RLM_WORKER_TOKEN")
    limit = int(os.environ.get("RLM_WORKER_CONCURRENCY", "64"))

    client = ProviderClient(secret=token)
    app = build_app(client, limit=limit, token=token)
    listener = socket.create_server((args.host, args.port))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not args.behind_connect_token:
            exit_when_stdin_closes()
        sys.stdout.write(json.dumps({"port": listener.getsockname()[1]}) + "\n")
        sys.stdout.flush()
        async with client:
            yield

    app.router.lifespan_context = lifespan
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
