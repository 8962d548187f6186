import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.events import Answer, CellCost, as_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_an_answer_gives_back_the_value_that_it_is_the_json_of(value):
    assert Answer(text=json.dumps(value, ensure_ascii=False), is_json=True).value == value


@given(st.text())
def test_a_text_is_its_own_value(text):
    assert Answer(text=text).value == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "NaN",
        "[1e999]",
        '"\\ud800"',
        "[" * 100_000,
        "[" * 500 + "]" * 500,
        '{"a":' * 500 + "1" + "}" * 500,
        "1" * 10_000,
    ],
    ids=range(9),
)
def test_a_forged_value_is_the_text_it_is(text):
    assert Answer(text=text, is_json=True).value == text


def test_the_deepest_value_can_be_written_and_copied():
    text = "[" * 100 + "]" * 100
    value = Answer(text=text, is_json=True).value
    assert value != text
    assert json.dumps(as_json(value)) == text
    assert asdict(Answer(text="")) == {"text": "", "is_json": False}


def test_the_cost_of_a_cell_is_json():
    assert as_json(CellCost(seconds=1.5)) == {"seconds": 1.5, "calls": 0, "tokens": 0, "usd": None}
