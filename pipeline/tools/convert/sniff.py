"""Looking through a folder before anything is read: what is data, what belongs to it, and what is passed over.

Decides by content where names do not say: a Parquet file may be a data set or img2dataset's list of downloads, a JSON
file an annotation, the metadata of one picture, or a description of the folder.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.listing import file_identity
from pipeline.shards.pieces import missing_pieces
from pipeline.tools.convert.annotations import LINE_ENDINGS, has_content, looks_at, plain_name
from pipeline.tools.convert.archives import UNREAD, is_archive

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif")
FILM_ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
TABLE_ENDINGS = (".parquet", ".arrow")
TEXT_TABLE_ENDINGS = (".csv", ".tsv")
_DESCRIPTIONS = frozenset(
    ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "index.json", "config.json")
)
_SPLIT_WORDS = frozenset(
    ("train", "training", "test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
)
"""What Hugging Face takes for the name of a split where it is a word of a file's name."""
_PIECE = re.compile(r"-\d+-of-\d+$")
_MAX_NAMED = 3


class Look(NamedTuple):
    """What a folder holds."""

    files: dict[str, list[str]]
    """Paths to read by format: `img2dataset`, `parquet`, `annotations`, `files` (folders of pictures with texts)."""
    notes: list[str]
    """What was decided: taken for data, for lists, counted once, passed over, missing."""
    archives: list[Path]
    """To be unpacked: they hold all that there is, or the pictures that the annotations name."""


def look_through(folder: Path) -> Look:
    """Look through a folder and all below it.

    Raises:
        ValueError: it holds several parts of a data set, such as splits, or nothing that is read.
    """
    notes: list[str] = []
    # 1. What each file is.
    paths = list(_each_once(folder, notes))
    tars = [path for path in paths if path.suffix.casefold() == ".tar"]
    tables = [path for path in paths if _is_table(path)]
    lists = [path for path in tables if _lists_downloads(path)]
    tables = [path for path in tables if path not in lists]
    pictures = [path for path in paths if path.suffix.casefold() in (*IMAGE_ENDINGS, *FILM_ENDINGS)]
    sidecars = _sidecars(paths, pictures)
    annotations = [path for path in paths if path not in sidecars and _holds_annotations(path)]
    if not annotations and not tables and not tars and sidecars:
        folders = sorted({str(path.parent) for path in sidecars})
    else:
        folders = []
    # 2. Splits of a data set are not joined.
    _check_one_part(folder, tars, _split_of_path(folder))
    for endings in (TABLE_ENDINGS, TEXT_TABLE_ENDINGS):
        _check_one_part(folder, [one for one in tables if one.suffix.casefold() in endings], _part_of_path)
    _check_one_part(folder, annotations, _split_of_path(folder))
    # 3. What is read, and by which converter.
    files = {
        "img2dataset": [*map(str, tars)],
        "parquet": [*map(str, tables)],
        "annotations": [*map(str, annotations)],
        "files": folders,
    }
    files = {kind: found for kind, found in files.items() if found}
    # 4. What is passed over, and what seems to be missing.
    archives = [path for path in paths if is_archive(path.name)]
    if tars or tables or (annotations and pictures) or folders:
        archives = []  # what they hold may be here already
    taken = {*tars, *tables, *annotations, *lists, *(sidecars if folders else ()), *pictures, *archives}
    _describe(folder, files, lists, len(pictures), notes)
    _describe_rest(folder, [path for path in paths if path not in taken], notes)
    notes += [f"missing: {one}" for one in missing_pieces([*map(str, [*tars, *tables, *annotations])])]
    if mds := next((path for path in paths if path.name == "index.json" and _is_mds(path)), None):
        raise ValueError(
            f"{mds.parent}: MDS shards of mosaicml-streaming, which needs another torch than this package; write them "
            "as Parquet or WebDataset with that library first"
        )
    if not files and not archives:
        found = "; ".join(notes) or "it is empty"
        raise ValueError(
            f"folder {folder}: neither tar nor Parquet nor Arrow files in it, nor annotations; {found}; pass the "
            "annotation file"
        )
    return Look(files, notes, archives)


def only_pictures(folder: Path) -> bool:
    """Whether a folder holds pictures, and neither texts next to them nor annotations, tables or archives."""
    endings = {Path(name).suffix.casefold() for _, _, names in os.walk(folder) for name in names}
    texts = {".txt", ".json", ".tar", ".gz", ".zip", *LINE_ENDINGS, *TABLE_ENDINGS, *TEXT_TABLE_ENDINGS}
    return bool(endings & {*IMAGE_ENDINGS, *FILM_ENDINGS}) and not endings & texts


def _is_mds(path: Path) -> bool:
    """Whether an index.json lists shards of mosaicml-streaming."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False
    shards = tree.get("shards") if isinstance(tree, dict) else None
    return isinstance(shards, list) and any(isinstance(one, dict) and one.get("format") == "mds" for one in shards)


def _each_once(folder: Path, notes: list[str]) -> Iterator[Path]:
    """Yield the files below a folder in order; hidden ones and second names of data files are left out.

    Pictures and texts may have several names: each is a sample of its own, or what an annotation calls it.
    """
    seen: dict[object, Path] = {}
    found = []
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(root) / name for name in files if not name.startswith(".")]
    for path in sorted(found, key=lambda one: (one.is_symlink(), one)):
        is_data = path.suffix.casefold() not in (*IMAGE_ENDINGS, *FILM_ENDINGS, ".txt")
        real = file_identity(str(path)) if is_data else path
        if real in seen:
            notes.append(
                f"counted once: {path.relative_to(folder)} is another name of {seen[real].relative_to(folder)}"
            )
        elif path.exists():
            seen[real] = path
    yield from sorted(seen.values())


def is_table_name(name: str) -> bool:
    """Whether a file is a table by its name; `TableSource` knows Arrow by small letters."""
    folded = name.casefold()
    return name.endswith(TABLE_ENDINGS) or folded.endswith((".parquet", *TEXT_TABLE_ENDINGS))


def _is_table(path: Path) -> bool:
    return is_table_name(path.name) and not path.match("cache-*.arrow")  # what datasets' map() computed from the rest


def _lists_downloads(path: Path) -> bool:
    """Whether a table is img2dataset's list of what it downloaded, next to tar files or folders of pictures."""
    stem = path.with_suffix("")
    if path.suffix.casefold() != ".parquet" or not (
        stem.is_dir() or Path(f"{stem}.tar").is_file() or Path(f"{stem}_stats.json").is_file()
    ):
        return False
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return Path(f"{stem}.tar").is_file()
    return "status" in schema.names and not any(pa.types.is_binary(field.type) for field in schema)


def _sidecars(paths: Iterable[Path], pictures: Sequence[Path]) -> set[Path]:
    """Return the texts and JSON files that belong to one picture: same folder, same name up to the first dot."""
    names = {(path.parent, path.name.partition(".")[0]) for path in pictures}
    texts = (path for path in paths if path.suffix.casefold() in (".txt", ".json"))
    return {path for path in texts if (path.parent, path.name.partition(".")[0]) in names}


def _holds_annotations(path: Path) -> bool:
    name = plain_name(path.name)
    if not name.endswith((*LINE_ENDINGS, ".json")) or name in _DESCRIPTIONS or name.endswith("_stats.json"):
        return False
    return any(has_content(row) or row.keys() & {"annotations", "questions"} for row in looks_at(str(path)))


def _check_one_part(folder: Path, files: Sequence[Path], part_of: Callable[[Path], Path]) -> None:
    """Check that files belong to the same part of a data set.

    Raises:
        ValueError: there are several parts.
    """
    parts = {part_of(path): path for path in files}
    if len(parts) > 1:
        names = ", ".join(sorted(str(part.relative_to(folder)) for part in parts))
        example = parts[min(parts)]
        raise ValueError(
            f"folder {folder} holds several parts ({names}): pass one, as the paths or a glob of its files, such as "
            f"{example}"
        )


def _part_of_path(table: Path) -> Path:
    return table.parent / _part_of(table)


def _part_of(table: Path) -> str:
    """Return which part of a data set a table belongs to: `train` of `train-00000-of-00002`, else its split."""
    name, num_pieces = _PIECE.subn("", table.stem)
    return name if num_pieces else _split_of(table)


def _split_of(file: Path) -> str:
    """Return the words in a file's name that name a split, `no split` without any."""
    return _split_words(file.stem) or "no split"


def _split_of_path(folder: Path) -> Callable[[Path], Path]:
    """Return a function that tells the split of a file from its name and the folders it is in."""

    def split_of(path: Path) -> Path:
        inside = [_split_words(part) for part in path.relative_to(folder).parent.parts]
        return folder / (_split_words(path.stem) or next((one for one in inside if one), "") or "no split")

    return split_of


def _split_words(name: str) -> str:
    return " ".join(word for word in re.split(r"[^a-z]+", name.casefold()) if word in _SPLIT_WORDS)


_WHAT = {
    "img2dataset": "tar files",
    "parquet": "tables",
    "annotations": "annotation files",
    "files": "folders of pictures with their texts",
}


def _describe(
    folder: Path, files: dict[str, list[str]], lists: Sequence[Path], num_pictures: int, notes: list[str]
) -> None:
    decided = [
        f"taken for data: {len(found)} {_WHAT[kind]} ({_named(folder, map(Path, found))})"
        for kind, found in files.items()
    ]
    if lists:
        decided.append(
            f"taken for img2dataset's lists of downloads: {len(lists)} tables ({_named(folder, lists)}); they hold no "
            "pictures and only say what failed"
        )
    if num_pictures:
        where = "with their texts" if "files" in files else "for annotations to name"
        decided.append(f"pictures as files: {num_pictures}, {where}")
    notes[:0] = decided


def _describe_rest(folder: Path, rest: Sequence[Path], notes: list[str]) -> None:
    """Say what is passed over: each archive that would have to be unpacked, and all else by its ending."""
    others: dict[str, list[Path]] = defaultdict(list)
    for path in rest:
        if is_archive(path.name) or UNREAD.search(path.name):
            advice = "unpack it" if UNREAD.search(path.name) else "name it as well, if its files are not here already"
            notes.append(f"passed over: {path.relative_to(folder)}, a compressed archive; {advice}")
        else:
            others[path.suffix.casefold() or "no ending"].append(path)
    for ending, found in sorted(others.items()):
        notes.append(f"passed over: {len(found)} files with {ending} ({_named(folder, found)})")


def _named(folder: Path, paths: Iterable[Path]) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
