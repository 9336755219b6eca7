"""Writing one shard of a conversion: read its entries, verify each as the index will, write, and record what happened.

The record is written after the shard and says that it is finished; a conversion that was killed repeats what has none.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.index.scan import Checks, MeasureImages, check_images
from pipeline.run_folder.files import replace_file
from pipeline.samples.schema import parse_sample
from pipeline.shards.tar import MAX_MEMBER_BYTES
from pipeline.shards.writer import open_shard_writer
from pipeline.tools.convert.row import Tally
from pipeline.tools.convert.source import Members, Outcome, Source

_HASH_BYTES = 4 * 1024 * 1024
_PLAN_CHARS = 8
"""Of the plan at the start of each key: the shards of two conversions may be trained on together."""

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """An entry that became no sample."""

    source: str
    row: int
    """Position in the source file."""
    shard: str
    """Name of the shard it would be in."""
    key: str
    reason: str
    detail: str
    """What was found; of the user's text at most the start of a name, escaped."""
    media: int = 0
    """Pictures, films and sounds of the entry."""


class Account(NamedTuple):
    """What was found in the entries of a shard and what of it was written; see `Tally`."""

    media_found: int = 0
    media_written: int = 0
    media_refused: int = 0
    marks: int = 0
    """In the texts of written samples, as their source has them."""
    implied: int = 0
    places: int = 0
    """Of media in the written samples."""
    set_aside: int = 0

    def plus(self, other: Account) -> Account:
        """Return the sum of two accounts."""
        return Account(*(one + two for one, two in zip(self, other, strict=True)))

    def check(self) -> None:
        """Raise `AssertionError` when something was found and is neither written nor refused."""
        if self.media_found != self.media_written + self.media_refused:
            raise AssertionError(f"media: {self}")
        if self.places != self.marks + self.implied:
            raise AssertionError(f"places of media: {self}")


class ShardRecord(NamedTuple):
    """What became of one planned shard."""

    name: str
    plan: str
    """Fingerprint of the conversion it belongs to."""
    num_entries: int
    num_samples: int
    size_bytes: int
    """Of the tar file; 0 when every entry was skipped, for which no file is written."""
    sha256: str
    skipped: tuple[Skipped, ...]
    account: Account = Account()


class ShardJob(NamedTuple):
    """One planned shard."""

    name: str
    plan: str
    entries: pa.Table
    """Rows of the listing with `unit` (number of the source file), in the order of writing."""


@dataclass(frozen=True)
class ShardTask:
    """What all jobs of a conversion share; picklable, and may run in a process that an image ends (`Survivable`)."""

    source: Source
    units: tuple[str, ...]
    folder: str
    checks: Checks

    def __call__(self, job: ShardJob, /) -> ShardRecord:
        """Write a shard and its record.

        Raises:
            OSError: storage failed; nothing incomplete is left under the shard's name.
        """
        return self._write(job, check_images)

    def after_death(self, job: ShardJob, how: str, /) -> ShardRecord:
        """Write a shard again with every image decoded apart; one that ends its process is skipped."""
        from pipeline.index.image_sandbox import ImageSandbox  # processes, which most conversions never need

        log.warning("the process that wrote %s %s; writing it again, its images in a sandbox", job.name, how)
        with ImageSandbox(self.checks) as sandbox:
            return self._write(job, sandbox.image_facts)

    def _write(self, job: ShardJob, measure: MeasureImages) -> ShardRecord:
        path = Path(self.folder) / job.name
        skipped: list[Skipped] = []
        accounts: list[Account] = []
        samples = self._samples(job, skipped, accounts, measure)
        num_samples = 0
        if (first := next(samples, None)) is not None:
            with open_shard_writer(path) as writer:
                for sample in itertools.chain([first], samples):
                    writer.write(sample)
                    num_samples += 1
        size, digest = (path.stat().st_size, _sha256(path)) if num_samples else (0, "")
        record = ShardRecord(job.name, job.plan, job.entries.num_rows, num_samples, size, digest, tuple(skipped))
        record = record._replace(account=functools.reduce(Account.plus, accounts, Account()))
        write_json(record_path(self.folder, job.name), _to_json(record))
        return record

    def _samples(
        self, job: ShardJob, skipped: list[Skipped], accounts: list[Account], measure: MeasureImages
    ) -> Iterator[dict[str, Any]]:
        """Yield the samples that pass; the others are appended to `skipped`, what all of them held to `accounts`."""
        for unit, row, (content, tally) in self._outcomes(job.entries):
            key = f"{job.plan[:_PLAN_CHARS]}-{unit:05d}-{row:09d}"
            try:
                if isinstance(content, DataError):
                    raise content
                account = self._verify(key, content, tally, measure)
            except DataError as error:
                place = self.units[unit], row, job.name, key
                skipped.append(Skipped(*place, error.reason.value, error.what[:200], tally.media))
                accounts.append(Account(tally.media, 0, tally.media, set_aside=tally.set_aside))
            else:
                accounts.append(account)
                yield {"__key__": key, **content}

    def _outcomes(self, entries: pa.Table) -> Iterator[tuple[int, int, Outcome]]:
        """Yield (unit, row, members or error) of every entry in order; adjacent ones of a unit are read together."""
        units, rows = entries["unit"].to_pylist(), entries["row"].to_pylist()
        reasons, details = entries["reason"].to_pylist(), entries["detail"].to_pylist()
        media = entries["media"].to_pylist()
        start = 0
        while start < len(units):
            end = start + 1
            while end < len(units) and units[end] == units[start] and not reasons[end] and not reasons[start]:
                end += 1
            if reasons[start]:
                error = DataError(Reason(reasons[start]), details[start])
                yield units[start], rows[start], Outcome(error, Tally(media[start]))
            else:
                outcomes = self.source.read(self.units[units[start]], entries.slice(start, end - start))
                yield from zip(units[start:end], rows[start:end], outcomes, strict=True)
            start = end

    def _verify(self, key: str, members: Members, tally: Tally, measure: MeasureImages) -> Account:
        """Check a sample as the index of the shards will, and that it shows all that was found in its entry.

        Raises:
            DataError: it would be rejected there, or it shows less.
        """
        for extension, data in members.items():
            if len(data) > MAX_MEMBER_BYTES:
                raise DataError(Reason.MEMBER_TOO_LARGE, f"{extension} has {len(data)} bytes")
        sample = parse_sample(key, members, self.checks.policy)
        num_shown = len(sample.images)
        if num_shown != tally.media:
            raise DataError(Reason.MEDIA_UNREAD, f"{tally.media} pictures found, {num_shown} shown")
        num_turns = len(sample.conversation.turns)
        if tally.turns and num_turns != tally.turns:
            raise DataError(Reason.TEXT_UNREAD, f"{tally.turns} turns found, {num_turns} written")
        measure(sample, self.checks)
        places = sample.conversation.num_images
        return Account(tally.media, num_shown, 0, tally.marks, tally.implied, places, tally.set_aside)


def record_path(folder: str | Path, shard_name: str) -> Path:
    """Return the path of the record of a shard."""
    return Path(folder) / "convert" / f"{shard_name}.json"


def read_record(folder: str | Path, shard_name: str, plan: str) -> ShardRecord | None:
    """Return the record of a finished shard of this very conversion, or None when it must be written."""
    record = _from_json(record_path(folder, shard_name))
    if record is None:
        return None
    path = Path(folder) / shard_name
    size = path.stat().st_size if path.is_file() else 0
    return record if record.plan == plan and size == record.size_bytes else None


def read_records(folder: str | Path) -> list[ShardRecord]:
    """Return the records of the conversion in a folder, without damaged ones."""
    records = (_from_json(path) for path in sorted(record_path(folder, "").parent.glob("*.tar.json")))
    return [record for record in records if record is not None]


def remove_records(folder: str | Path) -> None:
    """Remove the records of a conversion in a folder, except its plan."""
    notes = record_path(folder, "").parent
    for path in [*notes.glob("*.tar.json"), notes / "manifest.json", notes / "skipped.jsonl"]:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a small file so that it is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1) + "\n")


def _from_json(path: Path) -> ShardRecord | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        skipped = tuple(Skipped(**entry) for entry in facts["skipped"])
        return ShardRecord(**{**facts, "skipped": skipped, "account": Account(**facts["account"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _to_json(record: ShardRecord) -> dict[str, Any]:
    skipped = [entry._asdict() for entry in record.skipped]
    return {**record._asdict(), "skipped": skipped, "account": record.account._asdict()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
