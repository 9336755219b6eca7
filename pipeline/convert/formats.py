"""From the paths a user names to the source that reads them."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pipeline.convert.annotations import AnnotationSource, holds_lines
from pipeline.convert.coco import CocoSource
from pipeline.convert.downloads import DownloadSource
from pipeline.convert.source import Source
from pipeline.convert.tables import TableSource
from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.listing import expand_shards

FORMATS = ("auto", "llava", "messages", "parquet", "img2dataset", "coco")
_TABLE_ENDINGS = (".parquet", ".arrow")
_LINE_ENDINGS = (".jsonl", ".ndjson")
_JSON_ENDINGS = (".json", *_LINE_ENDINGS)
_SPLIT_WORDS = frozenset(
    ("train", "training", "test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
)
"""What Hugging Face takes for the name of a split where it is a word of a file's name."""
_PIECE = re.compile(r"-\d+-of-\d+$")


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
    if any("://" in path for path in paths):
        _check_tars(paths, kind)
        kind = "img2dataset"
    if kind == "img2dataset":
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


def _check_tars(paths: Sequence[str], kind: str) -> None:
    """Check that paths of which some are URLs mean tar shards.

    Raises:
        ValueError: they name another format.
    """
    other = next((path for path in paths if urlsplit(path).path.endswith((*_TABLE_ENDINGS, *_JSON_ENDINGS))), None)
    if other is None and kind not in ("auto", "img2dataset"):
        other = f"--format {kind}"
    if other is not None:
        raise ValueError(f"{other}: with URLs only tar shards are read; copy the files to a local folder and pass that")


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
    if tars := sorted(folder.glob("*.tar")):
        return _only_part(folder, tars, _split_of)
    if (folder / "state.json").is_file():  # written by datasets' save_to_disk, which names its files in order
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(folder / entry["filename"]) for entry in state["_data_files"]]
    found = sorted(path for ending in _TABLE_ENDINGS for path in folder.rglob(f"*{ending}"))
    tables = [path for path in found if not path.match("cache-*.arrow")]  # what datasets' map() computed from the rest
    if not tables:
        raise ValueError(f"folder {folder}: neither tar nor Parquet nor Arrow files in it; pass the annotation file")
    return _only_part(folder, tables, _part_of)


def _only_part(folder: Path, files: Sequence[Path], part_of: Callable[[Path], str]) -> list[str]:
    """Return the files if all belong to the same part of a data set.

    Raises:
        ValueError: there are several parts.
    """
    parts = {path.parent / part_of(path): path for path in files}
    if len(parts) > 1:
        names = ", ".join(sorted(str(part.relative_to(folder)) for part in parts))
        example = parts[min(parts)]
        raise ValueError(
            f"folder {folder} holds several parts ({names}): pass one, as the paths or a glob of its files, such as "
            f"{example}"
        )
    return [str(path) for path in files]


def _part_of(table: Path) -> str:
    """Return which part of a data set a table belongs to: `train` of `train-00000-of-00002`, else its split."""
    name, num_pieces = _PIECE.subn("", table.stem)
    return name if num_pieces else _split_of(table)


def _split_of(file: Path) -> str:
    """Return the words in a file's name that name a split, `no split` without any."""
    words = re.split(r"[^a-z]+", file.stem.casefold())
    return " ".join(word for word in words if word in _SPLIT_WORDS) or "no split"


def _detect(file: str) -> str:
    """Return the format of a file by its ending; of JSON by its first line and character.

    Raises:
        ValueError: neither says.
    """
    if file.endswith(_TABLE_ENDINGS):
        return "parquet"
    if file.endswith(".tar"):
        return "img2dataset"
    if file.endswith(_LINE_ENDINGS):
        return "messages"
    if file.endswith(".json"):
        if holds_lines(file):
            return "messages"
        with open(file, "rb") as opened:
            first = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return "coco" if first == b"{" else "llava"
    raise ValueError(f"{file}: cannot tell its format from its name; pass --format, one of {', '.join(FORMATS[1:])}")
