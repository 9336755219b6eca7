"""An annotation's JSON object, and the fields in it that go by two names.

Data that was merged, or exported from a table, has every field in every row: one without content is null, or an empty
string where a file name would be, and counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.samples.strict_json import MAX_JSON_BYTES, JsonValue, parse_json

TURNS = ("conversations", "messages")
IMAGES = ("image", "images")
VIDEO = "video"
IMAGE_PARTS = ("image", "image_url")
_PART_KINDS = ("text", *IMAGE_PARTS, VIDEO)
_NAMES_OF_FILES = (*IMAGES, VIDEO)


def read_annotation(data: bytes, *, max_bytes: int = MAX_JSON_BYTES) -> JsonValue:
    """Parse an annotation and leave out the fields without content.

    Raises:
        DataError: it is not JSON, or too large or too deep.
    """
    return without_nulls(parse_json(data, max_bytes=max_bytes))


def without_nulls(value: JsonValue) -> JsonValue:
    """Leave out null fields of objects at any depth, and empty file names; items of lists keep their places."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if not _is_nothing(name, one)}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _is_nothing(name: str, value: JsonValue) -> bool:
    return value is None or (value == "" and name in _NAMES_OF_FILES) or (value == [] and name == VIDEO)


def either_field(tree: Mapping[str, JsonValue], names: tuple[str, str]) -> str | None:
    """Return which of two names for the same thing an object uses: the first one that holds something."""
    present = [name for name in names if name in tree]
    return next((name for name in present if tree[name]), present[0] if present else None)


def either(tree: Mapping[str, JsonValue], names: tuple[str, str]) -> JsonValue:
    """Return the value under one of two names for the same field; None without either."""
    name = either_field(tree, names)
    return None if name is None else tree[name]


def part_kind(part: JsonValue) -> JsonValue:
    """Return the kind of a part of a message: its `type`, else the name under which its content stands."""
    if not isinstance(part, dict):
        return None
    return part["type"] if "type" in part else next((kind for kind in _PART_KINDS if kind in part), None)
