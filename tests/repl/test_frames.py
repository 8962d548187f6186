"""The host's codec: what it encodes it decodes, and no bytes crash it."""

import asyncio
import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.events import Answer, CellOutput, LateOutput
from rlm.repl import frames

text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.integers(min_value=-(2**60), max_value=2**60)
value = st.recursive(
    st.none() | st.booleans() | number | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
model = st.none() | text
late = st.builds(LateOutput, cell=number, stdout=text, stderr=text)
output = st.builds(
    CellOutput,
    stdout=text,
    stderr=text,
    value=text,
    error=st.none() | text,
    final=st.none() | st.builds(Answer, text=text),
    late=st.lists(late, max_size=3),
)
question = st.builds(frames.ChildQuestion, prompt=text, context=text, is_json=st.booleans())
frame = st.one_of(
    st.builds(frames.Ready, op=st.just("ready"), pid=number),
    st.builds(frames.Loaded, op=st.just("loaded"), description=text),
    st.builds(frames.LoadFailed, op=st.just("load_failed"), message=text),
    st.builds(frames.Done, op=st.just("done"), number=number, output=output),
    *(
        st.builds(
            kind, op=st.just("call"), kind=st.just(name), id=number, items=st.lists(items, max_size=3), model=model
        )
        for kind, name, items in [
            (frames.LLMCall, "llm", text),
            (frames.RLMCall, "rlm", question),
            (frames.BudgetCall, "budget", text),
        ]
    ),
)
nonces = st.binary(min_size=16, max_size=16)


def data_of(nonce, record):
    fields = dataclasses.asdict(record)
    return frames.encode(nonce, fields.pop("op"), **fields)


@given(nonces, frame)
def test_what_is_encoded_is_decoded(nonce, record):
    data = data_of(nonce, record)
    header, body = data[: frames.HEADER_BYTES], data[frames.HEADER_BYTES :]
    assert frames.body_bytes(nonce, header) == len(body)
    assert frames.decode(body) == record


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_frame(body):
    with pytest.raises(ValueError, match="not a frame"):
        frames.decode(body)


@given(value | st.dictionaries(st.sampled_from(["op", "kind", "id", "items"]), st.sampled_from(["call", "llm", 1, []])))
def test_arbitrary_json_is_no_frame(body):
    with pytest.raises(ValueError, match="not a frame"):
        frames.decode(json.dumps(body).encode())


@given(frame, st.data())
def test_a_damaged_frame_is_a_frame_or_a_value_error(record, data):
    body = bytearray(data_of(bytes(16), record)[frames.HEADER_BYTES :])
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        frames.decode(bytes(body))


@given(nonces, st.binary(min_size=20, max_size=20))
def test_arbitrary_headers_are_refused(nonce, header):
    if header[:16] == nonce:
        return
    with pytest.raises(ValueError, match="not a frame of this session"):
        frames.body_bytes(nonce, header)


def test_a_frame_that_is_too_long_is_refused_by_its_header():
    with pytest.raises(ValueError, match="not a frame of this session"):
        frames.body_bytes(bytes(16), bytes(16) + (frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


@given(st.lists(frame, min_size=1, max_size=4), st.data())
def test_frames_may_be_split_at_any_point(records, data):
    nonce = bytes(range(16))
    stream = b"".join(data_of(nonce, record) for record in records)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))

    async def read_all():
        reader = asyncio.StreamReader()
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            reader.feed_data(stream[start:end])
        reader.feed_eof()
        found = []
        while header := await reader.read(1):
            header += await reader.readexactly(frames.HEADER_BYTES - 1)
            found.append(frames.decode(await reader.readexactly(frames.body_bytes(nonce, header))))
        return found

    assert asyncio.run(read_all()) == records
