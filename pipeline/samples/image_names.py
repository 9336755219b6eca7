"""Which member is which image: image order of a sample, and the names its annotation uses for members."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from pipeline.errors import DataError, Reason

_URL = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*://|data:|//)", re.IGNORECASE)


def is_url(name: str) -> bool:
    """Whether a name is a URL or inline data; a colon alone may be part of a file name."""
    return _URL.match(name) is not None


def sort_images(extensions: Sequence[str]) -> tuple[str, ...]:
    """Sort image extensions by their number (`2.png` before `10.png`), an unnumbered one first.

    Raises:
        DataError: two images claim the same place (`0.jpg` and `0.png`).
    """
    numbered = sorted((_number(extension), extension) for extension in extensions)
    for (first, _), (second, extension) in itertools.pairwise(numbered):
        if first == second:
            raise DataError(Reason.DUPLICATE_MEMBER, f"two images at the place of {extension}")
    return tuple(extension for _, extension in numbered)


def resolve_images(key: str, names: Sequence[str], present: tuple[str, ...], *, declared: bool) -> tuple[str, ...]:
    """Return the extension of each image in the order the annotation lists them.

    A name may be the extension (`0.png`), the member (`KEY.0.png`) or any path that ends in the member's name. Names
    that match nothing at all are taken for those of the files before packing; then images count in numeric order.

    Args:
        key: key of the sample, folder included.
        names: names in the annotation; empty means numeric order.
        present: image extensions in the shard, in numeric order.
        declared: whether the annotation has an image list, possibly an empty one.

    Raises:
        DataError: a remote name, a name without file, or a file that is not named.
    """
    for name in names:
        if is_url(name):
            raise DataError(Reason.REMOTE_IMAGE_FORBIDDEN, "an image is named by URL")
    if not names:
        if declared and present:
            raise DataError(Reason.UNREFERENCED_IMAGE, f"`image` is empty, but the shard holds {len(present)} images")
        return present
    stem = key.rpartition("/")[2].casefold()
    resolved = [_resolve(name, stem, present) for name in names]
    if not any(resolved) and len(names) == len(present):
        return present
    if None in resolved:
        missing = resolved.index(None)
        raise DataError(
            Reason.MISSING_IMAGE, f"image {missing} of the {len(names)} listed is not among the {len(present)} stored"
        )
    found = tuple(extension for extension in resolved if extension is not None)
    if unused := set(present) - set(found):
        raise DataError(Reason.UNREFERENCED_IMAGE, f"{', '.join(sorted(unused))} stored but not listed")
    return found


def _resolve(name: str, stem: str, present: tuple[str, ...]) -> str | None:
    base = name.rpartition("/")[2].casefold()
    return next((extension for extension in present if base in (extension, f"{stem}.{extension}")), None)


def _number(extension: str) -> int:
    number, dot, _ = extension.partition(".")
    return int(number) if dot else -1
