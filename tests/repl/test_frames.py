"""The host's codec: what it encodes it decodes, and no bytes crash it."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.events import Answer, CellOutput, LateOutput
from rlm.repl import frames
from sandbox_image.channel import pack

BOUNDS = frames.Bounds(output_chars=10_000, prompt_chars=None)
text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.integers(min_value=0, max_value=2**53 - 1)
value = st.recursive(
    st.none() | st.booleans() | number | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
model = st.none() | text.filter(lambda name: len(name) <= 200)
late = st.builds(LateOutput, cell=number, stdout=text, stderr=text)
output = st.builds(
    CellOutput,
    stdout=text,
    stderr=text,
    value=text,
    error=st.none() | text,
    final=st.none() | st.builds(Answer, text=text, is_json=st.booleans()),
    late=st.lists(late, max_size=3),
    new_names=st.lists(text.filter(lambda name: len(name) <= 100), max_size=3),
)
question = st.builds(frames.ChildQuestion, prompt=text, context=text, is_json=st.booleans())
frame = st.one_of(
    st.builds(frames.Ready, op=st.just("ready"), pid=number),
    st.builds(frames.Loaded, op=st.just("loaded"), description=text, type=st.just("str"), libraries=st.just(["numpy"])),
    st.builds(frames.LoadFailed, op=st.just("load_failed"), message=text),
    st.builds(frames.Done, number=number, output=output),
    st.builds(
        frames.LLMCall,
        kind=st.just("llm"),
        id=number,
        cell=number,
        items=st.lists(text, min_size=1, max_size=3),
        model=model,
    ),
    st.builds(
        frames.RLMCall,
        kind=st.just("rlm"),
        id=number,
        cell=number,
        items=st.lists(question, min_size=1, max_size=3),
    ),
    st.builds(frames.BudgetCall, kind=st.just("budget"), id=number, cell=number),
)
nonces = st.binary(min_size=16, max_size=16)


def data_of(nonce, record):
    """The frame as the driver sends it."""
    match record:
        case frames.Ready(pid=pid):
            return pack(nonce, "ready", [], {"pid": pid})
        case frames.Loaded(description=told, type=kind, libraries=libraries):
            return pack(nonce, "loaded", [], {"description": told, "type": kind, "libraries": libraries})
        case frames.LoadFailed(message=told):
            return pack(nonce, "load_failed", [], {"message": told})
        case frames.Done(number=done, output=out):
            final = out.final or Answer(text="")
            texts = [out.stdout, out.stderr, out.value, out.error or "", final.text]
            texts += [stream for entry in out.late for stream in (entry.stdout, entry.stderr)]
            head = {"has_error": out.error is not None, "has_final": out.final is not None, "is_json": final.is_json}
            head |= {"number": done, "late": [entry.cell for entry in out.late], "new_names": out.new_names}
            return pack(nonce, "done", texts, head)
        case frames.RLMCall(items=items):
            texts = [part for item in items for part in (item.prompt, item.context, "json" if item.is_json else "text")]
            return pack(nonce, "call", texts, {"kind": "rlm", "id": record.id, "cell": record.cell, "model": None})
        case frames.LLMCall(items=items, model=name):
            return pack(nonce, "call", items, {"kind": "llm", "id": record.id, "cell": record.cell, "model": name})
        case frames.BudgetCall():
            return pack(nonce, "call", [], {"kind": "budget", "id": record.id, "cell": record.cell, "model": None})


def read_all(nonce, *pieces):
    """The frames in the pieces that arrive."""

    async def read():
        reader = asyncio.StreamReader()
        for piece in pieces:
            reader.feed_data(piece)
        reader.feed_eof()
        found = []
        while not reader.at_eof():
            outline = await frames.read_outline(reader, nonce)
            found.append(await frames.read_frame(reader, outline, BOUNDS))
        return found

    return asyncio.run(read())


@given(nonces, frame)
def test_what_the_driver_sends_is_what_the_host_reads(nonce, record):
    assert read_all(nonce, data_of(nonce, record)) == [record]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_head(body):
    with pytest.raises(ValueError, match="not a frame"):
        read_all(bytes(16), bytes(16) + len(body).to_bytes(4, "big") + bytes(4) + body)


@given(value | st.dictionaries(st.sampled_from(["op", "kind", "id", "cell"]), st.sampled_from(["call", "llm", 1, []])))
def test_arbitrary_json_is_no_head(head):
    body = json.dumps(head).encode()
    with pytest.raises(ValueError, match="not a frame"):
        read_all(bytes(16), bytes(16) + len(body).to_bytes(4, "big") + bytes(4) + body)


@given(frame, st.data())
def test_a_damaged_frame_is_a_frame_or_a_value_error_or_ends_early(record, data):
    body = bytearray(data_of(bytes(16), record))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, asyncio.IncompleteReadError):
        read_all(bytes(16), bytes(body))


@given(nonces, st.binary(min_size=24, max_size=24))
def test_arbitrary_headers_are_refused(nonce, header):
    if header[:16] == nonce:
        return
    with pytest.raises(ValueError, match="not a frame of this session"):
        read_all(nonce, header)


@given(st.lists(frame, min_size=1, max_size=4), st.data())
def test_frames_may_be_split_at_any_point(records, data):
    nonce = bytes(range(16))
    stream = b"".join(data_of(nonce, record) for record in records)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read_all(nonce, *pieces) == records


@pytest.mark.parametrize("widest", ["x", "\x7f", "\xff", "\u0100", "\uffff", "\U0001f600"])
def test_a_text_in_many_pieces_is_read_as_it_is_with_characters_torn_between_them(widest):
    text = "x" + (widest * 1_000 + "é") * 2_000
    call = frames.LLMCall("llm", 1, 1, [text, "short", ""], None)
    assert read_all(bytes(16), data_of(bytes(16), call)) == [call]


@pytest.mark.parametrize(("widest", "most"), [("x", 260), ("\u0100", 130), ("\U0001f600", 65)])
def test_a_text_that_would_take_more_memory_than_there_may_be_is_refused(widest, most):
    for mib, fits in ((most - 1, True), (most + 1, False)):
        text = widest + "x" * (mib << 20)
        frame = data_of(bytes(16), frames.LLMCall("llm", 1, 1, [text], None))
        if fits:
            assert len(read_all(bytes(16), frame)[0].items[0]) == len(text)
        else:
            with pytest.raises(ValueError, match="not a frame"):
                read_all(bytes(16), frame)
