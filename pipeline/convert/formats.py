"""From the paths a user names to the source that reads them."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.convert.annotations import AnnotationSource
from pipeline.convert.coco import CocoSource
from pipeline.convert.downloads import DownloadSource
from pipeline.convert.source import Source
from pipeline.convert.tables import TableSource
from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.storage import expand_shards

FORMATS = ("auto", "llava", "messages", "parquet", "img2dataset", "coco")
_TABLE_ENDINGS = (".parquet", ".arrow")


class SourceOptions(NamedTuple):
    """What a source may need beside its files."""

    image_folder: str | None = None
    """Where relative image paths begin; the folder of the first file when not given."""
    image_column: str | None = None
    text_column: str | None = None
    first_caption_only: bool = False
    policy: SchemaPolicy = SchemaPolicy()


def open_source(
    paths: Sequence[str],
    kind: str = "auto",
    options: SourceOptions = SourceOptions(),  # noqa: B008
) -> Source:
    """Return the source that reads these paths.

    Args:
        paths: files, folders or globs.
        kind: one of `FORMATS`; `auto` looks at names and first bytes.
        options: see `SourceOptions`.

    Raises:
        ValueError: nothing there, an unknown format, or several formats at once.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: expected one of {', '.join(FORMATS)}")
    if kind == "img2dataset" or (kind == "auto" and any("://" in path for path in paths)):
        return DownloadSource(tuple(expand_shards(paths)))
    files = [file for path in paths for file in _expand(path)]
    found = {_detect(file) for file in files} if kind == "auto" else {kind}
    if len(found) > 1:
        raise ValueError(f"{', '.join(paths)} hold several formats ({', '.join(sorted(found))}): convert one at a time")
    kind = found.pop()
    folder = options.image_folder or os.path.dirname(os.path.abspath(files[0]))
    if not os.path.isdir(folder):
        raise ValueError(f"image folder {folder}: no such folder; pass the one that the image paths begin at")
    if kind == "parquet":
        return TableSource(tuple(files), options.image_column, options.text_column, options.policy)
    if kind == "coco":
        return CocoSource(tuple(files), folder, options.first_caption_only)
    if kind == "img2dataset":
        return DownloadSource(tuple(files))
    return AnnotationSource(tuple(files), folder, options.policy)


def _expand(path: str) -> list[str]:
    if os.path.isdir(path):
        return _files_of_folder(Path(path))
    files = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    if not files:
        raise ValueError(f"{path}: no such file or folder; pass the file or folder to convert")
    return files


def _files_of_folder(folder: Path) -> list[str]:
    """Return the tar or table files of a folder; of a Hugging Face dataset those of its only split.

    Raises:
        ValueError: none, or several splits.
    """
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return [str(path) for path in tars]
    if (folder / "state.json").is_file():  # written by datasets' save_to_disk, which names its files in order
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(folder / entry["filename"]) for entry in state["_data_files"]]
    tables = sorted(path for ending in _TABLE_ENDINGS for path in folder.rglob(f"*{ending}"))
    if not tables:
        raise ValueError(f"folder {folder}: neither tar nor Parquet nor Arrow files in it; pass the annotation file")
    splits = {(path.parent, path.name.split("-")[0] if "-of-" in path.name else "") for path in tables}
    if len(splits) > 1:
        names = ", ".join(sorted(str((parent / name).relative_to(folder)) for parent, name in splits))
        raise ValueError(f"folder {folder} holds several parts ({names}): pass one, as a folder or as a glob of files")
    return [str(path) for path in tables]


def _detect(file: str) -> str:
    """Return the format of a file by its ending; of JSON by its first character.

    Raises:
        ValueError: neither says.
    """
    if file.endswith(_TABLE_ENDINGS):
        return "parquet"
    if file.endswith(".tar"):
        return "img2dataset"
    if file.endswith((".jsonl", ".ndjson")):
        return "messages"
    if file.endswith(".json"):
        with open(file, "rb") as opened:
            first = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return "coco" if first == b"{" else "llava"
    raise ValueError(f"{file}: cannot tell its format from its name; pass --format, one of {', '.join(FORMATS[1:])}")
