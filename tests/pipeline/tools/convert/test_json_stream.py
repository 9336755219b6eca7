"""Cutting a large JSON array into elements, for any chunks it arrives in."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError, Reason
from pipeline.tools.convert import json_stream
from pipeline.tools.convert.json_stream import iterate_array

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab]},[{"\\\u00e9\u4e16'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("x]", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(elements=st.lists(values, max_size=5), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_iterate_array_in_tiny_chunks_returns_every_element(
    elements: list[object], indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK_BYTES", 3)
        found = list(iterate_array(io.BytesIO(data)))
    assert [json.loads(element) for _, element in found] == elements
    assert all(data[at : at + len(element)] == element for at, element in found)


def test_iterate_array_keeps_what_only_the_strict_parser_judges() -> None:
    data = b'\xef\xbb\xbf[{"a": NaN}, {"a": 1, "a": 2}, "\\ud800"]'
    assert [element for _, element in iterate_array(io.BytesIO(data))] == [
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'"\\ud800"',
    ]


@pytest.mark.parametrize("chunk_bytes", [3, 4096, 10**6])
def test_iterate_array_passes_over_what_the_parser_cannot_take(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", chunk_bytes)
    deep = b'{"a]": "\\"}]{", "b": ' + b"[" * 20_000 + b'"]\\\\"' + b"]" * 20_000 + b"}"
    elements = [b'{"a": 1}', deep, b"9" * 5000, b'{"n": ' + b"7" * 5000 + b"}", b'"last"']
    data = b"[" + b" ,\n".join(elements) + b"]"
    found = list(iterate_array(io.BytesIO(data)))
    assert [element for _, element in found] == elements
    assert all(data[at : at + len(element)] == element for at, element in found)


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", Reason.JSON_INVALID, "not a JSON array"),
        (b'{"a": 1}', Reason.JSON_INVALID, "not a JSON array"),
        (b"[1, 2", Reason.JSON_INVALID, "element 2"),
        (b"[1, 2,", Reason.JSON_INVALID, "ends inside"),
        (b"[1 2]", Reason.JSON_INVALID, "comma"),
        (b"[1, oops]", Reason.JSON_INVALID, "element 1 of the array: Expecting value at byte 4"),
        (b'\xef\xbb\xbf["\xc3\xa9", {"a": oops}]', Reason.JSON_INVALID, "at byte 16"),
        (b"[1] []", Reason.JSON_INVALID, "after the end"),
        (b"[" + b"[" * 100_000, Reason.JSON_INVALID, "too deep"),
        (b"[" + b"9" * 5000, Reason.JSON_INVALID, "too many digits"),
        (b'["\xff"]', Reason.TEXT_INVALID_UNICODE, "not UTF-8 at byte 2"),
        (b'\xef\xbb\xbf["abcdefg\xff"]', Reason.TEXT_INVALID_UNICODE, "not UTF-8 at byte 12"),
    ],
)
def test_iterate_array_of_broken_file_says_where(data: bytes, reason: Reason, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(iterate_array(io.BytesIO(data)))
    assert caught.value.reason == reason
