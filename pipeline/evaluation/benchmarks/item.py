"""One question of a benchmark, and how it becomes a sample: pictures found, prompt written, options listed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError
from pipeline.evaluation.metrics.choice import LETTERS
from pipeline.evaluation.questions import EvaluationSample
from pipeline.samples.prompt.conversation import Conversation, Image, Turn, split_placeholders
from pipeline.samples.schema import Sample

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."


class Item(NamedTuple):
    """A question as a loader reads it."""

    key: str
    images: tuple[str | bytes, ...]
    """Names below the folder of images, the first that exists of several with `|` between them; or the files."""
    question: str
    """With `<image>` where a picture belongs; without any, all come first."""
    answer: str
    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Written as lines `A. text` below the question; the answer is then a letter."""
    category: str = "all"
    group: str = ""
    ending: str = SHORT
    """What is written below the question."""


def to_sample(item: Item, images: Path | None) -> EvaluationSample:
    """Find the pictures and write the prompt.

    Raises:
        ConfigError: a picture is not there.
    """
    lines = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False))
    parts = split_placeholders(item.question + lines + item.ending)
    if not any(isinstance(part, Image) for part in parts):
        parts = (*(Image() for _ in item.images), "\n" * bool(item.images) + "".join(map(str, parts)))
    content = tuple(picture if isinstance(picture, bytes) else _find(item, picture, images) for picture in item.images)
    conversation = Conversation((Turn("user", parts), Turn("assistant", (item.answer,))))
    sample = Sample(key=item.key, kind="instruction", images=content, conversation=conversation)
    return EvaluationSample(sample, (item.category,), item.references, item.options, item.group)


def picture_bytes(value: object) -> bytes:
    """Return a picture that a table holds: base64 text, bytes, or the object that Parquet files of data sets have.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, dict) and value.get("bytes"):
        value = value["bytes"]
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error:
        raise ConfigError(f"expected a picture as base64 or bytes, found {str(value)[:40]!r}") from None


def coco_names(image_id: int | str, *subsets: str) -> str:
    """Return the names that a COCO picture may have."""
    number = f"{int(image_id):012d}.jpg"
    return "|".join(
        [*(f"COCO_{subset}_{number}" for subset in subsets), number, *(f"{one}/{number}" for one in subsets)]
    )


def _find(item: Item, names: str, images: Path | None) -> bytes:
    if images is None:
        raise ConfigError(f"question {item.key}: picture {names.partition('|')[0]} is in no folder; give --images DIR")
    candidates: Sequence[str] = names.split("|")
    for name in candidates:
        for path in (images / name, images / Path(name).name):
            if path.is_file():
                return path.read_bytes()
    raise ConfigError(f"question {item.key}: no picture {' or '.join(candidates)} in {images}; see --images")
