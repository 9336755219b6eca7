"""Videos in annotations: a list of frames and one place in the text, read as that many images side by side.

Frames are members of the sample like any image; which ones to take from a film is decided before packing.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import IMAGES, TURNS, VIDEO, either_field, part_kind
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn
from pipeline.samples.strict_json import JsonValue

VIDEO_PLACE = "<video>"


def has_video(tree: Mapping[str, JsonValue]) -> bool:
    """Whether an annotation names the frames of a video."""
    return VIDEO in tree


def read_as_images(tree: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the annotation with the frames as its images and the video's place written as one image's.

    Raises:
        DataError: `video` is not a list of names, or there are images too.
    """
    frames = tree[VIDEO]
    if not isinstance(frames, list) or not frames or not all(isinstance(name, str) for name in frames):
        raise DataError(Reason.JSON_INVALID, "`video` is not a list of frames; store frames as images and name them")
    if either_field(tree, IMAGES) is not None:
        raise DataError(Reason.JSON_INVALID, "`video` and `image` in one sample")
    field = either_field(tree, TURNS) or TURNS[0]
    turns = tree.get(field)
    changed = [_as_image(turn) for turn in turns] if isinstance(turns, list) else turns
    return {**tree, "image": frames, field: changed}


def show_frames(conversation: Conversation, num_frames: int) -> Conversation:
    """Put all frames into the one place of the video.

    Raises:
        DataError: there is not exactly one place.
    """
    if conversation.num_images != 1:
        raise DataError(Reason.IMAGE_TOKEN_MISMATCH, f"{conversation.num_images} {VIDEO_PLACE} places but one video")

    def shown(part: Part) -> tuple[Part, ...]:
        return (part,) * num_frames if isinstance(part, Image) else (part,)

    turns = (Turn(turn.role, tuple(new for part in turn.parts for new in shown(part))) for turn in conversation.turns)
    return Conversation(tuple(turns))


def _as_image(turn: JsonValue) -> JsonValue:
    if not isinstance(turn, dict):
        return turn
    field = "value" if "value" in turn else "content"
    content = turn.get(field)
    if isinstance(content, str):
        return {**turn, field: content.replace(VIDEO_PLACE, DEFAULT_IMAGE_TOKEN)}
    if isinstance(content, list):
        return {**turn, field: [_part_as_image(part) for part in content]}
    return turn


def _part_as_image(part: JsonValue) -> JsonValue:
    return {"type": "image"} if part_kind(part) == VIDEO else part
