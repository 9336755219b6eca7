"""Where the picture names of an annotation file begin: the folder in which most of its first names are files."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import DataError
from pipeline.samples.image_names import is_url
from pipeline.tools.convert.annotations import first_rows
from pipeline.tools.convert.row_media import find_media, is_file_name
from pipeline.tools.convert.vqa import first_names, head_of

_NUM_NAMES: Final = 32
_MAX_FOLDERS: Final = 2000
_COCO_NAME: Final = re.compile(rb'"file_name"\s*:\s*"([^"\\]{1,300})"')

Names = list[list[str]]
"""For each picture the names that it may have."""


def picture_root(kind: str, file: str, default: str, more: Sequence[Path]) -> str:
    """Return the folder that the picture names of a file begin at.

    Args:
        kind: format of the file.
        file: annotation file.
        default: taken unless another folder holds more of the first pictures.
        more: folders that pictures may be in, with all below them.
    """
    names = _first_names(kind, file)
    best, found = default, _num_found(default, names)
    if found == len(names):
        return best
    for folder in _candidates([Path(default), Path(file).parent, *more]):
        if (number := _num_found(folder, names)) > found:
            best, found = folder, number
            if found == len(names):
                break
    return best


def _candidates(roots: Iterable[Path]) -> Iterator[str]:
    """Yield the folders themselves, then all below them, each once."""
    roots = list(dict.fromkeys(roots))
    walked = (Path(folder) for root in roots for folder, _, _ in os.walk(root))
    yield from map(str, dict.fromkeys([*roots, *itertools.islice(walked, _MAX_FOLDERS)]))


def _num_found(folder: str, names: Names) -> int:
    return sum(any(os.path.isfile(os.path.join(folder, name)) for name in one) for one in names)


def _first_names(kind: str, file: str) -> Names:
    """Return the names of the first pictures of a file that are relative paths."""
    try:
        if kind == "vqa":
            return first_names(file, _NUM_NAMES)
        if kind == "coco":
            found = _COCO_NAME.findall(head_of(file))[:_NUM_NAMES]
            return [[name.decode("utf-8", "replace")] for name in found]
        rows = first_rows(file, _NUM_NAMES)
    except (DataError, ValueError, OSError):
        return []
    media = [one.value for row in rows for one in find_media(row) if not one.is_origin and is_file_name(one.value)]
    return [[name] for name in media[:_NUM_NAMES] if not is_url(name) and not os.path.isabs(name)]
