"""Conditions of `data.where`: which samples of the index are trained on, one `COLUMN OPERATOR VALUE` each."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

ColumnType = Literal["number", "truth", "text"]
Operator = Literal["==", "!=", "<=", ">=", "<", ">", "in", "not in"]

COLUMNS: Final[dict[str, ColumnType]] = {
    "num_images": "number",
    "short_side": "number",
    "long_side": "number",
    "aspect": "number",
    "answer_chars": "number",
    "text_bytes": "number",
    "video_seconds": "number",
    "image_copies": "number",
    "language": "text",
    "kind": "text",
    "overlap": "text",
    "broken_text": "truth",
    "repeats_question": "truth",
    "is_duplicate": "truth",
}
"""What conditions may be about; docs/data_tools.md says what each holds."""
_COMPARISON: Final = re.compile(r"\s*(\w+)\s*(==|!=|<=|>=|<|>|\bnot\s+in\b|\bin\b)\s*(.+?)\s*")
_ALONE: Final = re.compile(r"\s*(not\s+)?(\w+)\s*")
_TRUTHS: Final = {"true": True, "false": False}


class Condition(NamedTuple):
    """What the value of one column must be; a sample without a value, such as a size without image, passes."""

    column: str
    operator: Operator
    values: tuple[str | float | bool, ...]
    """One, or those of a list."""


def parse_condition(text: str) -> Condition:
    """Read a condition such as `answer_chars >= 5`, `language in en, de` or `not is_duplicate`.

    Raises:
        ValueError: another form, an unknown column, or a value of another type than the column's.
    """
    if match := _ALONE.fullmatch(text):
        column = _column(match[2], text)
        if COLUMNS[column] != "truth":
            raise ValueError(f"where {text!r}: {column} holds a {COLUMNS[column]}; compare it with a value")
        return Condition(column, "==", (match[1] is None,))
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise ValueError(
            f"where {text!r}: expected COLUMN OPERATOR VALUE, such as answer_chars >= 5, or not is_duplicate"
        )
    column = _column(match[1], text)
    operator: Operator = "not in" if match[2].startswith("not") else match[2]  # type: ignore[assignment]  # by pattern
    if COLUMNS[column] != "number" and operator in ("<", ">", "<=", ">="):
        raise ValueError(f"where {text!r}: {column} holds a {COLUMNS[column]}; use ==, !=, in or not in")
    listed = [one.strip().strip("'\"") for one in match[3].split(",")] if "in" in operator else [match[3].strip("'\"")]
    return Condition(column, operator, tuple(_value(COLUMNS[column], one, text) for one in listed))


def _column(name: str, text: str) -> str:
    if name not in COLUMNS:
        raise ValueError(f"where {text!r}: no column {name}; there are {', '.join(COLUMNS)}")
    return name


def _value(kind: ColumnType, given: str, text: str) -> str | float | bool:
    if kind == "text":
        return given
    if kind == "truth" and given.casefold() in _TRUTHS:
        return _TRUTHS[given.casefold()]
    try:
        if kind == "number":
            return float(given)
    except ValueError:
        pass
    raise ValueError(f"where {text!r}: {given!r} is not a {kind}")
