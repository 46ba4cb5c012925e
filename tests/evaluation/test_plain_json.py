"""What is plain JSON comes back equal; what is not is refused with its place."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advssl.evaluation.plain_json import parsed, plain
from advssl.evaluation.records import Threat

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(value=values)
def test_what_is_plain_comes_back_equal(value):
    assert plain(value, "x") == value
    assert json.loads(json.dumps(plain(value, "x"), allow_nan=False)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), [1, 2]),
        (np.float32(0.5), 0.5),
        (torch.tensor(3), 3),
        (Threat("linf", 0.5), {"norm": "linf", "radius": 0.5}),
    ],
)
def test_what_has_a_plain_meaning_becomes_it(value, expected):
    assert plain({"a": value}, "x") == {"a": expected}


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, {1}, object(), np.ones(2)])
def test_all_else_is_refused_with_its_place(value):
    with pytest.raises(ValueError, match=r"x\[0\]\['a'\]"):
        plain([{"a": value}], "x")


def test_what_is_nested_64_deep_is_kept_and_no_more():
    value: list = []
    for _ in range(63):
        value = [value]
    assert plain(value, "x") == value
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        plain([value], "x")


def test_a_number_that_is_none_becomes_text_where_that_is_meant():
    assert plain([math.nan, -math.inf], "x", finite=False) == ["nan", "-inf"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": 1, "a": 2}', "[" * 100_000])
def test_text_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="thing"):
        parsed(text, "thing")


def test_an_object_is_read():
    assert parsed('{"a": [1, null]}', "thing") == {"a": [1, None]}
