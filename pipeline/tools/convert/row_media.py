"""Every place of a row that may hold a picture, film or sound: by the name of its field, by its type, by its content.

Knows nothing of dialects: it is what a reading of the row is checked against, so it must find more, never less. Text of
turns and captions is not looked at here, but for data in place; marks in texts are left to `marks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pipeline.samples.image_bytes import describe_other, image_format
from pipeline.samples.image_names import is_url

Kind = Literal["picture", "film", "sound", "data"]
Path = tuple[str | int, ...]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TEXT_NAMES = _set(
    "value content text texts txt caption captions user assistant human gpt question questions answer answers query "
    "response instruction input output prompt completion system history hint title description conversation "
    "conversations messages dialog dialogue chat explanation rationale ocr from role category choices options "
    "multiple_choice_answer"
)
"""Fields whose strings are always text."""
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        _set(
            "image images img imgs picture pictures pic pics photo photos frame frames screenshot screenshots "
            "thumbnail jpg jpeg png webp bmp tif tiff gif avif pixel pixels"
        ),
        "picture",
    ),
    **dict.fromkeys(_set("video videos vid vids clip clips film films movie movies mp4 webm"), "film"),
    **dict.fromkeys(_set("audio audios sound sounds speech wav mp3 flac"), "sound"),
}
_ABOUT = _set(
    "id ids idx index num number count counts width widths height heights size sizes hash md5 sha sha256 phash caption "
    "captions description descriptions desc alt title text texts prompt prompts question tokens token score similarity "
    "type format mode ratio resolution license has is class label category quality rating aspect area bbox tag tags "
    "ocr language author domain time timestamp duration fps date status error"
)
"""Words that make the name of a field one about media: `image_width`, `num_images`, `image_caption`."""
_ORIGIN = _set("url urls uri link href source sources origin original page provenance raw coco flickr")
"""Words for where a picture came from; if a picture is shown, such a field is not a picture of its own."""
_NEVER = _set("id ids key md5 sha256 hash __key__ __url__")
_EXTENSIONS: dict[str, Kind] = {
    **dict.fromkeys(_set("jpg jpeg jpe jfif png webp bmp tif tiff gif avif heic heif svg"), "picture"),
    **dict.fromkeys(_set("mp4 webm mov avi mkv m4v mpg mpeg flv wmv"), "film"),
    **dict.fromkeys(_set("mp3 wav flac ogg m4a aac opus"), "sound"),
}
_FILE = re.compile(rf"[^\n\r]{{1,1000}}\.({'|'.join(_EXTENSIONS)})(?:[?#]\S*)?", re.IGNORECASE)
_DATA_URI = re.compile(r"data:(image|video|audio)/", re.IGNORECASE)
_BASE64 = re.compile(
    r"(?:/9j/|_9j_|iVBORw0KGgo|UklGR|Qk[0-9A-Za-z+/]{14}|SUkqA|TU0AK|R0lGOD|AAAA[A-Za-z]GZ0eX)"
    r"[A-Za-z0-9+/_\-\s]{40,}=*\s*"
)
_HOLDERS = _set(
    "path url data base64 bytes image src uri file source filename file_name media image_url content binary"
)
_MAX_DIGEST_BYTES = 64
"""Bytes without a known beginning count as media above this; below they may be a hash."""
_MIN_NUMBERS = 64
"""A flat list of so many numbers under the name of media is taken for media."""
_MAX_DEPTH = 40


class Found(NamedTuple):
    """A place that may hold media."""

    path: Path
    kind: Kind
    value: Any
    """File name, URL, base64, bytes, or a list of numbers that are bytes."""

    @property
    def field(self) -> str:
        """Name of the field as messages show it, such as `messages[].images`."""
        name = ""
        for step in self.path:
            name += "[]" if isinstance(step, int) and not name.endswith("[]") else ""
            name += f".{step}" if isinstance(step, str) and name else step if isinstance(step, str) else ""
        return name.removesuffix("[]")

    @property
    def is_origin(self) -> bool:
        """Whether its field says where a picture came from."""
        return isinstance(self.value, str) and any(
            _ORIGIN & _words(step) for step in self.path if isinstance(step, str)
        )

    @property
    def is_direct(self) -> bool:
        """Whether it is in its field itself, not in an object somewhere inside, which may be about anything."""
        return all(isinstance(step, int) or step in _HOLDERS for step in self.path[1:])

    def identity(self) -> object:
        """Return what two places of one picture have in common: the name of its file, or its bytes."""
        if isinstance(self.value, str):
            return re.split(r"[/\\]", self.value)[-1].casefold()
        return bytes(self.value) if isinstance(self.value, list) else self.value


def find_media(row: Mapping[str, Any]) -> list[Found]:
    """Return every place of a row that may hold media, in the order of its fields."""
    return [found for name, value in row.items() for found in _walk(value, (name,), media_kind(name), 0)]


def media_kind(name: str) -> Kind | None:
    """Return what a field of this name holds, if its name says that it holds media.

    >>> media_kind("imagePath"), media_kind("image_width"), media_kind("Videos")
    ('picture', None, 'film')
    """
    words = _words(name)
    if words & _ABOUT:
        return None
    return next((_KINDS[word] for word in sorted(words) if word in _KINDS), None)


def family(name: str) -> str:
    """Return the name of a field without its number: `image_2` and `image` are one family."""
    return re.sub(r"[_\-. ]?\d+$", "", name).casefold().removesuffix("s")


def is_film_name(name: str) -> bool:
    """Whether a file name ends like that of a film or sound."""
    match = _FILE.fullmatch(name.strip())
    return match is not None and _EXTENSIONS[match[1].lower()] != "picture"


def is_file_name(value: Any) -> bool:
    """Whether a place names a file or a URL, rather than holding the bytes."""
    return isinstance(value, str) and not _DATA_URI.search(value[:100]) and not _BASE64.match(value.strip()[:200])


def _words(name: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[a-z]+\d+", name)} | (
        {name.casefold()} if name.casefold() in _KINDS else set()
    )


def _walk(value: Any, path: Path, named: Kind | None, depth: int) -> Iterator[Found]:
    if value is None or depth > _MAX_DEPTH:
        return
    if isinstance(value, bytes):
        yield from _bytes(value, path, named)
    elif isinstance(value, str):
        yield from _text(value, path, named)
    elif isinstance(value, dict):
        yield from _object(value, path, named, depth)
    elif isinstance(value, list | tuple):
        if _is_bytes(value):
            yield Found(path, named or "picture", value)
            return
        if named and _is_pixels(value) and not any(_is_bytes(one) for one in value if isinstance(one, list | tuple)):
            yield Found(path, "data", value)
            return
        for idx, one in enumerate(value):
            yield from _walk(one, (*path, idx), named, depth + 1)


def _object(value: dict[str, Any], path: Path, named: Kind | None, depth: int) -> Iterator[Found]:
    if "bytes" in value:  # how Hugging Face datasets store media
        content = value["bytes"] if value["bytes"] is not None else value.get("path")
        yield from _walk(content, path, named or "data", depth + 1)
        value = {name: one for name, one in value.items() if name not in ("bytes", "path")}
    if "array" in value and "sampling_rate" in value:
        yield Found(path, "sound", str(value.get("path") or "samples"))
        return
    for name, one in value.items():
        kind = media_kind(name) or (named if name in _HOLDERS else None)
        if name == "type" or (name in _HOLDERS and kind is None and value.get("type") in ("text", "input_text")):
            continue
        yield from _walk(one, (*path, name), kind or _kind_of_part(value, name), depth + 1)


def _kind_of_part(part: Mapping[str, Any], name: str) -> Kind | None:
    """Return the kind of a part of a message from its `type`: {"type": "image", "path": ...}."""
    kind = part.get("type")
    return media_kind(kind) if isinstance(kind, str) and name in _HOLDERS else None


def _bytes(value: bytes, path: Path, named: Kind | None) -> Iterator[Found]:
    if not value and not named:
        return
    if image_format(value) or named == "picture":
        yield Found(path, "picture", value)
    elif "film" in describe_other(value) or named == "film":
        yield Found(path, "film", value)
    elif named == "sound" or value[:4] in (b"fLaC", b"OggS", b"ID3\x03", b"ID3\x04") or value[8:12] == b"WAVE":
        yield Found(path, "sound", value)
    elif "of no known format" not in describe_other(value):
        yield Found(path, "picture", value)
    elif len(value) > _MAX_DIGEST_BYTES or named:
        yield Found(path, named or "data", value)


def _text(value: str, path: Path, named: Kind | None) -> Iterator[Found]:
    stripped = value.strip()
    name = next((step for step in reversed(path) if isinstance(step, str)), "")
    if not stripped or _words(name) & _NEVER or name in _NEVER:
        return
    if uri := _DATA_URI.search(value):
        kinds: dict[str, Kind] = {"image": "picture", "video": "film", "audio": "sound"}
        yield Found(path, kinds[uri[1].lower()], value)
        return
    if _BASE64.match(stripped[:200]) and _BASE64.fullmatch(stripped):
        yield Found(path, named or "picture", value)
        return
    if name in TEXT_NAMES and named is None:
        return
    if match := _FILE.fullmatch(stripped):
        yield Found(path, _EXTENSIONS[match[1].lower()], value)
    elif named and (is_url(stripped) or not re.search(r"\s", stripped)):
        yield Found(path, "picture" if named == "data" else named, value)


def _is_pixels(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether numbers are rows of pixels or samples of sound: nested, or too many for a list of indices."""
    first = value[0] if value else None
    if isinstance(first, list | tuple):
        return bool(first) and (type(first[0]) in (int, float) or _is_pixels(first))
    return type(first) in (int, float) and len(value) >= _MIN_NUMBERS


def _is_bytes(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether numbers are the bytes of a picture."""
    if len(value) < 16 or not all(type(one) is int and 0 <= one <= 255 for one in value[:16]):
        return False
    return (
        image_format(bytes(value[:64]) if all(type(one) is int and 0 <= one <= 255 for one in value[:64]) else b"")
        is not None
    )
