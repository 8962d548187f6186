"""The HTTP API: start a run, look at it, cancel it. Knows nothing of where runs are made."""

from __future__ import annotations

import hmac
from dataclasses import asdict
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rlm.config import RunConfig
from rlm.errors import InputError
from rlm.runs.request import Inline, RunRequest
from rlm.runs.store import RunRecord, RunStore


class NewRun(BaseModel):
    """The body of POST /v1/runs. What is left out is as in `RunConfig`."""

    model_config = ConfigDict(extra="forbid")

    question: str = Field(min_length=1)
    context: JsonValue
    model: str | None = None
    recursive_model: str | None = None
    max_iterations: int | None = None
    pool_size: int | None = None
    force_parallel: bool | None = None

    def request(self) -> RunRequest:
        """The run that is asked for.

        Raises: InputError when it makes no sense.
        """
        options: dict[str, Any] = self.model_dump(exclude={"question", "context"}, exclude_none=True)
        return RunRequest(question=self.question, source=Inline(self.context), config=RunConfig(**options))


def create_app(runs: RunStore, *, token: str) -> FastAPI:
    """The API over a run store. Without a token it is closed: every route but /healthz answers 503."""
    app = FastAPI(title="rlm", openapi_url=None)

    def authenticated(request: Request) -> None:
        if not token:
            raise HTTPException(
                503, "this deployment has no RLM_API_TOKEN, so it is closed: make the Secret rlm-api-token"
            )
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, "wrong or missing bearer token", {"WWW-Authenticate": "Bearer"})

    guarded = [Depends(authenticated)]

    @app.exception_handler(InputError)
    async def bad_input(_: Request, exc: InputError) -> Response:
        return JSONResponse({"detail": str(exc)}, 422)

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/v1/runs", status_code=202, dependencies=guarded)
    async def submit(body: NewRun) -> dict[str, str]:
        request = body.request()
        await runs.submit(request)
        return {"id": request.run_id}

    @app.get("/v1/runs/{run_id}", dependencies=guarded)
    async def get(run_id: str) -> dict[str, Any]:
        return found(await runs.get(run_id))

    @app.delete("/v1/runs/{run_id}", dependencies=guarded)
    async def cancel(run_id: str) -> dict[str, Any]:
        return found(await runs.cancel(run_id))

    return app


def found(record: RunRecord | None) -> dict[str, Any]:
    """The record as JSON, or 404."""
    if record is None:
        raise HTTPException(404, "there is no such run")
    return asdict(record)
