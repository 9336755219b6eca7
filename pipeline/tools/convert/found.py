"""What the paths of a command line lead to: files by format, what was decided about them, and repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.shards.listing import file_identity
from pipeline.tools.convert.lists import Listed


class Found(NamedTuple):
    """What a path of the command line leads to."""

    files: list[tuple[str, list[str]]]
    """(format, paths) in order."""
    groups: list[list[str]]
    """Files in which no file of another group may be."""
    notes: list[str]
    listed: tuple[Listed, ...] = ()
    """Entries of a list of data sets."""
    pictures: tuple[Path, ...] = ()
    """Folders of pictures that came out of archives."""


def of_list(path: str, listed: Sequence[Listed], notes: Sequence[str]) -> Found:
    """Return the data sets of a list.

    Raises:
        ValueError: none of them is a local file.
    """
    if not listed:
        raise ValueError(f"{path}: a list of data sets, none of which is here; {'; '.join(notes)}")
    names = ", ".join(dict.fromkeys(one.name for one in listed))
    decided = f"taken for a list of data sets: {path} ({names})"
    return Found([], [[one.file] for one in listed], [decided, *notes], tuple(listed))


def together(found: Sequence[Found]) -> Found:
    """Return several looks as one."""
    return Found(
        [one for look in found for one in look.files],
        [one for look in found for one in look.groups],
        [one for look in found for one in look.notes],
        tuple(one for look in found for one in look.listed),
        tuple(one for look in found for one in look.pictures),
    )


def check_repeated(groups: Sequence[Sequence[str]]) -> None:
    """Check that no file is in two groups; within a folder, links to one file are what its author wanted.

    Raises:
        ValueError: a file would be converted twice.
    """
    seen: dict[object, str] = {}
    for group in groups:
        real = {file_identity(file): file for file in group}
        if twice := next((path for path in real if path in seen), None):
            raise ValueError(
                f"{real[twice]} is named twice, the first time as {seen[twice]}: its samples would be written twice; "
                "name every file once"
            )
        seen |= real
