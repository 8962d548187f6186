"""The frames of the REPL as the host sees them: what model-written code sends is bounded before it is read.

A frame of the REPL has a small head in JSON, and texts, which may be large, each as it is. So nothing large is ever
parsed, whose parts may take many times the memory of its bytes. The driver's docstring has the layout.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import struct
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rlm.events import Answer, CellOutput, LateOutput

NONCE_BYTES = 16
HEADER_BYTES = NONCE_BYTES + 8
MIB = 1 << 20
MAX_HEAD_BYTES = 64 << 10
MAX_TEXTS = 100_000  # the driver lets no more prompts into one call
MAX_CALL_BYTES = 260 * MIB  # as Python holds it; the driver sends no more than 256 MiB
MAX_ANSWER_CHARS = 10_000_000  # the driver refuses a longer one
MAX_UTF8_BYTES = 4  # of a character
MAX_REASON_CHARS = 200
TOO_LARGE = "not a frame: its texts are larger than they may be"
PIECE_BYTES = 1 << 20
STR_BYTES = 80  # a little more than an empty one takes
TEXTS_OF_A_CHILD = 3  # prompt, context, kind of context
TEXTS_OF_OUTPUT, FINAL_TEXT = 5, 4

Number = Annotated[int, Field(ge=0, lt=1 << 53)]


@dataclass(frozen=True, slots=True)
class Ready:
    """The REPL has started."""

    op: Literal["ready"]
    pid: Number


@dataclass(frozen=True, slots=True)
class Loaded:
    """The context is read: a description of it, its Python type, and the libraries that cells can import."""

    op: Literal["loaded"]
    description: str
    type: Annotated[str, Field(max_length=20)]
    libraries: Annotated[list[Annotated[str, Field(max_length=20)]], Field(max_length=20)]


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
    """Cell number `cell` asks sub-LLMs; `model` of None is the run's own."""

    kind: Literal["llm"]
    id: int
    cell: int
    items: list[str]
    model: str | None


@dataclass(frozen=True, slots=True)
class RLMCall:
    """Cell number `cell` asks for child runs."""

    kind: Literal["rlm"]
    id: int
    cell: int
    items: list[ChildQuestion]


@dataclass(frozen=True, slots=True)
class BudgetCall:
    """Cell number `cell` asks what is left of the budget."""

    kind: Literal["budget"]
    id: int
    cell: int


Call = LLMCall | RLMCall | BudgetCall


@dataclass(frozen=True, slots=True)
class Done:
    """A cell has run."""

    number: int
    output: CellOutput


Frame = Ready | Loaded | LoadFailed | Done | LLMCall | RLMCall | BudgetCall


@dataclass(frozen=True, slots=True)
class _CallHead:
    op: Literal["call"]
    kind: Literal["llm", "rlm", "budget"]
    id: Number
    cell: Number
    model: Annotated[str, Field(max_length=200)] | None


@dataclass(frozen=True, slots=True)
class _DoneHead:
    """Its texts: stdout, stderr, value, error, final answer; then stdout and stderr of each entry of `late`."""

    op: Literal["done"]
    number: Number
    has_error: bool
    has_final: bool
    is_json: bool
    late: Annotated[list[Number], Field(max_length=100)]
    new_names: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=20)]


_Head = Ready | Loaded | LoadFailed | _CallHead | _DoneHead
_HEAD: TypeAdapter[_Head] = TypeAdapter(Annotated[_Head, Field(discriminator="op")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a frame may have: characters of a cell's output, and of a prompt (None: as many as a call may carry)."""

    output_chars: int
    prompt_chars: int | None


@dataclass(frozen=True, slots=True)
class Outline:
    """The sizes of a frame whose head and texts are still to be read."""

    head_bytes: int
    text_bytes: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return self.head_bytes + sum(self.text_bytes)


async def read_outline(reader: asyncio.StreamReader, nonce: bytes) -> Outline:
    """The sizes of the next frame.

    Raises: ValueError when it is none of this session, or larger than any may be.
    """
    header = await reader.readexactly(HEADER_BYTES)
    head_bytes, texts = struct.unpack(">2I", header[NONCE_BYTES:])
    if header[:NONCE_BYTES] != nonce or head_bytes > MAX_HEAD_BYTES or texts > MAX_TEXTS:
        raise ValueError("not a frame of this session")
    outline = Outline(head_bytes, struct.unpack(f">{texts}I", await reader.readexactly(4 * texts)))
    if outline.size_bytes > MAX_CALL_BYTES:
        raise ValueError("not a frame of this session")
    return outline


async def read_frame(reader: asyncio.StreamReader, outline: Outline, bounds: Bounds) -> Frame:
    """The frame whose sizes are known.

    Raises: ValueError when it is none.
    """
    try:
        head = _HEAD.validate_json(await reader.readexactly(outline.head_bytes))
    except ValidationError as exc:
        reason = exc.errors(include_input=False, include_url=False, include_context=False)[0]["msg"]
        raise ValueError(f"not a frame: {reason[:MAX_REASON_CHARS]}") from exc
    _check_sizes(head, outline.text_bytes, bounds)
    texts = await _read_texts(reader, outline.text_bytes)
    match head:
        case _DoneHead():
            return _done(head, texts)
        case _CallHead(kind="llm"):
            return LLMCall("llm", head.id, head.cell, texts, head.model)
        case _CallHead(kind="rlm"):
            return RLMCall("rlm", head.id, head.cell, _questions(texts))
        case _CallHead():
            return BudgetCall("budget", head.id, head.cell)
    return head


def _check_sizes(head: _Head, sizes: tuple[int, ...], bounds: Bounds) -> None:
    """Whether a frame of this kind may have such texts.

    Raises: ValueError when it may not.
    """
    fits = not sizes
    match head:
        case _DoneHead():
            fits = (
                len(sizes) == TEXTS_OF_OUTPUT + 2 * len(head.late)
                and sizes[FINAL_TEXT] <= MAX_UTF8_BYTES * MAX_ANSWER_CHARS
                and sum(sizes) - sizes[FINAL_TEXT] <= MAX_UTF8_BYTES * bounds.output_chars
            )
        case _CallHead(kind="llm"):
            most = MAX_CALL_BYTES if bounds.prompt_chars is None else MAX_UTF8_BYTES * bounds.prompt_chars
            fits = bool(sizes) and max(sizes) <= most
        case _CallHead(kind="rlm"):
            fits = bool(sizes) and len(sizes) % TEXTS_OF_A_CHILD == 0
    if not fits:
        raise ValueError("not a frame: it has texts of other sizes than there may be")


async def _read_texts(reader: asyncio.StreamReader, sizes: tuple[int, ...]) -> list[str]:
    texts: list[str] = []
    room_bytes = MAX_CALL_BYTES
    for size in sizes:
        try:
            if size <= PIECE_BYTES:
                texts.append(str(await reader.readexactly(size), "utf-8"))
            else:
                texts.append(await _read_large_text(reader, size, room_bytes))
        except UnicodeDecodeError as exc:
            raise ValueError("not a frame: a text is not UTF-8") from exc
        room_bytes -= sys.getsizeof(texts[-1])
        if room_bytes < 0:
            raise ValueError(TOO_LARGE)
    return texts


async def _read_large_text(reader: asyncio.StreamReader, size: int, room_bytes: int) -> str:
    """A text of `size` bytes of UTF-8, in pieces, so that no more than twice its memory is taken on the way."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces: list[str] = []
    characters, width = 0, 1
    for start in range(0, size, PIECE_BYTES):
        data = await reader.readexactly(min(PIECE_BYTES, size - start))
        pieces.append(decoder.decode(data, start + len(data) == size))
        characters += len(pieces[-1])
        width = max(width, _width(pieces[-1]))
        if characters * width > room_bytes:
            raise ValueError(TOO_LARGE)
    return "".join(pieces)


def _width(piece: str) -> int:
    """The bytes that Python takes for each character: 1, 2 or 4, as the widest one needs."""
    return (sys.getsizeof(piece) - STR_BYTES) // max(len(piece), 1) + 1


def _questions(texts: list[str]) -> list[ChildQuestion]:
    triples = zip(*(texts[field::TEXTS_OF_A_CHILD] for field in range(TEXTS_OF_A_CHILD)), strict=True)
    return [ChildQuestion(prompt, context, kind == "json") for prompt, context, kind in triples]


def _done(head: _DoneHead, texts: list[str]) -> Done:
    stdout, stderr, value, error, final, *late = texts
    output = CellOutput(
        stdout=stdout,
        stderr=stderr,
        value=value,
        error=error if head.has_error else None,
        final=Answer(text=final, is_json=head.is_json) if head.has_final else None,
        late=[
            LateOutput(cell=cell, stdout=out, stderr=err)
            for cell, out, err in zip(head.late, late[::2], late[1::2], strict=True)
        ],
        new_names=head.new_names,
    )
    return Done(head.number, output)


def encode(nonce: bytes, op: str, /, **fields: object) -> bytes:
    """A frame for the REPL: nonce, length, JSON."""
    body = json.dumps({"op": op, **fields}).encode()
    return nonce + len(body).to_bytes(4, "big") + body
