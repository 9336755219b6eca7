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

from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.listing import expand_braces, expand_shards
from pipeline.tools.convert.annotations import (
    LINE_ENDINGS,
    AnnotationSource,
    holds_lines,
    is_gzipped,
    open_annotations,
    plain_name,
)
from pipeline.tools.convert.coco import CocoSource
from pipeline.tools.convert.downloads import DownloadSource
from pipeline.tools.convert.row import RowRules
from pipeline.tools.convert.source import Source
from pipeline.tools.convert.tables import TableSource

FORMATS = ("auto", "llava", "messages", "parquet", "img2dataset", "coco")
_TABLE_ENDINGS = (".parquet", ".arrow")
_JSON_ENDINGS = (".json", *LINE_ENDINGS)
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
    ignored: frozenset[str] = frozenset()
    """Fields of rows that are neither media nor text of the sample."""

    @property
    def rules(self) -> RowRules:
        """What the user says about the rows."""
        return RowRules(self.image_column, self.text_column, self.ignored, self.policy)


def open_source(
    paths: Sequence[str],
    kind: str = "auto",
    options: SourceOptions = SourceOptions(),  # noqa: B008
) -> Source:
    """Return the source that reads these paths.

    Args:
        paths: files, folders, globs or `{00000..00007}` ranges.
        kind: one of `FORMATS`; `auto` looks at names and first bytes.
        options: see `SourceOptions`.

    Raises:
        ValueError: nothing there, an unknown format, several formats at once, or a file that is named twice.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: expected one of {', '.join(FORMATS)}")
    if any("://" in path for path in paths):
        _check_tars(paths, kind)
        kind = "img2dataset"
    groups = [group for path in paths for group in (_shards if kind == "img2dataset" else _expand)(path)]
    _check_repeated(groups)
    files = [file for group in groups for file in group]
    if kind == "img2dataset":
        return DownloadSource(tuple(files), options.rules)
    found = {_detect(file) for file in files} if kind == "auto" else {kind}
    if len(found) > 1:
        raise ValueError(f"{', '.join(paths)} hold several formats ({', '.join(sorted(found))}): convert one at a time")
    kind = found.pop()
    folder = os.path.abspath(options.image_folder or os.path.dirname(files[0]))
    if not os.path.isdir(folder):
        raise ValueError(f"image folder {folder}: no such folder; pass the one that the image paths begin at")
    if kind == "parquet":
        return TableSource(tuple(files), options.rules, options.image_folder and folder)
    if kind == "coco":
        return CocoSource(tuple(files), folder, options.first_caption_only)
    if kind == "img2dataset":
        return DownloadSource(tuple(files), options.rules)
    return AnnotationSource(tuple(files), folder, options.rules)


def searched_folder(source: Source) -> str | None:
    """Return the folder in which a source looks for the images that it names; None if it holds them itself."""
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


def _shards(path: str) -> list[list[str]]:
    """Return the shards of a pattern: those of a folder as one group, any other as one of its own."""
    shards = expand_shards([path])
    return [shards] if os.path.isdir(path) else [[shard] for shard in shards]


def _expand(path: str) -> list[list[str]]:
    """Return the files of a path or pattern: those of a folder as one group, any other as one of its own."""
    is_literal = os.path.exists(path) or any(glob.iglob(path, recursive=True))
    names = [path] if is_literal else expand_braces(path)
    return [group for name in names for group in _expand_name(name)]


def _expand_name(path: str) -> list[list[str]]:
    if os.path.isdir(path):
        return [_files_of_folder(Path(path))]
    files = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
    if not files:
        raise ValueError(f"{path}: no such file or folder; pass the file or folder to convert")
    return [[file] for file in files]


def _check_repeated(groups: Sequence[Sequence[str]]) -> None:
    """Check that no file is in two groups; within a folder, links to one file are what its author wanted.

    Raises:
        ValueError: a file would be converted twice.
    """
    seen: dict[str, str] = {}
    for group in groups:
        real = {os.path.realpath(file): file for file in group}
        if twice := next((path for path in real if path in seen), None):
            raise ValueError(
                f"{real[twice]} is named twice, the first time as {seen[twice]}: its samples would be written twice; "
                "name every file once"
            )
        seen |= real


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
    found = sorted(path for path in folder.rglob("*") if _is_table(path.name))
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


def _is_table(name: str) -> bool:
    # `TableSource` knows Arrow by small letters
    return name.endswith(_TABLE_ENDINGS) or name.casefold().endswith(".parquet")


def _detect(file: str) -> str:
    """Return the format of a file by its ending; of JSON by its first line and character.

    Raises:
        ValueError: neither says.
    """
    if _is_table(file):
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
        return "coco" if first == b"{" else "llava"
    if os.path.isfile(file) and is_gzipped(file):
        raise ValueError(f"{file}: compressed; gunzip it first")
    raise ValueError(f"{file}: cannot tell its format from its name; pass --format, one of {', '.join(FORMATS[1:])}")
