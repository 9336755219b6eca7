"""COCO captions: one JSON file with `images` and `annotations`, pictures in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.samples.strict_json import decode_text
from pipeline.tools.convert.annotations import open_annotations
from pipeline.tools.convert.image_folder import image_size_bytes, read_image_file
from pipeline.tools.convert.media_bytes import media_extension
from pipeline.tools.convert.row import Tally
from pipeline.tools.convert.source import Entry, Outcome, entry_table, refused, stored_bytes

_Id = int | float | str
_CAPTION = Tally(media=1, implied=1)


class _Caption(NamedTuple):
    image_id: _Id
    name: str
    """Of the image file."""
    text: str
    size_bytes: int


@dataclass(frozen=True)
class CocoSource:
    """Caption files as `captions_train2017.json`, a sample per caption in the order of the file."""

    files: tuple[str, ...]
    image_folder: str
    first_caption_only: bool = False
    """Keep one caption of each image, the first usable one; each sample holds its own copy of the image."""
    kind: str = "coco"

    def units(self) -> list[str]:
        """Return the caption files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List captions with the sizes of their images; an image without caption is an entry of its own."""
        entries: list[Entry] = []
        captions: list[_Caption] = []
        for row, outcome in enumerate(self._captions(unit)):
            if isinstance(outcome, DataError):
                entries.append(refused(row, outcome)._replace(media=1))
                captions.append(_Caption(0, "", "", 0))
            else:
                entries.append(Entry(row, row, outcome.size_bytes))
                captions.append(outcome)
        columns = {
            "name": [one.name for one in captions],
            "caption": [json.dumps(one.text) for one in captions],
            "image_id": [json.dumps(one.image_id) for one in captions],
        }
        return entry_table(entries, {name: pa.array(values, pa.large_string()) for name, values in columns.items()})

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield image, caption and metadata of each entry."""
        columns = (entries[name].to_pylist() for name in ("name", "caption", "image_id"))
        for name, caption, image_id in zip(*columns, strict=True):
            try:
                data = read_image_file(self.image_folder, name)
                text: str = json.loads(caption)
                members = {
                    media_extension(data): data,
                    "txt": text.encode(),
                    "json": json.dumps({"image_id": json.loads(image_id), "file_name": name}).encode(),
                }
                yield Outcome(members, _CAPTION)
            except UnicodeEncodeError:
                yield Outcome(DataError(Reason.TEXT_INVALID_UNICODE, "a lone surrogate in the caption"), _CAPTION)
            except DataError as error:
                yield Outcome(error, _CAPTION)

    def _captions(self, unit: str) -> Iterator[_Caption | DataError]:
        """Yield the captions in the order of the file, then an error for each image that cannot be used."""
        images, notes = _load(unit)
        files: dict[_Id, tuple[str, int] | DataError] = {}
        nameless: list[DataError] = []
        for image in images:
            try:
                image_id = _id_of(image, "id")
            except DataError as error:
                nameless.append(error)
            else:
                files[image_id] = _repeated() if image_id in files else _file_of(image, self.image_folder)
        uncaptioned = dict.fromkeys(files)
        for note in _first_usable(notes) if self.first_caption_only else notes:
            try:
                image_id = _id_of(note, "image_id")
                uncaptioned.pop(image_id, None)
                yield _caption(image_id, _text_of(note), files.get(image_id))
            except DataError as error:
                yield error
        yield from [DataError(Reason.MISSING_ANNOTATION, "an image without caption")] * len(uncaptioned)
        yield from nameless


def _load(unit: str) -> tuple[list[Any], list[Any]]:
    """Return the values of `images` and `annotations`."""
    with open_annotations(unit) as file:
        content = file.read()
    try:
        tree = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(Reason.JSON_INVALID, f"not JSON: {error.msg} at character {error.pos}", shard=unit) from None
    except UnicodeDecodeError as error:
        raise DataError(Reason.TEXT_INVALID_UNICODE, f"byte {error.start} is not UTF-8", shard=unit) from None
    except (ValueError, RecursionError) as error:
        raise DataError(Reason.JSON_INVALID, f"JSON that cannot be read ({type(error).__name__})", shard=unit) from None
    images, notes = (tree.get("images"), tree.get("annotations")) if isinstance(tree, dict) else (None, None)
    if not isinstance(images, list) or not isinstance(notes, list):
        found = ", ".join(f"`{name}`" for name in list(tree)[:8]) if isinstance(tree, dict) else type(tree).__name__
        raise DataError(
            Reason.JSON_INVALID,
            f"one object with {found} at the top; expected an array of annotations, one per line, or COCO captions: "
            "`images` with id and file_name and `annotations` with image_id and caption",
            shard=unit,
        )
    return images, notes


def _id_of(entry: Any, field: str) -> _Id:
    value = entry.get(field) if isinstance(entry, dict) else None
    if isinstance(value, int | float | str):
        return value
    raise DataError(Reason.JSON_INVALID, f"`{field}` is {_kind(value)}, expected a number or text")


def _first_usable(notes: list[Any]) -> list[Any]:
    """Return the first usable caption of each image, or its first one if none is; notes without image stay."""
    chosen: dict[_Id, int] = {}
    usable: set[_Id] = set()
    nowhere: list[int] = []
    for place, note in enumerate(notes):
        try:
            image_id = _id_of(note, "image_id")
        except DataError:
            nowhere.append(place)
            continue
        if image_id not in usable and _is_usable(note):
            usable.add(image_id)
            chosen[image_id] = place
        chosen.setdefault(image_id, place)
    return [notes[place] for place in sorted([*chosen.values(), *nowhere])]


def _is_usable(note: dict[str, Any]) -> bool:
    try:
        return bool(decode_text(_text_of(note).encode()).strip())
    except (DataError, UnicodeEncodeError):
        return False


def _text_of(note: dict[str, Any]) -> str:
    text = note.get("caption")
    if isinstance(text, str):
        return text
    reason = Reason.MISSING_ANNOTATION if text is None else Reason.JSON_INVALID
    raise DataError(reason, f"`caption` is {_kind(text)}, expected text")


def _file_of(image: dict[str, Any], folder: str) -> tuple[str, int] | DataError:
    """Return name and size in bytes of an image's file."""
    name = image.get("file_name")
    if not isinstance(name, str):
        return DataError(Reason.JSON_INVALID, f"`file_name` is {_kind(name)}, expected text")
    try:
        return name, image_size_bytes(folder, name)
    except DataError as error:
        return error


def _repeated() -> DataError:
    return DataError(Reason.JSON_INVALID, "several entries of `images` have the id of this image")


def _caption(image_id: _Id, text: str, file: tuple[str, int] | DataError | None) -> _Caption | DataError:
    if file is None:
        return DataError(Reason.MISSING_IMAGE, "a caption of an image that is not listed")
    if isinstance(file, DataError):
        return file
    name, size = file
    metadata = len(name) + 64
    total = sum(stored_bytes(part) for part in (size, len(text.encode("utf-8", "surrogatepass")), metadata))
    return _Caption(image_id, name, text, total)


def _kind(value: object) -> str:
    return "missing or null" if value is None else f"of type {type(value).__name__}"
