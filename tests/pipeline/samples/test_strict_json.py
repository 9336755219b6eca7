"""JSON and text from untrusted bytes."""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, Reason
from pipeline.samples.strict_json import MAX_JSON_BYTES, MAX_JSON_DEPTH, decode_text, parse_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab\u00e9\n"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=values)
def test_parse_of_honest_json_returns_it(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.JSON_INVALID),
        (b"{", Reason.JSON_INVALID),
        (b"{} {}", Reason.JSON_INVALID),
        (b"[NaN]", Reason.JSON_INVALID),
        (b"[-Infinity]", Reason.JSON_INVALID),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', Reason.JSON_INVALID),
        (b"1" * 5000, Reason.JSON_INVALID),
        (b"'single'", Reason.JSON_INVALID),
        (b'"' + b"x" * MAX_JSON_BYTES + b'"', Reason.JSON_TOO_LARGE),
        (b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), Reason.JSON_TOO_DEEP),
        (b"[" * 100_000, Reason.JSON_TOO_DEEP),
        (b'{"a":' * 50_000, Reason.JSON_TOO_DEEP),
        (b'"\\ud800"', Reason.TEXT_INVALID_UNICODE),
        (b'{"\\udfff": 1}', Reason.TEXT_INVALID_UNICODE),
        (b'"a\\u0000b"', Reason.TEXT_INVALID_UNICODE),
        (b'"\xff"', Reason.TEXT_INVALID_UNICODE),
        ('"x"'.encode("utf-16"), Reason.TEXT_INVALID_UNICODE),
    ],
)
def test_parse_of_hostile_json_is_refused_with_its_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(DataError) as caught:
        parse_json(data)
    assert caught.value.reason == reason


def test_parse_of_json_at_the_depth_limit_is_accepted_and_recursion_limit_untouched() -> None:
    limit = sys.getrecursionlimit()
    assert parse_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH) is not None
    assert sys.getrecursionlimit() == limit


@given(data=st.binary(max_size=60))
def test_parse_of_any_bytes_gives_a_value_or_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        parse_json(data)


def test_decode_text_drops_a_byte_order_mark_and_keeps_pairs() -> None:
    assert decode_text(b"\xef\xbb\xbfa \xf0\x9f\x98\x80") == "a \U0001f600"
    assert parse_json(b'\xef\xbb\xbf"\\ud83d\\ude00"') == "\U0001f600"
