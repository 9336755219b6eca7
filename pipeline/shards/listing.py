"""Which shards a config names: folders, globs and `{000000..000007}` ranges, locally and on object storage."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from pyarrow import fs

from pipeline.shards.locations import locate
from pipeline.shards.storage import with_retries

MAX_EXPANSION = 1_000_000
"""Most shards a brace range may name: a typing error in a range should not fill memory."""
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Turn folders, globs and `{000000..000007}` ranges into shard URLs.

    The order is that of the patterns; a folder or a glob is sorted by name.

    Raises:
        ValueError: a scheme that is not allowed, a pattern that matches nothing, or a shard that is named twice.
    """
    shards = [shard for pattern in patterns for braced in expand_braces(pattern) for shard in _expand(braced)]
    if not shards:
        raise ValueError("no shards given; pass folders, globs or URLs of WebDataset tar files")
    seen: set[str] = set()
    for shard in shards:
        if shard in seen:
            raise ValueError(f"shard {shard} is named twice by {', '.join(patterns)}; every shard may appear once")
        seen.add(shard)
    return shards


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


def _expand(pattern: str) -> list[str]:
    """Expand one folder or glob; a plain name is returned as it is, present or not, for `stat_shard` to report."""
    filesystem, path = locate(pattern)
    if isinstance(filesystem, fs.LocalFileSystem):
        if os.path.isdir(path):
            return _not_empty(sorted(glob.glob(os.path.join(glob.escape(path), "*.tar"))), f"*.tar in folder {path}")
        if glob.has_magic(path) and not os.path.exists(path):
            return _not_empty(sorted(glob.glob(path)), f"files that match {path}")
        return [path]
    return _expand_remote(filesystem, path, pattern)


def _expand_remote(filesystem: fs.FileSystem, path: str, pattern: str) -> list[str]:
    scheme = pattern.partition("://")[0]
    query = urlsplit(pattern).query
    if path.endswith(".tar") and not glob.has_magic(path):
        return [pattern]
    folder = path if not glob.has_magic(path) else path.rpartition("/")[0]
    wanted = path if glob.has_magic(path) else f"{glob.escape(folder.rstrip('/'))}/*.tar"
    infos = with_retries(lambda: filesystem.get_file_info(fs.FileSelector(folder.rstrip("/"))), pattern)
    names = sorted(info.path for info in infos if info.type == fs.FileType.File and fnmatchcase(info.path, wanted))
    suffix = f"?{query}" if query else ""
    return _not_empty([f"{scheme}://{name}{suffix}" for name in names], f"*.tar in {pattern}")


def _not_empty(shards: list[str], what: str) -> list[str]:
    if not shards:
        raise ValueError(f"shards: no {what}; check the path in data.shards")
    return shards
