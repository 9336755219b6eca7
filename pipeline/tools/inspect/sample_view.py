"""Everything about one sample that a person wants to see: the prompt as trained, each image as the model gets it.

A rejected sample is shown as far as it can be read, with its reason.

P side of the tower's square in pixels; N squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from pipeline.errors import DataError, Reason, advice
from pipeline.index.index import ShardIndex
from pipeline.index.read import Member, read_members, read_sample
from pipeline.samples.encode import EncodedImage, SampleEncoder
from pipeline.samples.image import decode_image
from pipeline.samples.schema import Sample
from pipeline.tools.inspect.pictures import to_data_uri
from pipeline.tools.inspect.prompt import Piece, read_prompt, visible

_THUMBNAIL_PX = 144
_RAW_PICTURE_PX = 480
_MAX_RAW_CHARACTERS = 4000
_MAX_RAW_BYTES = 16 * 1024 * 1024


class PictureView(NamedTuple):
    """One picture of a sample."""

    caption: str
    squares: tuple[str, ...]
    """Data URIs: what the model gets of the image, `[P, P]` each; empty when it could not be decoded."""
    problem: str = ""
    """Why it could not be decoded."""


class RawText(NamedTuple):
    """A text member of a rejected sample, as stored."""

    name: str
    text: str


class SampleView(NamedTuple):
    """One sample, ready to be laid out; all text is as hostile as the data."""

    sample_id: int
    shard: str
    ordinal: int
    key: str
    kind: str
    reason: str
    """Reason code when it is not trained on, else empty."""
    detail: str
    advice: str
    thumbnail: str
    """Data URI; empty without a decodable image."""
    pictures: tuple[PictureView, ...]
    pieces: tuple[Piece, ...]
    raw: tuple[RawText, ...]
    """Only of a rejected sample."""
    num_tokens: int
    """Fused length, image features included."""
    num_supervised_tokens: int
    truncated_tokens: int
    """Tokens beyond data.max_length, which are not trained on."""


@dataclass(frozen=True, eq=False)
class Inspected:
    """What views are made from."""

    index: ShardIndex
    tokens: pa.Table
    """`TOKEN_SCHEMA`, row by row of the index."""
    encoder: SampleEncoder
    refused: Mapping[int, str] = field(default_factory=dict)
    """Samples that the run in the config's folder refuses, since they end the process, and what is known of them."""


def view_sample(data: Inspected, sample_id: int) -> SampleView:
    """Read and encode a sample, or show what can be read of a rejected one.

    Raises:
        OSError: storage failed.
        IndexError: no such row.
    """
    if sample_id in data.refused:
        return _rejected(data, sample_id, Reason.DECODER_CRASH.value, data.refused[sample_id])
    reason = data.tokens["reason"][sample_id].as_py()
    if reason:
        return _rejected(data, sample_id, reason, data.tokens["detail"][sample_id].as_py())
    try:
        return _usable(data, sample_id, read_sample(data.index, sample_id))
    except DataError as error:
        return _rejected(data, sample_id, error.reason.value, error.what)


def _usable(data: Inspected, sample_id: int, sample: Sample) -> SampleView:
    encoded = data.encoder.encode(sample)
    text = encoded.text
    pictures = [image.pixels for image in encoded.images]
    return _blank(data, sample_id)._replace(
        kind=sample.kind,
        thumbnail=to_data_uri(pictures[0][0], _THUMBNAIL_PX) if pictures else "",
        pictures=_pictures(encoded.images),
        pieces=tuple(read_prompt(text.input_ids, text.labels, data.encoder.tokenizer)),
        num_tokens=text.num_tokens,
        num_supervised_tokens=text.num_supervised_tokens,
        truncated_tokens=text.truncated_tokens,
    )


def _pictures(images: Sequence[EncodedImage]) -> tuple[PictureView, ...]:
    """Caption the tiles `[U, P, P, 3]` of each image, or frame of a film."""
    views = []
    for number, image in enumerate(images, start=1):
        (height, width), tiles = (image.view.height, image.view.width), image.pixels
        parts = "" if len(tiles) == 1 else f"{len(tiles)} tiles of "
        caption = f"image {number}: {width} x {height}, as {parts}{tiles.shape[2]} x {tiles.shape[1]}"
        views.append(PictureView(caption, tuple(to_data_uri(tile) for tile in tiles)))
    return tuple(views)


def _rejected(data: Inspected, sample_id: int, reason: str, detail: str) -> SampleView:
    view = _blank(data, sample_id)._replace(reason=reason, detail=visible(detail), advice=advice(Reason(reason)))
    members: list[Member] = data.index.samples["members"][sample_id].as_py()
    if not members or sum(member["size"] for member in members) > _MAX_RAW_BYTES:
        return view
    try:
        content = read_members(view.shard, view.key, members, verify_crc=False)
    except DataError:
        return view
    texts = tuple(RawText(name, _shorten(text)) for name, text in content.items() if name in ("txt", "json"))
    images = {name: image for name, image in content.items() if name not in ("txt", "json")}
    if reason == Reason.DECODER_CRASH:  # it would end this process too
        return view._replace(
            raw=texts, pictures=tuple(PictureView(visible(name), (), "not decoded") for name in images)
        )
    pictures = tuple(_raw_picture(name, image) for name, image in images.items())
    shown = [picture.squares[0] for picture in pictures if picture.squares]
    return view._replace(raw=texts, pictures=pictures, thumbnail=shown[0] if shown else "")


def _raw_picture(name: str, content: bytes) -> PictureView:
    try:
        pixels = decode_image(content)
    except DataError as error:
        return PictureView(visible(name), (), f"{error.reason.value}: {visible(error.what)}")
    return PictureView(
        f"{visible(name)}: {pixels.shape[1]} x {pixels.shape[0]}, as stored", (to_data_uri(pixels, _RAW_PICTURE_PX),)
    )


def _shorten(text: bytes) -> str:
    shown = visible(text[: 4 * _MAX_RAW_CHARACTERS].decode("utf-8", errors="backslashreplace"))
    more = len(shown) > _MAX_RAW_CHARACTERS or len(text) > 4 * _MAX_RAW_CHARACTERS
    return shown[:_MAX_RAW_CHARACTERS] + (" ..." if more else "")


def _blank(data: Inspected, sample_id: int) -> SampleView:
    """Return what the index alone says of a row."""
    samples = data.index.samples
    return SampleView(
        sample_id=sample_id,
        shard=data.index.shard_of(sample_id).url,
        ordinal=samples["ordinal"][sample_id].as_py(),
        key=visible(samples["key"][sample_id].as_py()),
        kind=samples["kind"][sample_id].as_py(),
        reason="",
        detail="",
        advice="",
        thumbnail="",
        pictures=(),
        pieces=(),
        raw=(),
        num_tokens=0,
        num_supervised_tokens=0,
        truncated_tokens=0,
    )
