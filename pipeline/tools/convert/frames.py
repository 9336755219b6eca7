"""Rows that list the frames of a video under `video`: read and written as `pipeline.samples.video` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipeline.errors import DataError, Reason
from pipeline.samples.schema import named_images
from pipeline.samples.strict_json import JsonValue
from pipeline.samples.video import read_as_images
from pipeline.tools.convert.image_field import ORIGINAL_NAMES, with_stored_names
from pipeline.tools.convert.media_bytes import media_extension
from pipeline.tools.convert.repair import repair_turns
from pipeline.tools.convert.row import UNREAD, Reading, RowError, RowRules, Tally
from pipeline.tools.convert.row_media import Found, find_media, is_film_name
from pipeline.tools.convert.source import Members
from pipeline.tools.convert.written import encode


def has_frames(row: Mapping[str, JsonValue]) -> bool:
    """Whether a row names the frames of a video."""
    frames = row.get("video")
    if not isinstance(frames, list) or not frames:
        return False
    return not all(isinstance(name, str) and is_film_name(name) for name in frames)


def read_frames(row: Mapping[str, JsonValue], rules: RowRules) -> Reading:
    """Read a row that lists the frames of a video.

    Raises:
        RowError: a list of something else, or media in other fields as well.
    """
    found = [one for one in find_media(row) if one.path[0] not in rules.ignored]
    others = [one for one in found if one.path[0] != "video" and not one.is_origin]
    try:
        listed = [one.value for one in found if one.path[0] == "video" and isinstance(one.value, str)]
        if film := next((name for name in listed if is_film_name(name)), None):
            raise DataError(Reason.MEDIA_UNREAD, f"field `video` {UNREAD['film']} ({film[:40]!a})")
        names = named_images(read_as_images(row))
        if others:
            raise DataError(Reason.MEDIA_UNREAD, f"field `{others[0].field}` holds media, and `video` holds frames")
    except DataError as error:
        refused = RowError(error.reason, error.what)
        refused.tally = Tally(media=len(found))
        raise refused from None
    media = tuple(Found(("video", place), "picture", name) for place, name in enumerate(names))
    # one mark shows all frames: the others are implied
    tally = Tally(len(media), 1, len(media) - 1, 0, len(found) - len(media) if len(found) > len(media) else 0)
    return Reading([], None, media, None, frozenset(("video",)), tally)


def write_frames(
    row: dict[str, JsonValue],
    reading: Reading,
    contents: Sequence[bytes],
    rules: RowRules,
    originals: JsonValue = None,
) -> Members:
    """Return the members of such a row; a frame that is named twice is stored once.

    Args:
        row: the row.
        reading: what `read_frames` made of it.
        contents: bytes of the frames, in their order.
        rules: repairs to apply.
        originals: names of the frames before packing, where the row no longer has them.

    Raises:
        DataError: a frame of a format that is not read.
    """
    names = [str(one.value) for one in reading.media]
    members: Members = {}
    stored: dict[str, str] = {}
    for name, data in zip(names, contents, strict=True):
        if name not in stored:
            stored[name] = f"{len(stored)}.{media_extension(data)}"
            members[stored[name]] = data
    # the place of a video is `<video>`: there is never a missing `<image>` to add
    tree = repair_turns(row, rules.policy, num_images=0)
    tree = with_stored_names(tree, names, [stored[name] for name in names])
    tree[ORIGINAL_NAMES] = originals or tree[ORIGINAL_NAMES]
    members["json"] = encode(json.dumps(tree, ensure_ascii=False))
    return members
