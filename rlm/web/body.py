"""The body of POST /v1/runs: from bytes to a request for a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from rlm.config import RunConfig
from rlm.errors import InputError
from rlm.runs.request import Inline, RunRequest

MAX_CONTAINERS = 4_000_000  # lists and dicts: empty ones are two bytes to send and sixty to keep
ERRORS_TOLD = 5
SHOWN_CHARS = 100


class NewRun(BaseModel):
    """A run to be made. What is left out is as in `RunConfig`; the limits are those of the command line."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"question": "Who signed it?", "context": "The lease was signed by Ada Lovelace.", "max_usd": 0.5},
                {"question": "Which pages name her?", "context": {"1": "...", "2": "..."}, "force_parallel": True},
            ]
        },
    )

    question: str = Field(min_length=1, max_length=100_000)
    context: Any = Field(description="A text, or any JSON value.")
    model: str | None = Field(None, max_length=200, description="The root LM.")
    recursive_model: str | None = Field(None, max_length=200, description="The sub-LLM.")
    max_iterations: int | None = Field(None, description="Replies of the root LM before the last request.")
    pool_size: int | None = Field(None, description="Workers at the most.")
    force_parallel: bool | None = Field(None, description="Use parallel_llm_query for every sub-call.")
    prompts: str | None = Field(None, pattern=r"\A[a-z][a-z0-9_]{0,40}\z", description="The name of a set of prompts.")
    request_timeout_s: float | None = Field(None, description="Seconds one request to a model may take.")
    sub_llm_chars: int | None = Field(None, description="Characters a sub-LLM takes in one prompt.")
    cell_timeout_s: float | None = Field(None, description="Seconds a cell may run.")
    max_output_chars: int | None = Field(None, description="Characters of a cell's output that the root LM sees.")
    max_calls: int | None = Field(None, description="Limit of sub-LLM calls.")
    max_tokens: int | None = Field(None, description="Limit of tokens, in and out, of all models.")
    max_usd: float | None = Field(None, description="Limit of cost in US dollars.")
    timeout_s: float | None = Field(None, description="Limit of the whole run, in seconds.")
    max_depth: int | None = Field(None, description="How deep child runs may nest.")
    max_children: int | None = Field(None, description="Child runs that go on at once, at each depth.")

    def request(self) -> RunRequest:
        """The run that is asked for.

        Raises: InputError when it makes no sense.
        """
        config = RunConfig.of(self.model_dump(exclude={"question", "context"}, exclude_none=True))
        return RunRequest(question=self.question, source=Inline(self.context), config=config)


def new_run(body: bytes) -> NewRun:
    """The run that a body asks for.

    Raises: InputError when it is no JSON, holds too many lists, or does not ask for a run.
    """
    if body.count(b"[") + body.count(b"{") > MAX_CONTAINERS:
        raise InputError(f"the body has more than {MAX_CONTAINERS:,} lists and dicts: give a large context as a text")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as exc:
        raise InputError(f"the body is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InputError("the body must be a JSON object")
    strange = [name for name in value if name not in NewRun.model_fields]
    if strange:
        raise InputError(f"there is no field {strange[0][:SHOWN_CHARS]!r}: use {', '.join(NewRun.model_fields)}")
    try:
        return NewRun.model_validate(value)
    except ValidationError as exc:
        errors = exc.errors(include_input=False, include_url=False)[:ERRORS_TOLD]
        told = (f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
        raise InputError("; ".join(told)) from exc
