"""Names that an annotation gives its images or frames, read and rewritten whichever field holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.samples.schema import named_images
from pipeline.samples.strict_json import JsonValue
from pipeline.samples.video import has_video, read_as_film, read_as_images

ORIGINAL_NAMES = "source_images"
"""Field of the written JSON that holds the names of the image files before packing."""


def listed_names(tree: Mapping[str, JsonValue], *, is_film: bool = False) -> list[str]:
    """Return the names of images, or of the frames of a video, in the order of the annotation.

    Raises:
        DataError: the field is neither a name nor a list of names, or a video is not a list of frames.
    """
    if is_film:
        return named_images(read_as_film(tree))
    return named_images(read_as_images(tree) if has_video(tree) else tree)


def with_stored_names(
    tree: Mapping[str, JsonValue], names: Sequence[str], stored: Sequence[str]
) -> dict[str, JsonValue]:
    """Return the annotation with `stored`, extensions of members, in place of the names it gave its images."""
    field = "video" if has_video(tree) else "image"
    kept = {name: value for name, value in tree.items() if name != "images"}
    return {**kept, field: list(stored), ORIGINAL_NAMES: list(names)}
