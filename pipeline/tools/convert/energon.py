"""Folders prepared for Megatron-Energon: tar files whose members are mapped to fields by `.nv-meta/dataset.yaml`.

Only the mapping (`field_map`) is read. A `sample_loader` is code, which is never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import yaml

from pipeline.errors import DataError, Reason, ShardError
from pipeline.index.grouping import split_name
from pipeline.index.read import read_members
from pipeline.index.scan import MEMBER_TYPE
from pipeline.samples.strict_json import decode_text
from pipeline.shards.storage import open_shard, stat_shard
from pipeline.shards.tar import TarMember, scan_tar
from pipeline.tools.convert.row import RowRules
from pipeline.tools.convert.row_reader import read_row
from pipeline.tools.convert.source import Entry, Outcome, entry_table, failed, refused, stored_bytes
from pipeline.tools.convert.written import write_members

FOLDER: Final = ".nv-meta"
_FIELDS: Final = {"context": "question", "answers": "answers", "caption": "caption", "image": "image", "text": "text"}
"""Fields of Energon's samples, and what `read_said` calls them; others keep their name."""
_READ: Final = ("CaptioningSample", "VQASample", "MultiChoiceVQASample", "CaptioningWebdataset", "VQAWebdataset")
_ACCESS: Final = re.compile(r"(?P<member>[^\[\]]+)(?P<path>(?:\[[^\[\]]+\])*)")
_TEXTS: Final = (".txt", ".text", ".cls")


@dataclass(frozen=True)
class EnergonSource:
    """Tar files of an Energon folder, read through its field map."""

    files: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    """(field of the sample, member or place in a JSON member such as `json[0][value]`)."""
    rules: RowRules = field(default_factory=RowRules)
    kind: str = "energon"

    def units(self) -> list[str]:
        """Return the tar files."""
        return list(self.files)

    def list_unit(self, unit: str) -> pa.Table:
        """List the samples of a tar file; where it breaks off is an entry of its own."""
        groups: list[tuple[str, list[tuple[str, TarMember]]]] = []
        defect: DataError | None = None
        with open_shard(unit) as file:
            try:
                for member in scan_tar(file, stat_shard(unit).size_bytes):
                    if member.is_directory or member.name.rpartition("/")[2].startswith("._"):
                        continue
                    key, extension = split_name(member.name)
                    if not groups or groups[-1][0] != key:
                        groups.append((key, []))
                    groups[-1][1].append((extension, member._replace(data=None)))
            except ShardError as error:
                defect = error
        entries, keys, members = [], [], []
        for row, (key, group) in enumerate(groups):
            found = _group_error(group, cut=defect is not None and row == len(groups) - 1)
            size = sum(stored_bytes(member.size) for _, member in group)
            entries.append(refused(row, found) if found else Entry(row, row, size))
            keys.append(key)
            members.append([] if found else [_place(extension, member) for extension, member in group])
        if defect is not None:
            entries.append(refused(len(entries), defect))
            keys.append("")
            members.append([])
        columns = {"key": pa.array(keys, pa.string()), "members": pa.array(members, pa.list_(MEMBER_TYPE))}
        return entry_table(entries, columns)

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield what each entry becomes."""
        for key, members in zip(entries["key"].to_pylist(), entries["members"].to_pylist(), strict=True):
            try:
                content = read_members(unit, key, members)
                row = self._row(content)
            except DataError as error:
                yield failed(error)
                continue
            try:
                reading = read_row(row, self.rules)
            except DataError as error:
                yield failed(error)
                continue
            try:
                kept = {"id": key}
                pictures = [bytes(found.value) for found in reading.media]
                yield Outcome(write_members(reading, pictures, kept, self.rules.policy), reading.tally)
            except (DataError, TypeError) as error:
                what = error if isinstance(error, DataError) else DataError(Reason.MISSING_IMAGE, "a picture by name")
                yield Outcome(what, reading.tally)

    def _row(self, content: Mapping[str, bytes]) -> dict[str, Any]:
        """Return the mapped fields, and every member that no field is mapped to: it may be a picture too."""
        used = {option.partition("[")[0] for _, selector in self.fields for option in selector.split(",")}
        rest = {name: data for name, data in content.items() if name not in used and not name.endswith(("json", "txt"))}
        row: dict[str, Any] = {_FIELDS.get(name, name): _at(content, selector) for name, selector in self.fields}
        turns = row.get("question")
        if isinstance(turns, list):  # the conversation as a whole
            row = {**row, "conversations": row.pop("question")}
        correct, choices = row.pop("correct_choice_idx", None), row.get("choices")
        if isinstance(choices, list) and str(correct).isdigit() and int(str(correct)) < len(choices):
            row["answer"] = chr(ord("A") + int(str(correct)))
        row.pop("answer_weights", None)
        return {name: value for name, value in {**rest, **row}.items() if value is not None}


def open_energon(files: Sequence[str], rules: RowRules) -> EnergonSource | None:
    """Return the source for tar files of an Energon folder; None without one or without a field map.

    Raises:
        ValueError: the samples are made by code, of a type that is not read, or dataset.yaml is damaged.
    """
    folder = next((found for file in files[:1] for found in _above(file)), None)
    if folder is None:
        return None
    path = folder / FOLDER / "dataset.yaml"
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable as YAML; write it again with `energon prepare`") from error
    described = described if isinstance(described, dict) else {}
    named = described.get("sample_type") or described
    name = str(named.get("__class__", "")) if isinstance(named, dict) else str(named)
    if "Crude" in name or (not described.get("field_map") and not described.get("sample_loader")):
        return None  # samples as they are in the tar files
    if not isinstance(described.get("field_map"), dict):
        raise ValueError(
            f"{path}: samples are made by {described.get('sample_loader')}, code that is not run; use field_map"
        )
    if name not in _READ:
        raise ValueError(f"{path}: samples of type {name or 'none'}; those that are read: {', '.join(_READ)}")
    return EnergonSource(tuple(files), tuple((str(k), str(v)) for k, v in described["field_map"].items()), rules)


def missing_shards(files: Sequence[str]) -> list[str]:
    """Return a sentence about shards that `.info.json` or `.info.yaml` counts and that are not there."""
    found = []
    for folder in dict.fromkeys(folder for file in files for folder in _above(file)):
        for name in (".info.json", ".info.yaml"):
            path = folder / FOLDER / name
            if path.is_file():
                listed = yaml.safe_load(path.read_text(encoding="utf-8"))
                counts = listed.get("shard_counts", {}) if isinstance(listed, dict) else {}
                gone = [shard for shard in counts if not (folder / shard).is_file()]
                found += [f"{folder}: {len(gone)} of {len(counts)} shards, such as {gone[0]}"] if gone else []
                break
    return found


def check_one_split(folder: Path) -> None:
    """Check that an Energon folder is not several splits, as `split.yaml` says.

    Raises:
        ValueError: it is.
    """
    path = folder / FOLDER / "split.yaml"
    if not path.is_file():
        return
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = described.get("split_parts", {}) if isinstance(described, dict) else {}
    there = {name: files for name, files in parts.items() if files}
    if len(there) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, files[:2]))}" for name, files in sorted(there.items()))
        raise ValueError(f"folder {folder} holds several parts ({listed}): pass the files of one")


def _above(file: str) -> Iterator[Path]:
    """Yield the folder above a file that has an Energon description."""
    for folder in list(Path(file).parents)[:4]:
        if (folder / FOLDER / "dataset.yaml").is_file():
            yield folder
            return


def _group_error(group: Sequence[tuple[str, TarMember]], *, cut: bool) -> DataError | None:
    extensions = [extension for extension, _ in group]
    if cut:
        return DataError(Reason.SHARD_TRUNCATED, "the shard ends within or right after this sample")
    if len(set(extensions)) < len(extensions):
        return DataError(Reason.DUPLICATE_MEMBER, "two files of one name, or parts of a sample in two places")
    if any(not member.is_regular for _, member in group):
        return DataError(Reason.MEMBER_TYPE_FORBIDDEN, "a link or device")
    return None


def _place(extension: str, member: TarMember) -> dict[str, object]:
    return {"ext": extension, "offset": member.offset, "size": member.size, "crc32": member.crc32}


def _at(content: Mapping[str, bytes], selector: str) -> Any:
    """Return what a selector names: the first of its options, separated by commas, that is there."""
    for option in selector.split(","):
        match = _ACCESS.fullmatch(option.strip())
        if match is None or match["member"].casefold() not in content:
            continue
        name = match["member"].casefold()
        data = content[name]
        if name.rpartition(".")[2] == "json":
            try:
                value = json.loads(data)
                for step in re.findall(r"\[([^\[\]]+)\]", match["path"]):
                    value = value[int(step)] if isinstance(value, list) else value[step]
                return value
            except (ValueError, KeyError, IndexError, TypeError, RecursionError):
                continue
        return decode_text(data) if f".{name}".endswith(_TEXTS) else data
    return None
