"""Web Functions."""

import asyncio
from collections.abc import AsyncIterator

import modal

app = modal.App("site")


@app.function()
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def web():
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import StreamingResponse

    api = FastAPI()

    @api.get("/items/{name}")
    async def get(name: str, request: Request, q: str = "") -> dict[str, str]:
        return {"name": name, "q": q, "header": request.headers.get("x-thing", "")}

    @api.post("/length", status_code=201)
    async def post(request: Request) -> int:
        return len(await request.body())

    @api.delete("/items/{name}", status_code=204)
    async def delete(name: str) -> None:
        if name == "none":
            raise HTTPException(404, "no such item")

    @api.get("/events")
    async def events(n: int, pause_s: float = 0.0) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            try:
                for i in range(n):
                    yield f"id: {i}\ndata: {i}\n\n"
                    await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                print("the client went away", flush=True)
                raise

        return StreamingResponse(lines(), media_type="text/event-stream")

    @api.get("/slow")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "at last"

    @api.get("/boom")
    async def boom() -> None:
        raise RuntimeError("boom")

    return api


@app.function()
@modal.asgi_app(requires_proxy_auth=True)
def guarded():
    from fastapi import FastAPI

    api = FastAPI()

    @api.get("/")
    async def root() -> str:
        return "come in"

    return api
