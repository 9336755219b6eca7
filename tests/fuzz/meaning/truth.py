"""What samples mean: who says what, and which picture is where. Pictures are told apart by their colour."""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

NUM_COLOURS = 24
_WORDS = [
    "red",
    "ball",
    "on",
    "the",
    "left",
    "of",
    "a",
    "table",
    "what",
    "is",
    "it",
    "two",
    "cats",
    "café",
    "世界",
    "😀",
    "a.jpg",
    "<b>bold</b>",
    "3.14",
    "[x]",
    "{y}",
    "<video>",
    "tags,",
    "line\nbreak",
    "'quoted'",
    '"double"',
    "back\\slash",
    "tab\there",
    "image",
    "images",
    "http://host/page",
]

Shape = Literal["free", "first", "caption", "document"]


class Picture(NamedTuple):
    """A place where the picture of a colour stands."""

    colour: int


Part = str | Picture
Turns = list[tuple[str, list[Part]]]


@functools.cache
def picture_bytes(colour: int) -> bytes:
    """Return a picture whose mean tells its colour, in one of three lossless or nearly lossless formats."""
    pixels = np.full((8, 9, 3), (colour * 10, 255 - colour * 10, (colour * 37) % 256), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer, ("PNG", "JPEG", "BMP")[colour % 3], **({"quality": 98} if colour % 3 == 1 else {})
    )
    return buffer.getvalue()


def colour_of(data: bytes) -> int:
    """Return which colour a picture has."""
    return round(float(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., 0].mean()) / 10)


def draw_text(rng: random.Random) -> str:
    """Return a text that is not blank and begins with a letter, so that no word of it reads as a mark's place."""
    words = [rng.choice(_WORDS) for _ in range(rng.randint(1, 7))]
    return f"{rng.choice('abcdefgh')} {' '.join(words)}."


def draw_turns(rng: random.Random, shape: Shape) -> Turns:
    """Return the turns of a sample.

    Args:
        rng: source of all choices.
        shape: where pictures may stand: anywhere in the user's turns, before the first question only, in a caption, or
            between the texts of a document.
    """
    if shape == "caption":
        return [("user", [Picture(rng.randrange(NUM_COLOURS))]), ("assistant", [draw_text(rng)])]
    if shape == "document":
        return _document(rng)
    turns: Turns = []
    for idx in range(rng.randint(1, 3)):
        question: list[Part] = [draw_text(rng)]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3)) if shape == "free" or idx == 0 else 0):
            place = rng.randint(0, len(question)) if shape == "free" else 0
            question.insert(place, Picture(rng.randrange(NUM_COLOURS)))
        if shape == "free" and rng.random() < 0.2:
            question.append(draw_text(rng))
        turns += [("user", question), ("assistant", [draw_text(rng)])]
    return turns


def _document(rng: random.Random) -> Turns:
    items: list[Part] = [Picture(rng.randrange(NUM_COLOURS)), draw_text(rng)]
    for _ in range(rng.randint(0, 5)):
        items.append(Picture(rng.randrange(NUM_COLOURS)) if rng.random() < 0.5 else draw_text(rng))
    return [("user", items[:1]), ("assistant", items[1:])]


def merged(turns: Sequence[tuple[str, Sequence[Part]]]) -> Turns:
    """Return turns with neighbouring texts joined, to compare them whatever parts they were stored in."""
    result: Turns = []
    for role, parts in turns:
        joined: list[Part] = []
        for part in parts:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            elif part != "":
                joined.append(part)
        result.append((role, joined))
    return result


def colours(turns: Turns) -> list[int]:
    """Return the colours of all pictures in reading order."""
    return [part.colour for _, parts in turns for part in parts if isinstance(part, Picture)]
