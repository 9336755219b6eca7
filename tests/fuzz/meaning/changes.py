"""Changes to a row, and what must then become of it: shown as before, refused, or either, never something else."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tests.fuzz.meaning.dialects import Dialect, Row, as_struct, file_name
from tests.fuzz.meaning.truth import Turns, colours

Verdict = Literal["shown", "refused", "either"]
_HOLDS_FILES = ("lines", "array")
_MEDIA_FIELDS = ("image", "images", "jpg")
_TURN_FIELDS = ("conversations", "messages")


CAUSES: dict[str, frozenset[str]] = {
    "renamed": frozenset(("image_token_mismatch",)),
    "nested media": frozenset(("media_unread", "image_token_mismatch")),
    "film": frozenset(("media_unread", "image_token_mismatch", "missing_image")),
    "second field": frozenset(("media_unread", "image_token_mismatch")),
    "fewer": frozenset(("image_token_mismatch", "media_unread", "unreferenced_image", "missing_image")),
    "more": frozenset(("image_token_mismatch", "media_unread")),
    "mark added": frozenset(("image_token_mismatch",)),
    "mark dropped": frozenset(("image_token_mismatch", "turn_empty")),
    "foreign mark": frozenset(("media_unread",)),
    "two texts": frozenset(("text_unread",)),
    "empty turn": frozenset(("turn_empty", "image_token_mismatch")),
    "no answer": frozenset(("role_order", "no_assistant", "image_token_mismatch")),
    "gone": frozenset(("missing_image",)),
}
"""Reasons that name the cause of a refusal, by change."""


class Change(NamedTuple):
    """A row after a change, and what must become of it."""

    name: str
    row: Row
    verdict: Verdict


def change(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> Change:
    """Return a changed row, or the same one; changes that do not fit the dialect leave it as it is."""
    if rng.random() < 0.4:
        return Change("none", row, "shown")
    name = rng.choice(list(CHANGES))
    result = CHANGES[name](rng, dialect, copy.deepcopy(row), turns)
    return Change("none", row, "shown") if result is None else Change(name, *result)


_Result = tuple[Row, Verdict] | None


def _media_field(row: Row) -> str | None:
    return next((name for name in _MEDIA_FIELDS if row.get(name) not in (None, [], "")), None)


def _is_free(dialect: Dialect) -> bool:
    """Whether fields can be added to a row one by one."""
    return dialect.container in ("lines", "array", "parquet")


def _renamed(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    field = _media_field(row)
    if field is None or not _is_free(dialect) or dialect.name == "document":
        return None
    name = rng.choice(("Image", "imgs", "image_path", "picture", "photo", "imagePaths", "pixels", "data", "stuff"))
    return {name if old == field else old: value for old, value in row.items()}, "either"


def _nulls(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    if not _is_free(dialect):
        return None
    nothing: Row = {"video": None, "audio": None, "images2": [], "caption2": "", "width": 640, "system": ""}
    return {**{name: value for name, value in nothing.items() if rng.random() < 0.5}, **row}, "shown"


def _nested(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    about: dict[str, Any] = {"source": "coco/train", "size": [3, 4], "note": {"license": "cc", "num_images": 2}}
    return ({**row, "meta": about, "image_id": "000123.jpg"}, "shown") if dialect.container in _HOLDS_FILES else None


def _nested_media(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    extra = {"views": [{"file": file_name(rng.randrange(5))}]}
    return ({**row, "meta": extra}, "refused") if _adds_another(dialect, turns, 5) else None


def _adds_another(dialect: Dialect, turns: Turns, num_first: int) -> bool:
    return dialect.container in _HOLDS_FILES and not set(range(num_first)) & set(colours(turns))


def _film(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    if not _is_free(dialect):
        return None
    name = rng.choice(("video", "videos", "clip", "video_path", "audio", "audios", "sound_file", "extra"))
    ending = "mp4" if name.startswith(("v", "c", "e")) else "wav"
    value: Any = f"films/1.{ending}"
    return {**row, name: [value] if rng.random() < 0.5 else value}, "refused"


def _second_field(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    unused = next((one for one in range(24) if one not in colours(turns)), None)
    if unused is None or not _is_free(dialect) or not colours(turns):
        return None
    value = file_name(unused) if dialect.container in _HOLDS_FILES else as_struct(unused)
    return {**row, rng.choice(("depth", "mask", "second_image", "extra_picture", "other")): value}, "refused"


def _origin(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    if not _is_free(dialect) or not colours(turns):
        return None
    return {**row, rng.choice(("url", "source_url", "image_url", "original")): "http://host/elsewhere.jpg"}, "shown"


def _fewer(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    field = _media_field(row)
    if field is None or not isinstance(row[field], list) or dialect.name in ("document", "cauldron"):
        return None
    if len(row[field]) == 1 and "__members__" in row:  # without a list the files count by number
        return None
    row[field] = row[field][:-1] if len(row[field]) > 1 or rng.random() < 0.5 else None
    return row, "refused"


def _more(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    field = _media_field(row)
    if field is None or not isinstance(row[field], list) or dialect.name in ("document", "cauldron"):
        return None
    return {**row, field: [*row[field], row[field][0]]}, "refused"


def _first_text(row: Row) -> tuple[Row, str] | None:
    """Return the first turn with text of the user, and the name of its text."""
    listed = next((row[name] for name in _TURN_FIELDS if isinstance(row.get(name), list)), None)
    turn = next((one for one in listed or [] if one.get("from", one.get("role")) in ("human", "user")), None)
    name = "value" if turn is not None and "value" in turn else "content"
    return (turn, name) if turn is not None and isinstance(turn.get(name), str) else None


def _mark_added(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    found = _first_text(row)
    if found is None:
        return None
    turn, name = found
    turn[name] += " <image>"
    return row, "refused"


def _mark_dropped(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    found = _first_text(row)
    if found is None or "<image>" not in found[0][found[1]] or dialect.name == "per-turn" or not _media_named(row):
        return None
    turn, name = found
    turn[name] = turn[name].replace("<image>", "", 1)
    return row, "refused"


def _media_named(row: Row) -> bool:
    return (
        _media_field(row) is not None or bool(row.get("__members__")) or any(name.startswith("image_") for name in row)
    )


def _foreign_mark(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    found = _first_text(row)
    if found is None:
        return None
    turn, name = found
    mark = rng.choice(("<video>", "<audio>", "<|image_pad|>", "<ImageHere>"))
    turn[name] = rng.choice(
        (f"{mark}\n{turn[name]}", f"{mark}{turn[name]}", f"{turn[name]}\n{mark}", f"{turn[name]} {mark}")
    )
    return row, "refused"


def _two_texts(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    found = _first_text(row)
    if found is None:
        return None
    turn, name = found
    turn["content" if name == "value" else "value"] = "something else"
    return row, "refused"


def _empty_turn(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    listed = next((row[name] for name in _TURN_FIELDS if isinstance(row.get(name), list)), None)
    if listed is None:
        return None
    turn = listed[-1]
    turn["value" if "value" in turn else "content"] = ""
    return row, "refused"


def _no_answer(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    listed = next((row[name] for name in _TURN_FIELDS if isinstance(row.get(name), list)), None)
    if listed is None:
        return None
    listed.pop()
    return row, "refused"


def _gone(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    field = _media_field(row)
    if field is None or dialect.container not in _HOLDS_FILES:
        return None
    row[field] = [f"gone/{name}" for name in row[field]] if isinstance(row[field], list) else f"gone/{row[field]}"
    return row, "refused"


def _twice(rng: random.Random, dialect: Dialect, row: Row, turns: Turns) -> _Result:
    if dialect.container not in _HOLDS_FILES or not isinstance(row.get("images"), list):
        return None
    return {**row, "image": [*row["images"]]}, "shown"


CHANGES: dict[str, Callable[[random.Random, Dialect, Row, Turns], _Result]] = {
    "renamed": _renamed,
    "nulls": _nulls,
    "nested": _nested,
    "nested media": _nested_media,
    "film": _film,
    "second field": _second_field,
    "origin": _origin,
    "fewer": _fewer,
    "more": _more,
    "mark added": _mark_added,
    "mark dropped": _mark_dropped,
    "foreign mark": _foreign_mark,
    "two texts": _two_texts,
    "empty turn": _empty_turn,
    "no answer": _no_answer,
    "gone": _gone,
    "twice": _twice,
}
