"""Folders that img2dataset wrote in its webdataset format: tar files of jpg, txt and json, each with a Parquet table.

The table also lists what could not be downloaded; those rows become entries too, as do those of samples that got lost
since, so that the report accounts for every URL of the original list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, Reason, ShardError
from pipeline.index.grouping import KeyRule, MemberGroup, group_members
from pipeline.index.read import Member, read_members
from pipeline.index.scan import MEMBER_TYPE
from pipeline.samples.annotation import IMAGE_PARTS, IMAGES, TURNS, VIDEO, either_field, part_kind, read_annotation
from pipeline.samples.image_names import resolve_images, sort_images
from pipeline.samples.schema import has_turns
from pipeline.samples.strict_json import JsonValue
from pipeline.samples.video import is_film_name
from pipeline.shards.storage import open_shard, stat_shard
from pipeline.shards.tar import scan_tar
from pipeline.tools.convert.frames import has_frames, read_frames, write_frames
from pipeline.tools.convert.image_field import ORIGINAL_NAMES, listed_names
from pipeline.tools.convert.readable import name_unreadable
from pipeline.tools.convert.row import RowRules, Tally
from pipeline.tools.convert.row_checks import check_caption
from pipeline.tools.convert.row_reader import read_row
from pipeline.tools.convert.source import Entry, Members, Outcome, entry_table, refused, stored_bytes
from pipeline.tools.convert.written import kept_fields, write_members

_MAX_GAP_BYTES = 1024 * 1024
"""Between members that one read covers."""
_STORED = "success"
"""What img2dataset calls the status of a sample that it put into the tar file."""


@dataclass(frozen=True)
class DownloadSource:
    """Tar files of captioned images; also reads any other WebDataset shards that are rewritten."""

    files: tuple[str, ...]
    rules: RowRules = field(default_factory=RowRules)
    keys: KeyRule = "first_dot"
    """Where the key of a member ends."""
    kind: str = "img2dataset"

    def units(self) -> list[str]:
        """Return the tar files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the samples of a tar file, then the rows of the table next to it that the tar file lacks.

        Files of one key that are not adjacent are joined. A tar file that breaks off is listed up to there; its
        defect is an entry of its own.
        """
        groups: list[MemberGroup] = []
        defects: list[DataError] = []
        with open_shard(unit) as file:
            try:
                for group in group_members(scan_tar(file, stat_shard(unit).size_bytes), self.keys):
                    group.members = [(extension, member._replace(data=None)) for extension, member in group.members]
                    groups.append(group)
            except ShardError as error:
                defects.append(error)
        groups = join_scattered(groups, ended=not defects)
        entries = [_entry(row, group) for row, group in enumerate(groups)]
        for failure in [*defects, *not_stored(unit, len(groups))]:
            entries.append(refused(len(entries), failure))
        missing = len(entries) - len(groups)
        keys = [*(group.key for group in groups), *([""] * missing)]
        members = [[] if entry.reason else _members(group) for entry, group in zip(entries, groups, strict=False)]
        columns = {
            "key": pa.array(keys, pa.string()),
            "members": pa.array([*members, *([] for _ in range(missing))], pa.list_(MEMBER_TYPE)),
        }
        return entry_table(entries, columns)

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield the members of each entry, verified against the listing; of an annotation, its image names adapted."""
        for key, members in zip(entries["key"].to_pylist(), entries["members"].to_pylist(), strict=True):
            try:
                content: Members = {}
                for run in _adjacent(members):
                    content |= read_members(unit, key, run)
            except DataError as error:
                yield Outcome(error, Tally(media=_num_images(member["ext"] for member in members)))
            else:
                yield members_outcome(key, content, self.rules)


def members_outcome(key: str, members: Members, rules: RowRules) -> Outcome:
    """Return what the files of one key become: a caption as it is, an annotation with its images renamed."""
    num_images = _num_images(members)
    try:
        if "json" not in members or "txt" in members:
            check_caption(members.get("txt", b"").decode(errors="replace"), num_images)
            return Outcome(members, Tally(media=num_images, implied=num_images))
        row, originals = _row_of(key, members)
        if has_frames(row):
            reading = read_frames(row, rules)
            contents = [members[str(one.value)] for one in reading.media]
            return Outcome(write_frames(row, reading, contents, rules, originals), reading.tally)
        reading = read_row(row, rules)
        contents = [members[str(one.value)] for one in reading.media]
        kept = {**kept_fields(row, reading), **({ORIGINAL_NAMES: originals} if originals else {})}
        return Outcome(write_members(reading, contents, kept, rules.policy), reading.tally)
    except DataError as error:
        return Outcome(error, Tally(media=num_images))


def join_scattered(groups: Sequence[MemberGroup], *, ended: bool) -> list[MemberGroup]:
    """Return groups of which those that are parts of one sample are joined, at the place of the first part.

    Runs with the same files under one key are samples of their own. Runs of which only some files are the same cannot
    be told apart, and neither can parts of a sample in an archive that breaks off.
    """
    places: dict[str, list[MemberGroup]] = {}
    for group in groups:
        places.setdefault(group.key, []).append(group)
    joined: list[MemberGroup] = []
    for group in groups:
        runs = places[group.key]
        if len(runs) == 1 or all(run.extensions == runs[0].extensions for run in runs):
            joined.append(group)
        elif group is runs[0]:
            joined.append(_joined(runs, ended=ended))
    return joined


def _joined(runs: Sequence[MemberGroup], *, ended: bool) -> MemberGroup:
    members = [member for run in runs for member in run.members]
    extensions = [extension for extension, _ in members]
    error = next((run.error for run in runs if run.error is not None), None)
    if len(set(extensions)) < len(extensions) or (error is None and not ended):
        error = DataError(Reason.MEMBERS_NOT_CONTIGUOUS, f"its files are in {len(runs)} places, some of them twice")
    return MemberGroup(runs[0].key, members, error, len(members), sum(run.size_bytes for run in runs), set(extensions))


def _entry(row: int, group: MemberGroup) -> Entry:
    if group.error is not None:
        return refused(row, group.error)._replace(media=_num_images(group.extensions))
    return Entry(row, row, sum(stored_bytes(member.size) for _, member in group.members))


def _members(group: MemberGroup) -> list[Member]:
    return [
        {"ext": extension, "offset": member.offset, "size": member.size, "crc32": member.crc32}
        for extension, member in group.members
    ]


def _adjacent(members: Sequence[Member]) -> list[list[Member]]:
    """Return members in runs that one read covers; the parts of a joined sample may be gigabytes apart."""
    runs: list[list[Member]] = []
    for member in sorted(members, key=lambda one: one["offset"]):
        last = runs[-1][-1] if runs else None
        if last is not None and member["offset"] - last["offset"] - last["size"] <= _MAX_GAP_BYTES:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs


def _num_images(extensions: Iterable[str]) -> int:
    return sum(extension not in ("txt", "json") for extension in extensions)


def _row_of(key: str, members: Members) -> tuple[dict[str, JsonValue], JsonValue]:
    """Return the annotation with the extensions of its images in place of the names it gave them, and these names.

    Raises:
        DataError: it does not name the images that are there.
    """
    tree = read_annotation(members["json"])
    if not isinstance(tree, dict):
        raise DataError(Reason.MISSING_ANNOTATION, "KEY.json is not an object")
    present = sort_images([extension for extension in members if extension != "json"])
    is_film = any(map(is_film_name, present))
    names = listed_names(tree, is_film=is_film) if has_turns(tree) or has_frames(tree) else []
    declared = either_field(tree, IMAGES) is not None
    stored = resolve_images(key, names, present, declared=declared)
    field = VIDEO if has_frames(tree) or is_film else IMAGES[0]
    row = {
        name: value for name, value in tree.items() if name not in (*IMAGES, *((VIDEO, "videos") if is_film else ()))
    }
    if names and (turns := either_field(tree, TURNS)) is not None:
        row[turns] = [_with_bare_parts(turn) for turn in listed] if isinstance(listed := tree[turns], list) else listed
    return {**row, **({field: list(stored)} if stored else {})}, tree.get(ORIGINAL_NAMES) or [*names]


def _with_bare_parts(turn: JsonValue) -> JsonValue:
    """Return a turn whose image parts name no file: their order says which image each is."""
    content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(content, list):
        return turn
    parts: list[JsonValue] = [
        {"type": "image"} if part_kind(part) in IMAGE_PARTS else {"type": VIDEO} if part_kind(part) == VIDEO else part
        for part in content
    ]
    return {**turn, "content" if "content" in turn else "value": parts}


def not_stored(unit: str, num_stored: int) -> list[DataError]:
    """Return an error for each row of a tar file's table without a sample in the tar: failed ones first, by status.

    Raises:
        ValueError: the table cannot be read.
    """
    path = Path(unit).with_suffix(".parquet")
    if "://" in unit or not path.is_file():
        return []
    with name_unreadable(path, "fetch it again, or remove it if the report need not list failed downloads"):
        if "status" not in pq.read_schema(path).names:  # some other table; the samples are in the tar file
            return []
        statuses = [str(status) for status in pq.read_table(path, columns=["status"])["status"].to_pylist()]
    failed = sorted(status for status in statuses if status != _STORED)
    errors = [DataError(Reason.MISSING_IMAGE, f"img2dataset reports {status[:40]!a}") for status in failed]
    num_lost = max(0, statuses.count(_STORED) - num_stored)
    lost = DataError(Reason.MISSING_IMAGE, "img2dataset reports 'success', but the tar file holds fewer samples")
    return errors + [lost] * num_lost
