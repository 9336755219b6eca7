"""What a row is checked for once its media and texts are known, and how differences are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.errors import DataError, Reason
from pipeline.tools.convert.marks import Mark, split_marks
from pipeline.tools.convert.row_media import Found, is_film_name


def only_film(found: Sequence[Found]) -> bool:
    """Whether all that a row shows is one film, perhaps named in several places."""
    shown = [one for one in found if not one.is_origin]
    return (
        bool(shown) and all(one.kind == "film" for one in shown) and len({repr(one.identity()) for one in shown}) == 1
    )


def check_caption(text: str, num_pictures: int) -> None:
    """Refuse a caption with marks, which would stay letters: a caption says what all of its pictures show.

    Raises:
        DataError: the text has marks.
    """
    if num_marks := sum(isinstance(part, Mark) for part in split_marks(text, numbered=False)):
        what = f"a caption with {num_marks} <image> in its text and {num_pictures} pictures"
        raise DataError(Reason.IMAGE_TOKEN_MISMATCH, f"{what}; store it as turns, or remove the marks")


def mismatch(num_places: int, num_media: int, found: Sequence[Found]) -> DataError:
    """Return the error of a row with another number of places than of media."""
    fields = Counter(f"`{one.field}`" for one in found)
    where = f" ({', '.join(fields)})" if fields else ""
    is_film = bool(found) and all(isinstance(one.value, str) and is_film_name(one.value) for one in found)
    mark, noun = ("<video>", "video") if is_film else ("<image>", "image")
    places = f"{num_places} {mark} placeholder" + ("" if num_places == 1 else "s")
    return DataError(
        Reason.IMAGE_TOKEN_MISMATCH, f"{places} but {num_media} {noun}{'' if num_media == 1 else 's'}{where}"
    )


def shown_name(found: Found) -> str:
    """Return the start of a file name, escaped, in brackets; nothing for bytes."""
    return f" ({found.value[:40]!a})" if isinstance(found.value, str) else ""
