"""The members that a row becomes: its pictures under numbers, and a caption or an annotation that shows each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import IMAGES, TURNS, VIDEO
from pipeline.samples.schema import SchemaPolicy
from pipeline.samples.strict_json import JsonValue
from pipeline.tools.convert.image_field import ORIGINAL_NAMES
from pipeline.tools.convert.media_bytes import media_extension
from pipeline.tools.convert.repair import repair_turns
from pipeline.tools.convert.row import Part, Reading
from pipeline.tools.convert.row_media import is_file_name
from pipeline.tools.convert.source import Members

_MAX_DEPTH = 32
_ROLES = {"human": "user", "gpt": "assistant"}
"""Roles of LLaVA as messages name them."""


def write_members(
    reading: Reading, contents: Sequence[bytes], kept: Mapping[str, Any], policy: SchemaPolicy
) -> Members:
    """Return the members of a row.

    Args:
        reading: what `read_row` made of it.
        contents: bytes of its media, in the order of `reading.media`.
        kept: fields to write in addition to turns and images.
        policy: repairs to apply.

    Raises:
        DataError: a picture of an unsupported format, or text that is not Unicode.
    """
    members, names = _stored(reading, contents)
    if reading.caption is not None:
        if len(members) == 1 == len(names):
            members = {names[0].partition(".")[2]: contents[0]}
        return {**members, "txt": encode(reading.caption)}
    tree: dict[str, JsonValue] = {**kept}
    if names:
        tree[VIDEO if reading.is_film else "image"] = [*names]
        if ORIGINAL_NAMES not in kept and all(is_file_name(one.value) for one in reading.media):
            tree[ORIGINAL_NAMES] = [one.value for one in reading.media]
    field, turns = _turns(reading)
    tree[field] = turns
    tree = repair_turns(tree, policy, num_images=0 if reading.is_film else len(names))
    return {**members, "json": encode(json.dumps(tree, ensure_ascii=False))}


def kept_fields(row: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return the fields of a JSON row that are written as they are: all but what was read and what the schema reads."""
    dropped = {*reading.used, *TURNS, *IMAGES, VIDEO, ORIGINAL_NAMES}
    return {name: value for name, value in row.items() if name not in dropped}


def encode(text: Any) -> bytes:
    """Return a text as UTF-8.

    Raises:
        DataError: no text, or a lone surrogate.
    """
    if not isinstance(text, str):
        raise DataError(Reason.MISSING_ANNOTATION, "a caption that is not text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in the text") from None


def _stored(reading: Reading, contents: Sequence[bytes]) -> tuple[Members, list[str]]:
    """Return the pictures by extension, and the extension of each place; a file that is shown twice is stored once."""
    members: Members = {}
    by_source: dict[object, str] = {}
    names = []
    for found, data in zip(reading.media, contents, strict=True):
        source = found.value if isinstance(found.value, str) else id(found.value)
        if source not in by_source:
            by_source[source] = f"{len(members)}.{media_extension(data)}"
            members[by_source[source]] = data
        names.append(by_source[source])
    return members, names


def _turns(reading: Reading) -> tuple[str, JsonValue]:
    if reading.plain_turns is None:
        return TURNS[1], [
            {"role": _ROLES.get(role, role), "content": [_typed(part, reading.is_film) for part in parts]}
            for role, parts in reading.turns
        ]
    turns = [checked(turn) for turn in reading.plain_turns]
    is_llava = any("from" in turn or "value" in turn for turn in turns)
    return TURNS[0] if is_llava else TURNS[1], turns


def _typed(part: Part, is_film: bool) -> dict[str, JsonValue]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": VIDEO if is_film else "image"}


def checked(value: Any, depth: int = 0) -> Any:
    """Return a value of a turn without null fields; a table has every field in every row.

    Raises:
        DataError: nested too deep, or of a type that JSON does not know.
    """
    if depth > _MAX_DEPTH:
        raise DataError(Reason.JSON_TOO_DEEP, f"turns nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {name: checked(one, depth + 1) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [checked(one, depth + 1) for one in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    raise DataError(Reason.JSON_INVALID, f"a value of type {type(value).__name__} in a turn")
