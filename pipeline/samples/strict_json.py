"""JSON as the standard defines it, from untrusted bytes.

Python's parser accepts NaN, keeps the last of two equal keys and lets lone surrogates through; each of those becomes a
different value, or a crash, somewhere later.
"""

from __future__ import annotations

import json
from typing import NoReturn

from pipeline.errors import DataError, Reason

MAX_JSON_BYTES = 1024 * 1024
MAX_JSON_DEPTH = 32

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


def parse_json(data: bytes, *, max_bytes: int = MAX_JSON_BYTES) -> JsonValue:
    """Parse one JSON document.

    Raises:
        DataError: larger than `max_bytes`, deeper than `MAX_JSON_DEPTH`, not JSON, or text that is not Unicode.
    """
    if len(data) > max_bytes:
        raise DataError(Reason.JSON_TOO_LARGE, f"{len(data)} bytes of JSON, at most {max_bytes} are read")
    text = decode_text(data)
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        # the exception's own text is safe: it names a position and never quotes the document
        raise DataError(Reason.JSON_INVALID, f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(Reason.JSON_INVALID, "a number with too many digits") from None
    _check_tree(value)
    return value


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        DataError: not UTF-8, or with a NUL character.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(Reason.TEXT_INVALID_UNICODE, f"byte {error.start} is not UTF-8") from None
    _check_text(text)
    return text


def _check_tree(value: JsonValue) -> None:
    """Check depth and every string without recursion."""
    pending: list[tuple[JsonValue, int]] = [(value, 1)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, str):
            _check_text(node)
        elif isinstance(node, dict | list):
            if depth > MAX_JSON_DEPTH:
                raise _too_deep()
            children = [*node, *node.values()] if isinstance(node, dict) else node
            pending += [(child, depth + 1) for child in children]


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise DataError(Reason.TEXT_INVALID_UNICODE, f"a NUL character at position {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(Reason.TEXT_INVALID_UNICODE, f"a lone surrogate at position {error.start}") from None


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise DataError(Reason.JSON_INVALID, "an object names the same key twice")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(Reason.JSON_INVALID, f"{name} is not JSON")


def _too_deep() -> DataError:
    return DataError(Reason.JSON_TOO_DEEP, f"JSON nested deeper than {MAX_JSON_DEPTH} levels")
