"""Videos in annotations: one place in the text, and a list of frames or one film file.

Frames are members of the sample like any image, read as that many images side by side. A film is one member; which of
its frames are shown is decided by `sampling`, when the sample is encoded.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.fusion.constants import DEFAULT_IMAGE_TOKEN
from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import IMAGES, TURNS, VIDEO, either_field, part_kind
from pipeline.samples.film_bytes import FILM_EXTENSIONS
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


def is_film_name(extension: str) -> bool:
    """Whether a member's extension is that of a film, such as `mp4` or `0.webm`."""
    return extension.rpartition(".")[2].casefold() in FILM_EXTENSIONS


def read_as_film(tree: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return an annotation whose sample holds a film, the film as its only image and its place as an image's.

    Raises:
        DataError: `video` names several files, or there are images too.
    """
    named = tree.get(VIDEO, tree.get("videos"))
    names = [named] if isinstance(named, str) else named
    if names is not None and not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise DataError(Reason.JSON_INVALID, "`video` is not the name of one film")
    if either_field(tree, IMAGES) is not None:
        raise DataError(Reason.JSON_INVALID, "`video` and `image` in one sample")
    field = either_field(tree, TURNS) or TURNS[0]
    turns = tree.get(field)
    changed = [_as_image(turn) for turn in turns] if isinstance(turns, list) else turns
    listed: JsonValue = [*names] if names else None
    return {**tree, **({"image": listed} if names else {}), field: changed}


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
