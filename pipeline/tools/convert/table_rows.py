"""Rows of a table to members of a sample: which columns hold images and text, and in which of the usual shapes.

Images: `{bytes, path}` as Hugging Face datasets store them, or plain bytes, one or a list. Text: a caption, turns in
either dialect (as structs or as JSON text), or a list of `{user, assistant}` pairs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import TURNS, either, read_annotation
from pipeline.samples.schema import SchemaPolicy
from pipeline.samples.strict_json import JsonValue
from pipeline.tools.convert.image_folder import image_extension
from pipeline.tools.convert.repair import repair_turns
from pipeline.tools.convert.source import Members

_IMAGE_NAMES = ("images", "image", "jpg", "jpeg", "png", "webp", "img")
_TURN_NAMES = ("conversations", "messages", "texts", "conversation")
_CAPTION_NAMES = ("caption", "text", "txt", "TEXT")
_MAX_DEPTH = 32
_JSON_TURNS = re.compile(r"[\s\ufeff]*(?:\[\s*\{|\{.*\"(?:conversations|messages)\"\s*:)", re.DOTALL)


class Columns(NamedTuple):
    """The columns of a table that make up a sample."""

    images: tuple[str, ...]
    """Those that may hold a row's images; the first one that is not null does."""
    texts: tuple[str, ...]
    """The same for its text."""
    id: str | None

    def names(self) -> list[str]:
        """Return the columns to read."""
        return [*self.images, *self.texts, *([self.id] if self.id is not None else [])]


def find_columns(schema: pa.Schema, image: str | None, text: str | None, where: str) -> Columns:
    """Return the columns of a sample: those that were named, else those with usual names.

    Merged tables have a column per name that a part brought along, each null in the rows of the others.

    Raises:
        ValueError: there is no such column.
    """
    for name in (image, text):
        if name is not None and name not in schema.names:
            raise ValueError(f"{where}: no column {name!r}; it has {', '.join(schema.names)}")
    images = [image] if image else [name for name in _IMAGE_NAMES if name in schema.names]
    texts = [text] if text else [name for name in _TURN_NAMES if name in schema.names]
    texts = texts or [name for name in _CAPTION_NAMES if name in schema.names][:1]
    if not texts:
        raise ValueError(
            f"{where}: no column with captions or conversations among {', '.join(schema.names)}; name it with "
            "--text-column"
        )
    return Columns(tuple(images), tuple(texts), "id" if "id" in schema.names else None)


def row_members(row: Mapping[str, Any], columns: Columns, policy: SchemaPolicy) -> Members:
    """Return the members of one row.

    Raises:
        DataError: an image is missing or of another format, or the text has none of the known shapes.
    """
    images = _images(next((row[name] for name in columns.images if row[name] is not None), None))
    column = next((name for name in columns.texts if row[name] is not None), None)
    if column is None:
        raise DataError(Reason.MISSING_ANNOTATION, f"column {columns.texts[0][:40]!a} is empty")
    text = row[column]
    turns = _turns(text, len(images), is_caption=isinstance(text, str) and not _holds_turns(column, text))
    if turns is None:
        if len(images) == 1:
            return {image_extension(images[0]): images[0], "txt": _encode(text)}
        return {**_numbered(images), "txt": _encode(text)}
    numbered = _numbered(images)
    field = "conversations" if any("from" in turn or "value" in turn for turn in turns) else "messages"
    tree: dict[str, JsonValue] = {}
    if columns.id is not None and row[columns.id] is not None:
        tree["id"] = str(row[columns.id])
    if numbered:
        tree["image"] = [*numbered]
    tree[field] = list(turns)
    tree = repair_turns(tree, policy, num_images=len(images))
    return {**numbered, "json": _encode(json.dumps(tree, ensure_ascii=False))}


def _images(value: Any) -> list[bytes]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    contents = [one.get("bytes") if isinstance(one, dict) else one for one in values]
    present = [content for content in contents if isinstance(content, bytes)]
    if len(present) != len(contents):
        raise DataError(Reason.MISSING_IMAGE, "an image column that names files instead of holding their bytes")
    return present


def _numbered(images: list[bytes]) -> Members:
    return {f"{idx}.{image_extension(data)}": data for idx, data in enumerate(images)}


def _holds_turns(column: str, text: str) -> bool:
    """Whether text is JSON turns: in a column whose name says so always, else when it begins like them."""
    return column in _TURN_NAMES or _JSON_TURNS.match(text) is not None


def _turns(text: Any, num_images: int, *, is_caption: bool) -> list[dict[str, JsonValue]] | None:
    """Return the turns of a conversation, or None for a caption."""
    if is_caption:
        return None
    if isinstance(text, str):
        text = read_annotation(_encode(text))
    if isinstance(text, dict):  # the annotation as a whole, of which a row needs the turns
        text = _rows_of_columns(text) or either(text, TURNS)
    if isinstance(text, list) and text and all(isinstance(one, str) for one in text):
        raise DataError(
            Reason.JSON_INVALID,
            f"{len(text)} texts in one row: choose one, or give each a row of its own (in datasets: `map` with "
            "batched=True)",
        )
    if not isinstance(text, list) or not all(isinstance(turn, dict) for turn in text):
        raise DataError(Reason.JSON_INVALID, "text that is neither a caption nor a list of turns")
    if text and "user" in text[0] and "assistant" in text[0]:
        return _pairs(text, num_images)
    return [_without_nulls(turn, 0) for turn in text]


def _rows_of_columns(text: dict[str, Any]) -> list[dict[str, Any]]:
    """Return turns stored as a list per field, as datasets' `Sequence` of a struct is; none for anything else."""
    if not text or not all(isinstance(values, list) for values in text.values()):
        return []
    if not {"from", "role"} & text.keys() or len({len(values) for values in text.values()}) != 1:
        return []
    return [dict(zip(text, values, strict=True)) for values in zip(*text.values(), strict=True)]


def _pairs(pairs: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Return turns of question-answer pairs, with all images before the first question."""
    turns: list[dict[str, Any]] = []
    for idx, pair in enumerate(pairs):
        shown = [{"type": "image"}] * num_images if idx == 0 else []
        question, answer = ({"type": "text", "text": _said(pair, speaker, idx)} for speaker in ("user", "assistant"))
        turns.append({"role": "user", "content": [*shown, question]})
        turns.append({"role": "assistant", "content": [answer]})
    return turns


def _said(pair: dict[str, Any], speaker: str, idx: int) -> str:
    text = pair.get(speaker)
    if speaker not in pair or not isinstance(text, str | None):
        raise DataError(Reason.JSON_INVALID, f"pair {idx} has no text of the {speaker}")
    return text or ""


def _without_nulls(value: Any, depth: int) -> Any:
    """Leave out fields without value: a column of structs has every field in every row."""
    if depth > _MAX_DEPTH:
        raise DataError(Reason.JSON_TOO_DEEP, f"turns nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {name: _without_nulls(one, depth + 1) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_nulls(one, depth + 1) for one in value]
    if isinstance(value, str | int | float | bool):
        return value
    raise DataError(Reason.JSON_INVALID, f"a value of type {type(value).__name__} in a turn")


def _encode(text: Any) -> bytes:
    if not isinstance(text, str):
        raise DataError(Reason.MISSING_ANNOTATION, "a caption that is no text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in the text") from None
