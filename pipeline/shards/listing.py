"""Which shards a config names: folders, globs and `{000000..000007}` ranges, locally and on object storage."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from pyarrow import fs

from pipeline.shards.pieces import missing_pieces
from pipeline.storage.locations import locate
from pipeline.storage.retries import with_retries
from pipeline.storage.urls import parse_object_url

MAX_EXPANSION = 1_000_000
"""Most shards a brace range may name: a typing error in a range should not fill memory."""
_COMPRESSED = re.compile(r"\.(?:tar\.(?:gz|zst|bz2|xz|lz4)|tgz|tbz2|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Turn folders, globs and `{000000..000007}` ranges into shard URLs.

    The order is that of the patterns; a folder or a glob is sorted by name, a file with several names taken once.

    Raises:
        ValueError: a scheme that is not allowed, a pattern that matches nothing, or a shard that is named twice.
    """
    shards = [shard for pattern in patterns for braced in expand_braces(pattern) for shard in _expand(braced)]
    if not shards:
        raise ValueError("no shards given; pass folders, globs or URLs of WebDataset tar files")
    seen: set[object] = set()
    for shard in shards:
        place = shard if "://" in shard else file_identity(shard)
        if place in seen:
            raise ValueError(f"shard {shard} is named twice by {', '.join(patterns)}; every shard may appear once")
        seen.add(place)
    return shards


def file_identity(path: str) -> object:
    """Return what all names of a local file have in common, symbolic and hard links alike."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def expand_braces(pattern: str) -> list[str]:
    """Return a path or URL for each choice that the `{a,b}` and `{0..7}` in a pattern leave.

    Raises:
        ValueError: a range that is none, or is too long.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in _choices(match.group(1), pattern) for rest in expand_braces(tail)]


def _choices(body: str, pattern: str) -> list[str]:
    first, separator, last = body.partition("..")
    if not separator:
        return body.split(",")
    if not (first.isdigit() and last.isdigit()) or int(last) < int(first):
        raise ValueError(f"shards {pattern}: expected a range such as {{000000..000007}}, found {{{body}}}")
    if int(last) - int(first) >= MAX_EXPANSION:
        raise ValueError(f"shards {pattern}: the range {{{body}}} names more than {MAX_EXPANSION} shards")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def describe_passed_over(patterns: Sequence[str]) -> list[str]:
    """Return a sentence for each file of the local folders in `patterns` that seems to be data and is not read.

    Also names pieces that are missing by their numbering.
    """
    found: list[str] = []
    for pattern in (one for braced in patterns for one in expand_braces(braced)):
        filesystem, path = locate(pattern)
        if isinstance(filesystem, fs.LocalFileSystem) and os.path.isdir(path):
            found += _passed_over_in(path)
    return found + missing_pieces(expand_shards(patterns))


def _passed_over_in(folder: str) -> list[str]:
    """Return the files of a folder that are not its shards: compressed archives, shards of subfolders, second names."""
    found = []
    taken = set(_of_folder(folder))
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and (inside := _of_folder(path)):
            found.append(f"{path}: {len(inside)} tar files in a folder of its own are not read; pass that folder too")
        elif _COMPRESSED.search(name):
            found.append(f"{path}: a compressed archive is not read; unpack it to a .tar first")
        elif _is_tar(name) and path not in taken:
            first = next(one for one in taken if file_identity(one) == file_identity(path))
            found.append(f"{path}: another name of {first}, which is read once")
    return found


def _of_folder(folder: str) -> list[str]:
    """Return the tar files of a local folder by name, each file once: a link to another of them adds nothing."""
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder) if _is_tar(name))
    return _each_once([path for path in paths if os.path.exists(path)])


def _each_once(paths: Sequence[str]) -> list[str]:
    """Return the paths without second names of a file; a name that is not a link is kept, else the first."""
    chosen: dict[object, str] = {}
    for path in paths:
        real = file_identity(path)
        if real not in chosen or (os.path.islink(chosen[real]) and not os.path.islink(path)):
            chosen[real] = path
    kept = set(chosen.values())
    return [path for path in paths if path in kept]


def _is_tar(name: str) -> bool:
    return name.casefold().endswith(".tar") and not name.startswith(".")


def _expand(pattern: str) -> list[str]:
    """Expand one folder or glob; a plain name is returned unchanged, present or not, for `stat_shard` to report."""
    filesystem, path = locate(pattern)
    if isinstance(filesystem, fs.LocalFileSystem):
        if os.path.isdir(path):
            return _not_empty(_of_folder(path), f"*.tar in folder {path}")
        if glob.has_magic(path) and not os.path.exists(path):
            return _not_empty(_each_once(sorted(glob.glob(path))), f"files that match {path}")
        return [path]
    return _expand_remote(filesystem, path, pattern)


def _expand_remote(filesystem: fs.FileSystem, path: str, pattern: str) -> list[str]:
    if _is_tar(path.rpartition("/")[2]) and not glob.has_magic(path):
        return [pattern]
    folder = path if not glob.has_magic(path) else path.rpartition("/")[0]
    selector = fs.FileSelector(folder.rstrip("/"))
    infos = with_retries(lambda: filesystem.get_file_info(selector), f"shards {pattern}")
    paths = sorted(info.path for info in infos if info.type == fs.FileType.File)
    if glob.has_magic(path):
        # a name that holds brackets or stars is also the pattern that names it
        names = [name for name in paths if name == path or fnmatchcase(name, path)]
    else:
        names = [name for name in paths if _is_tar(name.rpartition("/")[2])]
    shards = [_listed(pattern, name) for name in names]
    return _not_empty(shards, f"*.tar in {pattern}")


def _listed(pattern: str, name: str) -> str:
    """Return the URL of a listed object.

    Raises:
        ValueError: no URL can name it.
    """
    scheme = pattern.partition("://")[0]
    _, separator, query = pattern.partition("?")
    if "?" in name:
        raise ValueError(f"shards {pattern}: an object is named {name!r}, and '?' begins options; rename it")
    url = f"{scheme}://{name}{separator}{query}"
    parse_object_url(url, "shard")
    return url


def _not_empty(shards: list[str], what: str) -> list[str]:
    if not shards:
        raise ValueError(f"shards: no {what}; check the path in data.shards")
    return shards
