"""Samples: from the member bytes of one key to images in reading order and a checked conversation.

Accepts img2dataset captions, LLaVA's own JSON and the `messages` form. Everything that does not need a tokenizer or
pixels is decided here, so that the index and the training stream reach the same verdict on the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.errors import DataError, Reason
from pipeline.samples.annotation import IMAGE_PARTS, IMAGES, TURNS, either, either_field, part_kind, read_annotation
from pipeline.samples.image_names import resolve_images, sort_images
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Role, Turn, split_placeholders
from pipeline.samples.strict_json import JsonValue, decode_text
from pipeline.samples.video import has_video, is_film_name, read_as_film, read_as_images, show_frames

Kind = Literal["caption", "instruction", "video", "film"]

MAX_IMAGES = 1024
"""Most images a sample may show, each counted as often as it is shown."""
MAX_SAMPLE_BYTES = 512 * 1024 * 1024
"""Most bytes of a sample's files together: they are held in memory at once."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class SchemaPolicy:
    """Rules of the reference that repair a sample; off unless asked for, because they hide defects."""

    prepend_missing_placeholder: bool = False
    """A sample with exactly one image and no `<image>` shows the image at the start of its first user turn."""
    drop_leading_answer: bool = False
    """A conversation that starts with the assistant loses that turn."""


class Sample(NamedTuple):
    """One training example as stored."""

    key: str
    kind: Kind
    images: tuple[bytes, ...]
    """Encoded images; image k belongs to the k-th image place of the conversation. Of a film, its file alone."""
    conversation: Conversation

    @property
    def is_video(self) -> bool:
        """Whether the images are frames of a video."""
        return self.kind == "video"

    @property
    def is_film(self) -> bool:
        """Whether the only image is a film file, whose frames are yet to be chosen."""
        return self.kind == "film"


class Layout(NamedTuple):
    """What the annotation says, with images still as extensions of members."""

    kind: Kind
    image_extensions: tuple[str, ...]
    conversation: Conversation
    text_bytes: int
    """Size of the annotation, in bytes."""


def parse_sample(key: str, members: Mapping[str, bytes], policy: SchemaPolicy = SchemaPolicy()) -> Sample:
    """Parse the members of one key.

    Args:
        key: label of the sample.
        members: content by case-folded extension: `jpg`, `0.png`, `txt`, `json`.
        policy: which legacy repairs are allowed.

    Raises:
        DataError: with the reason, and the key filled in.
    """
    if (size := sum(map(len, members.values()))) > MAX_SAMPLE_BYTES:
        raise DataError(Reason.SAMPLE_TOO_LARGE, f"{size} bytes, at most {MAX_SAMPLE_BYTES}", key=key)
    texts = {extension: members[extension] for extension in ("txt", "json") if extension in members}
    extensions = [extension for extension in members if extension not in ("txt", "json")]
    layout = parse_layout(key, texts, extensions, policy)
    images = tuple(members[extension] for extension in layout.image_extensions)
    return Sample(key, layout.kind, images, layout.conversation)


def parse_layout(key: str, texts: Mapping[str, bytes], image_extensions: Sequence[str], policy: SchemaPolicy) -> Layout:
    """Parse the annotation of one key without its image bytes.

    Raises:
        DataError: with the reason, and the key filled in.
    """
    try:
        annotation = _annotation(texts)
        if any(map(is_film_name, image_extensions)) and len(image_extensions) > 1:
            what = f"{len(image_extensions)} videos and images in one sample, expected one video"
            raise DataError(Reason.MEDIA_UNREAD, what)
        if annotation is not None:
            return _instruction(key, annotation, sort_images(image_extensions), len(texts["json"]), policy)
        return _caption(texts["txt"], sort_images(image_extensions))
    except DataError as error:
        raise error.at(key=key) from None


def conversation_from_turns(turns: Sequence[Mapping[str, JsonValue]]) -> Conversation:
    """Read LLaVA (`from`, `value`) or chat (`role`, `content`) turns without checking their order.

    Raises:
        DataError: a turn that is malformed or whose role is unknown.
    """
    return Conversation(tuple(_turn(turn, idx) for idx, turn in enumerate(turns)))


def named_images(tree: Mapping[str, JsonValue]) -> list[str]:
    """Return the names that an annotation gives its images: those in `image` or `images`, else those of its parts.

    Raises:
        DataError: `image` is neither a name nor a list of names.
    """
    names = _image_names(tree)
    listed = either(tree, TURNS)
    if names or not isinstance(listed, list):
        return names
    contents = [turn.get("value", turn.get("content")) for turn in listed if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return [name for part in parts if part_kind(part) in IMAGE_PARTS for name in _part_names(part)]


def _annotation(texts: Mapping[str, bytes]) -> dict[str, JsonValue] | None:
    """Return the conversation's JSON object, or None for a caption.

    With a caption, `KEY.json` is img2dataset's metadata. It is not used, so its defects do not matter.
    """
    if "json" not in texts:
        if "txt" not in texts:
            raise DataError(Reason.MISSING_ANNOTATION, "neither KEY.txt nor KEY.json")
        return None
    if "txt" not in texts:
        tree = read_annotation(texts["json"])
        if not isinstance(tree, dict) or not has_turns(tree):
            raise DataError(Reason.MISSING_ANNOTATION, "KEY.json has neither `conversations` nor `messages`")
        return tree
    try:
        tree = read_annotation(texts["json"])
    except DataError:
        return None
    if isinstance(tree, dict) and has_turns(tree):
        raise DataError(Reason.AMBIGUOUS_ANNOTATION, "both a caption in KEY.txt and a conversation in KEY.json")
    return None


def has_turns(tree: Mapping[str, JsonValue]) -> bool:
    """Whether an object is an annotation in one of the two dialects."""
    return either_field(tree, TURNS) is not None


def _caption(text: bytes, images: tuple[str, ...]) -> Layout:
    caption = decode_text(text).strip()
    _check_number(len(images))
    if not images:
        raise DataError(Reason.MISSING_IMAGE, "a caption without image")
    if not caption:
        raise DataError(Reason.TURN_EMPTY, "the caption is empty")
    turns = (Turn("user", tuple(Image() for _ in images)), Turn("assistant", (caption,)))
    if any(map(is_film_name, images)):
        return Layout("film", images, Conversation(turns), len(text))
    return Layout("caption", images, Conversation(turns), len(text))


def _instruction(
    key: str, tree: dict[str, JsonValue], images: tuple[str, ...], text_bytes: int, policy: SchemaPolicy
) -> Layout:
    is_film = any(map(is_film_name, images))
    is_video = has_video(tree) and not is_film
    tree = read_as_film(tree) if is_film else read_as_images(tree) if is_video else tree
    listed = either(tree, TURNS)
    if not isinstance(listed, list) or not listed:
        raise DataError(Reason.CONVERSATION_EMPTY, "`conversations` holds no turn")
    turns = tuple(_turn(turn, idx) for idx, turn in enumerate(listed))
    if policy.drop_leading_answer and turns[0].role == "assistant":
        turns = turns[1:]
    _check_order(turns)
    names = named_images(tree)
    _check_number(max(len(names), len(images)))
    extensions = resolve_images(key, names, images, declared=_declares_images(tree))
    conversation = Conversation(turns)
    if is_video:
        return Layout("video", extensions, show_frames(conversation, len(extensions)), text_bytes)
    if policy.prepend_missing_placeholder and len(extensions) == 1 and conversation.num_images == 0:
        conversation = _with_leading_image(conversation)
    if conversation.num_images != len(extensions):
        raise DataError(
            Reason.IMAGE_TOKEN_MISMATCH,
            f"{_count(conversation.num_images, '<image> placeholder')} but {_count(len(extensions), 'image')}",
        )
    return Layout("film" if is_film else "instruction", extensions, conversation, text_bytes)


def _check_number(num_images: int) -> None:
    if num_images > MAX_IMAGES:
        raise DataError(Reason.SAMPLE_TOO_LARGE, f"{num_images} images, at most {MAX_IMAGES}")


def _declares_images(tree: Mapping[str, JsonValue]) -> bool:
    return either_field(tree, IMAGES) is not None


def _image_names(tree: Mapping[str, JsonValue]) -> list[str]:
    """Return the names in `image` or `images`: one or a list, as text or as an object with its `path` or `url`."""
    value = either(tree, IMAGES)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    names = [[one] if isinstance(one, str) else _part_names(one) if isinstance(one, dict) else [] for one in listed]
    if not all(len(found) == 1 for found in names):
        raise DataError(Reason.JSON_INVALID, "`image` is neither a file name nor a list of them")
    return [name for [name] in names]


def _turn(turn: object, idx: int) -> Turn:
    if not isinstance(turn, Mapping):
        raise DataError(Reason.JSON_INVALID, f"turn {idx} is not a JSON object")
    speaker = turn.get("from", turn.get("role"))
    if not isinstance(speaker, str) or speaker not in _ROLES:
        found = ascii(speaker)[:40] if isinstance(speaker, str) else "none"
        raise DataError(Reason.ROLE_UNKNOWN, f"turn {idx} has role {found}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, str):
        parts = split_placeholders(content)
    elif isinstance(content, list):
        parts = _typed_parts(content, idx)
    else:
        raise DataError(Reason.JSON_INVALID, f"turn {idx} has no text: expected `value` or `content`")
    result = Turn(_ROLES[speaker], parts)
    has_image = len(parts) > sum(isinstance(part, str) for part in parts)
    if has_image and result.role == "system":
        raise DataError(
            Reason.IMAGE_TOKEN_MISMATCH, f"turn {idx} is by the system and holds an image place; the user shows images"
        )
    if not result.text.strip() and not (has_image and result.role == "user"):
        raise DataError(Reason.TURN_EMPTY, f"turn {idx} is empty")
    return result


def _typed_parts(content: Sequence[JsonValue], idx: int) -> tuple[Part, ...]:
    """Read `[{"type": "text", "text": ...}, {"type": "image"}]`; text is taken literally, `<image>` in it too."""
    parts: list[Part] = []
    for part in content:
        kind = part_kind(part)
        if isinstance(part, dict) and kind == "text" and isinstance(text := part.get("text"), str):
            parts += [text] if text else []
        elif isinstance(part, dict) and kind in IMAGE_PARTS:
            parts.append(Image())
        else:
            raise DataError(Reason.JSON_INVALID, f"turn {idx} has a part that is neither text nor image")
    return tuple(parts)


def _part_names(part: Mapping[str, JsonValue]) -> list[str]:
    values = [part.get(field) for field in ("image", "path", "url", "image_url")]
    flat = [value.get("url") if isinstance(value, dict) else value for value in values]
    return [value for value in flat if isinstance(value, str)]


def _check_order(turns: Sequence[Turn]) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not any(turn.role == "assistant" for turn in spoken):
        raise DataError(Reason.NO_ASSISTANT, "no turn of the assistant")
    for idx, turn in enumerate(spoken):
        expected = "assistant" if idx % 2 else "user"
        if turn.role != expected:
            place = idx + len(turns) - len(spoken)
            raise DataError(Reason.ROLE_ORDER, f"turn {place} is by the {turn.role}, expected the {expected}")
    if len(spoken) % 2:
        raise DataError(Reason.ROLE_ORDER, "the last turn is by the user and has no answer")


def _with_leading_image(conversation: Conversation) -> Conversation:
    turns = list(conversation.turns)
    first = next(idx for idx, turn in enumerate(turns) if turn.role == "user")
    turns[first] = Turn("user", (Image(), "\n", *turns[first].parts))
    return Conversation(tuple(turns))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
