"""From the paths a user names to the source that reads them."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.listing import describe_passed_over, expand_braces, expand_shards
from pipeline.shards.pieces import missing_pieces
from pipeline.tools.convert.annotations import (
    LINE_ENDINGS,
    AnnotationSource,
    holds_lines,
    is_gzipped,
    open_annotations,
    plain_name,
)
from pipeline.tools.convert.archives import holds_folder, is_archive, unpack
from pipeline.tools.convert.coco import CocoSource
from pipeline.tools.convert.downloads import DownloadSource
from pipeline.tools.convert.energon import check_one_split, missing_shards, open_energon
from pipeline.tools.convert.found import Found, check_repeated, of_list, together
from pipeline.tools.convert.lists import Listed, read_list
from pipeline.tools.convert.mixed import MixedSource
from pipeline.tools.convert.picture_folder import PictureFolderSource
from pipeline.tools.convert.picture_roots import picture_root
from pipeline.tools.convert.row import RowRules
from pipeline.tools.convert.sniff import is_table_name, look_through, only_pictures
from pipeline.tools.convert.source import Source
from pipeline.tools.convert.tables import TableSource
from pipeline.tools.convert.vqa import VqaSource, head_of, vqa_kind

FORMATS = ("auto", "llava", "messages", "parquet", "img2dataset", "coco", "files")
_TABLE_ENDINGS = (".parquet", ".arrow")
_JSON_ENDINGS = (".json", *LINE_ENDINGS)


class SourceOptions(NamedTuple):
    """What a source may need besides its files."""

    image_folder: str | None = None
    """Where relative image paths begin; the folder of the first file when not given."""
    image_column: str | None = None
    text_column: str | None = None
    first_caption_only: bool = False
    policy: SchemaPolicy = SchemaPolicy()
    ignored: frozenset[str] = frozenset()
    """Fields of rows that are neither media nor text of the sample."""
    unpack_to: str | None = None
    """Folder for the files of archives; None refuses archives."""

    @property
    def rules(self) -> RowRules:
        """What the user says about the rows."""
        return RowRules(self.image_column, self.text_column, self.ignored, self.policy)


class Opened(NamedTuple):
    """A source, and how it was found."""

    source: Source
    notes: tuple[str, ...]
    """What of the folders was taken for what, and what was passed over."""


def open_source(
    paths: Sequence[str],
    kind: str = "auto",
    options: SourceOptions = SourceOptions(),  # noqa: B008
) -> Source:
    """Return the source that reads these paths; see `look_for_source`."""
    return look_for_source(paths, kind, options).source


def look_for_source(
    paths: Sequence[str],
    kind: str = "auto",
    options: SourceOptions = SourceOptions(),  # noqa: B008
) -> Opened:
    """Return the source that reads these paths, and what was decided about their folders.

    Args:
        paths: files, folders, globs or `{00000..00007}` ranges.
        kind: one of `FORMATS`; `auto` looks at names and first bytes.
        options: see `SourceOptions`.

    Raises:
        ValueError: nothing there, an unknown format, or a file that is named twice.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: expected one of {', '.join(FORMATS)}")
    if any("://" in path for path in paths):
        _check_tars(paths, kind)
        kind = "img2dataset"
    # 1. What is there.
    looks = [_shards(path) if kind == "img2dataset" else _look_at(path, options) for path in paths]
    check_repeated([group for look in looks for group in look.groups])
    by_kind: dict[str, list[str]] = {}
    for look in looks:
        for found, files in look.files:
            by_kind.setdefault(found if kind == "auto" else kind, []).extend(files)
    notes = [note for look in looks for note in look.notes]
    listed = [one for look in looks for one in look.listed]
    pictures = [folder for look in looks for folder in look.pictures]
    if not by_kind and not listed:
        raise ValueError(f"{', '.join(paths)}: neither annotations nor tables; {'; '.join(notes)}")
    notes += [f"missing: {one}" for one in missing_shards(by_kind.get("img2dataset", []))]
    # 2. Which source reads it, and where its pictures are.
    folder = _image_folder(paths, by_kind, options) if by_kind else ""
    parts: list[Source] = []
    for found, files in by_kind.items():
        for root, own in _by_root(found, files, folder, pictures, options).items():
            if root != folder:
                notes.append(f"picture names begin at: {root}, for {', '.join(map(os.path.basename, own[:3]))}")
            parts += _open(found, tuple(own), root, options, by_kind)
    parts += [_open_listed(one, options) for one in listed]
    return Opened(parts[0] if len(parts) == 1 else MixedSource(tuple(parts)), tuple(notes))


_WITH_NAMES = ("llava", "messages", "coco", "vqa")


def _by_root(
    kind: str, files: Sequence[str], folder: str, pictures: Sequence[Path], options: SourceOptions
) -> dict[str, list[str]]:
    """Return the files by the folder that their picture names begin at."""
    if options.image_folder is not None or kind not in _WITH_NAMES:
        return {folder: list(files)}
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(picture_root(kind, file, folder, pictures), []).append(file)
    return found


def _open_listed(listed: Listed, options: SourceOptions) -> Source:
    rules = dataclasses.replace(options.rules, fields=listed.fields)
    if detect(listed.file) == "parquet":
        return TableSource((listed.file,), rules, listed.image_folder)
    return AnnotationSource((listed.file,), options.image_folder or listed.image_folder, rules)


def _image_folder(paths: Sequence[str], by_kind: dict[str, list[str]], options: SourceOptions) -> str:
    """Return where image paths begin: as given, else the folder that was passed, else that of the first file."""
    first = next((files[0] for files in by_kind.values()), "")
    folder = paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else os.path.dirname(first)
    folder = os.path.abspath(options.image_folder or folder)
    if os.path.isfile(folder) and is_archive(folder) and options.unpack_to is not None:
        return str(unpack(folder, Path(options.unpack_to)))
    if not os.path.isdir(folder) and by_kind.keys() != {"img2dataset"}:
        raise ValueError(f"image folder {folder}: no such folder; pass the one that the image paths begin at")
    return folder


def _open(
    kind: str, files: tuple[str, ...], folder: str, options: SourceOptions, by_kind: dict[str, list[str]]
) -> list[Source]:
    if kind == "vqa_answers":
        if "vqa" not in by_kind:
            raise ValueError(f"{files[0]}: answers without their questions; name the file of the questions too")
        return []
    if kind == "vqa":
        if "vqa_answers" not in by_kind:
            raise ValueError(f"{files[0]}: questions without answers; name the file of the annotations too")
        return [VqaSource(files, tuple(by_kind["vqa_answers"]), folder, options.rules)]
    if kind == "parquet":
        return [TableSource(files, options.rules, options.image_folder and folder)]
    if kind == "coco":
        return [CocoSource(files, folder, options.first_caption_only)]
    if kind == "img2dataset":
        return [open_energon(files, options.rules) or DownloadSource(files, options.rules)]
    if kind == "files":
        return [PictureFolderSource(files, options.rules)]
    return [AnnotationSource(files, folder, options.rules)]


def searched_folder(source: Source) -> str | None:
    """Return the folder in which a source looks for the images that it names; None if it holds them itself."""
    if isinstance(source, MixedSource):
        return next((folder for part in source.parts if (folder := searched_folder(part)) is not None), None)
    return source.image_folder if isinstance(source, AnnotationSource | CocoSource) else None


def _check_tars(paths: Sequence[str], kind: str) -> None:
    """Check that paths of which some are URLs mean tar shards.

    Raises:
        ValueError: they name another format.
    """
    other = next((path for path in paths if _is_no_tar(urlsplit(path).path)), None)
    if other is None and kind not in ("auto", "img2dataset"):
        other = f"--format {kind}"
    if other is not None:
        raise ValueError(f"{other}: with URLs only tar shards are read; copy the files to a local folder and pass that")


def _is_no_tar(path: str) -> bool:
    return plain_name(path).endswith((*_TABLE_ENDINGS, *_JSON_ENDINGS))


def _shards(path: str) -> Found:
    """Return the shards of a pattern: those of a folder as one group, any other as one of its own."""
    shards = expand_shards([path])
    is_folder = os.path.isdir(path)
    notes = describe_passed_over([path]) if is_folder else []
    return Found([("img2dataset", shards)], [shards] if is_folder else [[shard] for shard in shards], notes)


def _look_at(path: str, options: SourceOptions) -> Found:
    """Return the files of a path or pattern: those of a folder as one group, any other as one of its own."""
    is_literal = os.path.exists(path) or any(glob.iglob(path, recursive=True))
    names = [path] if is_literal else expand_braces(path)
    found = [_look_at_name(name, options) for name in names]
    notes = [note for one in found for note in one.notes]
    files = [kind for one in found for kind in one.files]
    if len(names) > 1:
        notes += [f"missing: {one}" for one in missing_pieces([name for _, group in files for name in group])]
    listed = tuple(one for look in found for one in look.listed)
    pictures = tuple(folder for one in found for folder in one.pictures)
    return Found(files, [group for one in found for group in one.groups], notes, listed, pictures)


def _look_at_name(path: str, options: SourceOptions) -> Found:
    if os.path.isdir(path):
        return _look_at_folder(Path(path), options)
    files = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    if not files:
        raise ValueError(f"{path}: no such file or folder; pass the file or folder to convert")
    packed = [file for file in files if is_archive(file) or _is_packed_folder(file)]
    if packed:
        rest = [_look_at_name(file, options) for file in files if file not in packed]
        return together([*rest, *(_look_at_archive(file, options) for file in packed)])
    if len(files) == 1 and (found := read_list(files[0])) is not None:
        return of_list(files[0], *found)
    notes = [f"missing: {one}" for one in missing_pieces(files)] if len(files) > 1 else []
    return Found([(detect(file), [file]) for file in files], [[file] for file in files], notes)


def _is_packed_folder(path: str) -> bool:
    return path.casefold().endswith(".tar") and holds_folder(path)


def _look_at_archive(path: str, options: SourceOptions) -> Found:
    """Return what an archive holds; one of pictures only serves the annotations that name them.

    Raises:
        ValueError: it cannot be unpacked.
    """
    if options.unpack_to is None:
        raise ValueError(f"{path}: an archive; unpack it first")
    folder = unpack(path, Path(options.unpack_to))
    note = f"unpacked: {path}"
    if only_pictures(folder):
        return Found([], [[path]], [f"{note}, which holds pictures for annotations to name"], (), (folder,))
    look = _look_at_folder(folder, options)
    return look._replace(notes=[note, *look.notes], pictures=(*look.pictures, folder))


def _look_at_folder(folder: Path, options: SourceOptions) -> Found:
    """Return what to read of a folder; of a Hugging Face dataset on disk the files that it names, in its order."""
    if (folder / "state.json").is_file():  # written by datasets' save_to_disk, which names its files in order
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(folder / entry["filename"]) for entry in state["_data_files"]]
        missing = [name for name in names if not os.path.isfile(name)]
        notes = [f"missing: {name}, which state.json names" for name in missing]
        there = [name for name in names if name not in missing]
        return Found([("parquet", there)], [there], [f"taken for data: a data set on disk, {len(there)} files", *notes])
    for name in ("dataset_info.json", "meta.json"):
        if (folder / name).is_file() and (found := read_list(str(folder / name))) is not None and found[0]:
            return of_list(str(folder / name), *found)
    look = look_through(folder)
    check_one_split(folder)
    if look.archives and options.unpack_to is not None:
        inside = [_look_at_archive(str(path), options) for path in look.archives]
        if not look.files:
            return together([Found([], [], look.notes), *inside])
        look = look._replace(notes=[*look.notes, *(note for one in inside for note in one.notes)])
    else:
        inside = []
    files = [
        (detect(file) if kind == "annotations" else kind, [file])
        for kind, found in look.files.items()
        for file in found
    ]
    groups = [[file for _, group in files for file in group]]
    return Found(files, groups, look.notes, (), tuple(folder for one in inside for folder in one.pictures))


def detect(file: str) -> str:
    """Return the format of a file by its ending; of JSON by its first line and character.

    Raises:
        ValueError: neither says.
    """
    if is_table_name(file):
        return "parquet"
    if file.casefold().endswith(".tar"):
        return "img2dataset"
    if plain_name(file).endswith(LINE_ENDINGS):
        return "messages"
    if plain_name(file).endswith(".json"):
        if holds_lines(file):
            return "messages"
        with open_annotations(file) as opened:
            first = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return "llava" if first != b"{" else vqa_kind(head_of(file)) or "coco"
    if os.path.isfile(file) and is_gzipped(file):
        raise ValueError(f"{file}: compressed; gunzip it first")
    raise ValueError(f"{file}: cannot tell its format from its name; pass --format, one of {', '.join(FORMATS[1:])}")
