"""From the messages of a request to the conversation that the model sees, and its images in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.samples.prompt.conversation import Conversation, Image, Part, Role, Turn
from pipeline.serving.limits import Limits
from pipeline.serving.refusals import invalid
from pipeline.serving.wire.request import ImagePart, Message


class ImagePlace(NamedTuple):
    """An image of a request, not yet read."""

    url: str
    param: str
    """Where it is in the request."""


class Asked(NamedTuple):
    """A conversation that ends with the user's turn."""

    conversation: Conversation
    places: tuple[ImagePlace, ...]
    """Image k for the k-th place of the conversation."""


def read_messages(messages: Sequence[Message], limits: Limits) -> Asked:
    """Turn messages into a conversation.

    Raises:
        RefusedError: turns do not alternate, the last is not the user's, an image is not in a user's turn, or there
            are more turns, letters or images than the limits allow.
    """
    if len(messages) > limits.messages:
        raise invalid(f"expected at most {limits.messages} messages, found {len(messages)}", "messages", "too_many")
    turns: list[Turn] = []
    places: list[ImagePlace] = []
    num_chars = 0
    for idx, message in enumerate(messages):
        role: Role = "system" if message.role == "developer" else message.role
        _check_order(turns, role, idx)
        parts = _read_parts(message, idx, places)
        num_chars += sum(len(part) for part in parts if isinstance(part, str))
        turns.append(Turn(role, parts))
    if turns[-1].role != "user":
        raise invalid("the last message must have the role user", f"messages[{len(turns) - 1}].role", "role_order")
    if num_chars > limits.text_chars:
        raise invalid(f"expected at most {limits.text_chars} letters, found {num_chars}", "messages", "too_long")
    if len(places) > limits.images:
        raise invalid(f"expected at most {limits.images} images, found {len(places)}", "messages", "too_many_images")
    return Asked(Conversation(tuple(turns)), tuple(places))


def _check_order(turns: Sequence[Turn], role: Role, idx: int) -> None:
    before = turns[-1].role if turns else None
    allowed: dict[Role | None, tuple[Role, ...]] = {
        None: ("system", "user"),
        "system": ("user",),
        "user": ("assistant",),
        "assistant": ("user",),
    }
    if role not in allowed[before]:
        expected = " or ".join(allowed[before])
        raise invalid(
            f"expected {expected} here, found {role}; user and assistant alternate after an optional system message",
            f"messages[{idx}].role",
            "role_order",
        )


def _read_parts(message: Message, idx: int, places: list[ImagePlace]) -> tuple[Part, ...]:
    """Return the parts of a turn, and append the images they show to `places`."""
    where = f"messages[{idx}].content"
    if isinstance(message.content, str):
        parts: tuple[Part, ...] = (message.content,) if message.content else ()
    else:
        found: list[Part] = []
        for number, part in enumerate(message.content):
            if not isinstance(part, ImagePart):
                found += [part.text] if part.text else []
                continue
            if message.role != "user":
                raise invalid("only messages of the user can show images", f"{where}[{number}]", "role_order")
            places.append(ImagePlace(part.image_url.url, f"{where}[{number}].image_url.url"))
            found.append(Image())
        parts = tuple(found)
    if not any(isinstance(part, Image) or part.strip() for part in parts):
        raise invalid("the message is empty; write something or show an image", where, "empty_message")
    return parts
