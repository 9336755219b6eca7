"""Scanning one shard: every byte read once, every sample checked, nothing raised for content.

Pure per shard, so that a process pool or Ray can run it anywhere. Assembly into an index is left to
`pipeline.index.index`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa

from pipeline.errors import DataError, Reason, ShardError
from pipeline.index.grouping import MAX_MEMBERS, KeyRule, MemberGroup, group_members
from pipeline.samples.film import check_film, probe_film
from pipeline.samples.film_bytes import is_film
from pipeline.samples.image import ImageLimits, decode_image, probe_image
from pipeline.samples.image_hash import NO_PRINT, PRINT_BYTES, ImagePrint, print_of
from pipeline.samples.schema import Sample, SchemaPolicy, parse_sample
from pipeline.samples.text_facts import text_facts
from pipeline.shards.storage import ShardStat, open_shard, stat_shard
from pipeline.shards.tar import scan_tar

MEMBER_TYPE = pa.struct(
    [
        pa.field("ext", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
    ]
)
SCAN_SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("members", pa.list_(MEMBER_TYPE), nullable=False),
        pa.field("num_images", pa.int16(), nullable=False),
        pa.field("image_widths", pa.list_(pa.int32()), nullable=False),
        pa.field("image_heights", pa.list_(pa.int32()), nullable=False),
        pa.field("video_frames", pa.int32(), nullable=False),
        pa.field("video_seconds", pa.float64(), nullable=False),
        pa.field("text_bytes", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("image_hashes", pa.list_(pa.uint64()), nullable=False),
        pa.field("image_colours", pa.list_(pa.binary(PRINT_BYTES)), nullable=False),
        pa.field("text_hash", pa.uint64(), nullable=False),
        pa.field("answer_chars", pa.int32(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("broken_text", pa.bool_(), nullable=False),
        pa.field("repeats_question", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
_TAIL_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Checks:
    """What a scan verifies; part of the identity of an index."""

    images: Literal["decode", "header"] = "decode"
    """`decode` finds every broken image before an accelerator is held; `header` only reads formats and sizes."""
    limits: ImageLimits = field(default_factory=ImageLimits)
    policy: SchemaPolicy = field(default_factory=SchemaPolicy)
    allow_duplicate_keys: bool = False
    """Keep samples that share a key; sample ids are row numbers and do not depend on keys."""
    keys: KeyRule = "first_dot"
    """Where the key of a member ends."""


class ShardScan(NamedTuple):
    """What one shard holds."""

    url: str
    stat: ShardStat
    """Size and version before the scan."""
    sha256: str
    """Of the whole file, hexadecimal."""
    defect: ShardError | None
    """What is wrong with the shard as a whole. Where reading stopped, rows are the samples up to there."""
    samples: pa.Table
    """One row per sample in shard order, `SCAN_SCHEMA`; a rejected one keeps its row, with a reason."""
    passed_over: Mapping[str, int]
    """How many members belong to no sample, by what they are."""


class ImageFacts(NamedTuple):
    """One image, decoded or only its header read."""

    width: int
    """Pixels, oriented."""
    height: int
    print: ImagePrint
    num_frames: int = 0
    """Of a film; its print is that of the frame in the middle."""
    seconds: float = 0.0


MeasureImages = Callable[[Sample, Checks], list[ImageFacts]]
"""What `image_facts` does, perhaps in another process."""


def index_shard(url: str, stat: ShardStat, checks: Checks, measure: MeasureImages | None = None) -> ShardScan:
    """Read a shard once and describe its samples; `measure` replaces `image_facts`.

    Raises:
        OSError: storage failed; never for content.
    """
    with open_shard(url) as file:
        hashed = _HashingReader(file)
        rows: list[dict[str, object]] = []
        overfull: list[tuple[str, int]] = []
        passed_over: Counter[str] = Counter()
        defect: ShardError | None = None
        try:
            for group in group_members(scan_tar(hashed, stat.size_bytes), checks.keys, passed_over):
                rows.append(_describe(group, len(rows), checks, measure or image_facts))
                if group.is_overfull:
                    overfull.append((group.key, group.num_members))
                del group  # with its bytes, before those of the next one are read
            defect = _describe_overfull(overfull) or _describe_empty(rows, passed_over)
        except ShardError as error:
            defect = error
            hashed.drain()
        defect = defect and defect.at(shard=url)
    if (now := stat_shard(url)) != stat:
        raise OSError(
            f"shard {url} changed while it was read (from {stat.size_bytes} to {now.size_bytes} bytes); wait until "
            "it is written and index again"
        )
    _mark_repeated_keys(rows, checks)
    samples = pa.Table.from_pylist(rows, schema=SCAN_SCHEMA)
    return ShardScan(url, stat, hashed.hexdigest(), defect, samples, dict(passed_over))


class _HashingReader:
    """Passes reads through and hashes what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Return exactly `size` bytes unless the file ends."""
        data = self._file.read(size)
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self._hash.update(data)
        return data

    def drain(self) -> None:
        """Read to the end of the file."""
        while self.read(_TAIL_BYTES):
            pass

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _describe_overfull(keys: Sequence[tuple[str, int]]) -> ShardError | None:
    """Return the defect of a shard in which (key, number of files) are more than samples can have.

    Each is one rejected row, which hides how many samples are lost from every limit on rejected samples.
    """
    if not keys:
        return None
    key, number = max(keys, key=lambda one: one[1])
    more = f", and {len(keys) - 1} further keys are shared likewise" if len(keys) > 1 else ""
    return ShardError(
        Reason.SHARD_KEY_SHARED,
        f"{number} files share the key {key[:80]!a}, at most {MAX_MEMBERS} make a sample{more}; keys seem to hold dots",
    )


def _describe_empty(rows: Sequence[object], passed_over: Mapping[str, int]) -> ShardError | None:
    if rows:
        return None
    found = ", ".join(f"{number} {what}" for what, number in passed_over.items())
    return ShardError(Reason.SHARD_EMPTY, f"the archive holds nothing but {found}")


def _describe(group: MemberGroup, ordinal: int, checks: Checks, measure: MeasureImages) -> dict[str, object]:
    """Return the index row of one group of members."""
    # 1. A row with the place of every member.
    members = [
        {"ext": extension, "offset": member.offset, "size": member.size, "crc32": member.crc32}
        for extension, member in group.members
    ]
    row: dict[str, object] = {
        "ordinal": ordinal,
        "key": group.key,
        "members": members,
        "num_images": 0,
        "image_widths": [],
        "image_heights": [],
        "video_frames": 0,
        "video_seconds": 0.0,
        "text_bytes": 0,
        "kind": "",
        "image_hashes": [],
        "image_colours": [],
        "text_hash": 0,
        "answer_chars": 0,
        "language": "",
        "broken_text": False,
        "repeats_question": False,
        "reason": "",
        "detail": "",
    }
    # 2. What the sample holds, or why it is unusable.
    try:
        if group.error is not None:
            raise group.error
        content = {extension: member.data for extension, member in group.members if member.data is not None}
        sample = parse_sample(group.key, content, checks.policy)
        images = measure(sample, checks)
        text = text_facts(sample.conversation)
        row |= {
            "kind": sample.kind,
            "num_images": len(images),
            "image_widths": [image.width for image in images],
            "image_heights": [image.height for image in images],
            "video_frames": images[0].num_frames if sample.is_film else 0,
            "video_seconds": images[0].seconds if sample.is_film else 0.0,
            "text_bytes": _text_bytes(sample),
            "image_hashes": [image.print.hash for image in images],
            "image_colours": [image.print.colours for image in images],
            "text_hash": text.hash,
            "answer_chars": text.answer_chars,
            "language": text.language,
            "broken_text": text.is_broken,
            "repeats_question": text.repeats_question,
        }
    except DataError as error:
        row |= {"reason": error.reason.value, "detail": error.what[:200]}
    return row


def image_facts(sample: Sample, checks: Checks) -> list[ImageFacts]:
    """Return the facts about each image, after the check that was asked for.

    An image that is shown several times is checked once.

    Raises:
        DataError: an image does not pass.
    """
    facts = {image: facts_of(image, checks) for image in dict.fromkeys(sample.images)}
    return [facts[image] for image in sample.images]


def check_images(sample: Sample, checks: Checks) -> list[ImageFacts]:
    """Return the same without prints, for whom only the verdict counts; raises as `image_facts` does."""
    facts = {image: facts_of(image, checks, prints=False) for image in dict.fromkeys(sample.images)}
    return [facts[image] for image in sample.images]


def facts_of(data: bytes, checks: Checks, *, prints: bool = True) -> ImageFacts:
    """Return the facts about one image or film; raises as `image_facts` does."""
    if is_film(data):
        return _facts_of_film(data, checks, prints=prints)
    if checks.images == "decode":
        pixels = decode_image(data, checks.limits)
        return ImageFacts(pixels.shape[1], pixels.shape[0], print_of(pixels) if prints else NO_PRINT)
    header = probe_image(data, checks.limits)
    return ImageFacts(header.width, header.height, NO_PRINT)


def _facts_of_film(data: bytes, checks: Checks, *, prints: bool) -> ImageFacts:
    if checks.images == "header":
        film = probe_film(data, checks.limits)
        return ImageFacts(film.width, film.height, NO_PRINT, film.num_frames, film.seconds)
    film, middle = check_film(data, checks.limits)
    look = print_of(middle) if prints else NO_PRINT
    return ImageFacts(film.width, film.height, look, film.num_frames, film.seconds)


def _text_bytes(sample: Sample) -> int:
    return sum(len(turn.text.encode("utf-8")) for turn in sample.conversation.turns)


def _mark_repeated_keys(rows: Sequence[dict[str, object]], checks: Checks) -> None:
    """Reject samples whose key appears in several places of the shard.

    With different files in each place they are parts of one sample that were not stored together; with the same files
    they are different samples, and the first one keeps the key.
    """
    places: dict[object, list[dict[str, object]]] = defaultdict(list)
    for row in rows:
        places[row["key"]].append(row)
    for repeated in places.values():
        if len(repeated) == 1:
            continue
        extensions = [member["ext"] for row in repeated for member in _members(row)]
        if len(set(extensions)) == len(extensions):
            reason, first, detail = Reason.MEMBERS_NOT_CONTIGUOUS, 0, f"its files are in {len(repeated)} places"
        elif checks.allow_duplicate_keys:
            continue
        else:
            reason, first, detail = Reason.DUPLICATE_KEY, 1, f"sample {repeated[0]['ordinal']} has the same key"
        for row in repeated[first:]:
            row |= {"reason": reason.value, "detail": detail}


def _members(row: dict[str, object]) -> list[dict[str, object]]:
    members = row["members"]
    assert isinstance(members, list)
    return members
