"""The HTTP API: start a run, look at it, cancel it. Knows nothing of where runs are made."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, JsonValue

from rlm.errors import InputError
from rlm.runs.store import RunRecord, RunStore, State
from rlm.web.body import NewRun, new_run
from rlm.web.door import Door

if TYPE_CHECKING:
    from starlette.types import ASGIApp

DETAIL_CHARS = 800
DESCRIPTION = "Answers questions over contexts of any size. Every path but /healthz wants the bearer token."
BODY = {"required": True, "content": {"application/json": {"schema": NewRun.model_json_schema()}}}


class Json(JSONResponse):
    """JSON of ASCII characters alone: half a character that a model wrote has no other form."""

    def render(self, content: object) -> bytes:
        """The bytes of it."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class Refusal(BaseModel):
    """Why a request was not served."""

    detail: str


class Started(BaseModel):
    """A run that has been started."""

    id: str


class Run(BaseModel):
    """How a run stands, as `RunRecord` tells it."""

    id: str
    state: State
    answer: str | None
    value: JsonValue
    stopped_by: str | None
    iterations: int | None
    usage: dict[str, dict[str, int]]
    cost_usd: float | None
    error: str | None


def create_app(runs: RunStore, *, token: str) -> ASGIApp:
    """The API over a run store. Without a token it is closed: every route but /healthz answers 503."""
    return Door(routes(runs), token=token)


def routes(runs: RunStore) -> FastAPI:
    """What is behind the door. Its description is at /openapi.json."""
    app = FastAPI(title="rlm", description=DESCRIPTION, docs_url=None, redoc_url=None, default_response_class=Json)
    guarded: dict[str, Any] = {
        "dependencies": [Security(HTTPBearer(auto_error=False, description="The API token."))],
        "responses": {401: {"model": Refusal}, 503: {"model": Refusal, "description": "There is no token."}},
    }
    of_a_run: dict[str, Any] = {
        **guarded,
        "responses": {**guarded["responses"], 200: {"model": Run}, 404: {"model": Refusal}},
    }

    @app.exception_handler(InputError)
    async def bad_input(_: Request, exc: InputError) -> Response:
        return Json({"detail": str(exc)[:DETAIL_CHARS]}, 422)

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.post(
        "/v1/runs",
        status_code=202,
        openapi_extra={"requestBody": BODY},
        dependencies=guarded["dependencies"],
        responses={**guarded["responses"], 413: {"model": Refusal}, 422: {"model": Refusal}},
    )
    async def submit(request: Request) -> Started:
        run = new_run(await request.body()).request()
        await runs.submit(run)
        return Started(id=run.run_id)

    @app.get("/v1/runs/{run_id}", **of_a_run)
    async def get(run_id: str) -> Response:
        return found(await runs.get(run_id))

    @app.delete("/v1/runs/{run_id}", **of_a_run)
    async def cancel(run_id: str) -> Response:
        return found(await runs.cancel(run_id))

    return app


def found(record: RunRecord | None) -> Response:
    """The record as JSON, or 404."""
    if record is None:
        raise HTTPException(404, "there is no such run")
    return Json(asdict(record))
