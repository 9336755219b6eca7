"""COCO captions: one JSON file with `images` and `annotations`, pictures in a folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.convert.image_folder import image_extension, image_size_bytes, read_image_file
from pipeline.convert.source import Entry, Members, entry_table, refused
from pipeline.errors import DataError, Reason
from pipeline.shards.storage import open_shard


@dataclass(frozen=True)
class CocoSource:
    """Caption files as `captions_train2017.json`, a sample per caption in the order of the file."""

    files: tuple[str, ...]
    image_folder: str
    first_caption_only: bool = False
    """Keep one caption of each image, the first in the file; each sample holds its own copy of the image."""
    kind: str = "coco"

    def units(self) -> list[str]:
        """Return the caption files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List captions with the sizes of their images; an image without caption is an entry of its own."""
        images, captions = _load(unit)
        sizes = {image_id: _size(self.image_folder, name) for image_id, name in images.items()}
        uncaptioned = dict(images)
        seen: set[Any] = set()
        entries: list[Entry] = []
        columns: dict[str, list[str]] = defaultdict(list)
        for image_id, caption in captions:
            uncaptioned.pop(image_id, None)
            if self.first_caption_only and image_id in seen:
                continue
            seen.add(image_id)
            row = len(entries)
            size = sizes.get(image_id, DataError(Reason.MISSING_IMAGE, "a caption of an image that is not listed"))
            failed = isinstance(size, DataError)
            entries.append(refused(row, size) if isinstance(size, DataError) else Entry(row, row, size + len(caption)))
            columns["name"].append("" if failed else images[image_id])
            columns["caption"].append("" if failed else json.dumps(caption))
            columns["image_id"].append("" if failed else json.dumps(image_id))
        for _ in uncaptioned:
            entries.append(refused(len(entries), DataError(Reason.MISSING_ANNOTATION, "an image without caption")))
            for column in ("name", "caption", "image_id"):
                columns[column].append("")
        return entry_table(entries, {name: pa.array(values, pa.large_string()) for name, values in columns.items()})

    def read(self, unit: str, entries: pa.Table) -> Iterator[Members | DataError]:
        """Yield image, caption and metadata of each entry."""
        columns = (entries[name].to_pylist() for name in ("name", "caption", "image_id"))
        for name, caption, image_id in zip(*columns, strict=True):
            try:
                data = read_image_file(self.image_folder, name)
                text: str = json.loads(caption)
                yield {
                    image_extension(data): data,
                    "txt": text.encode(),
                    "json": json.dumps({"image_id": json.loads(image_id), "file_name": name}).encode(),
                }
            except UnicodeEncodeError:
                yield DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in the caption")
            except DataError as error:
                yield error


def _load(unit: str) -> tuple[dict[Any, str], list[tuple[Any, str]]]:
    """Return file names by image id, and (image id, caption) in the order of the file."""
    with open_shard(unit) as file:
        try:
            tree = json.loads(file.read())
            images = {image["id"]: str(image["file_name"]) for image in tree["images"]}
            captions = [(note["image_id"], str(note["caption"])) for note in tree["annotations"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                Reason.JSON_INVALID,
                f"no COCO captions ({type(error).__name__}); expected `images` with id and file_name and `annotations` "
                "with image_id and caption",
                shard=unit,
            ) from None
    return images, captions


def _size(folder: str, name: str) -> int | DataError:
    try:
        return image_size_bytes(folder, name)
    except DataError as error:
        return error
