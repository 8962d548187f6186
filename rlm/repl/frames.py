"""The frames of the REPL as the host sees them: what model-written code sends is checked before it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rlm.events import CellOutput

NONCE_BYTES = 16
HEADER_BYTES = NONCE_BYTES + 4
MAX_FRAME_BYTES = 257 << 20  # the driver refuses to send more than 256 MiB


@dataclass(frozen=True, slots=True)
class Ready:
    """The REPL has started."""

    op: Literal["ready"]
    pid: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The context is read. `description` tells its kind and size."""

    op: Literal["loaded"]
    description: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The context could not be read."""

    op: Literal["load_failed"]
    message: str


@dataclass(frozen=True, slots=True)
class ChildQuestion:
    """One question of a cell for a child run. Its context is a text, or JSON that nobody but the child reads."""

    prompt: str
    context: str
    is_json: bool


@dataclass(frozen=True, slots=True)
class LLMCall:
    """A cell asks sub-LLMs; `model` of None is the run's own."""

    op: Literal["call"]
    kind: Literal["llm"]
    id: int
    items: list[str]
    model: str | None


@dataclass(frozen=True, slots=True)
class RLMCall:
    """A cell asks for child runs."""

    op: Literal["call"]
    kind: Literal["rlm"]
    id: int
    items: list[ChildQuestion]
    model: str | None


@dataclass(frozen=True, slots=True)
class BudgetCall:
    """A cell asks what is left of the budget."""

    op: Literal["call"]
    kind: Literal["budget"]
    id: int
    items: list[str]
    model: str | None


Call = LLMCall | RLMCall | BudgetCall


@dataclass(frozen=True, slots=True)
class Done:
    """A cell has run."""

    op: Literal["done"]
    number: int
    output: CellOutput


_BY_CALL = Annotated[LLMCall | RLMCall | BudgetCall, Field(discriminator="kind")]
_FRAME: TypeAdapter[Ready | Loaded | LoadFailed | Done | Call] = TypeAdapter(
    Annotated[Ready | Loaded | LoadFailed | Done | _BY_CALL, Field(discriminator="op")]
)
Frame = Ready | Loaded | LoadFailed | Done | LLMCall | RLMCall | BudgetCall


def decode(body: bytes) -> Frame:
    """The frame in `body`.

    Raises: ValueError when it is none.
    """
    try:
        return _FRAME.validate_json(body)
    except ValidationError as exc:
        raise ValueError(f"not a frame: {exc.errors(include_input=False)[0]['msg']}") from exc


def encode(nonce: bytes, op: str, **fields: object) -> bytes:
    """A frame for the REPL: nonce, length, JSON."""
    body = json.dumps({"op": op, **fields}).encode()
    return nonce + len(body).to_bytes(4, "big") + body


def body_bytes(nonce: bytes, header: bytes) -> int:
    """The length of the frame that begins with `header`.

    Raises: ValueError when it is not a header of this session.
    """
    size = int.from_bytes(header[NONCE_BYTES:], "big")
    if header[:NONCE_BYTES] != nonce or size > MAX_FRAME_BYTES:
        raise ValueError("not a frame of this session")
    return size
