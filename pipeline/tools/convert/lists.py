"""Files that list data sets: LLaMA-Factory's `dataset_info.json` and InternVL's meta file.

Each entry names an annotation file, where its pictures are, and what its fields are called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.tools.convert.row import FieldNames

_COLUMNS = {
    "messages": "conversations",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "system": "system",
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
}
"""What LLaMA-Factory's `columns` may name, and the field that `read_said` knows."""
_DEFAULT_COLUMNS = {"alpaca": {"prompt": "instruction", "query": "input", "response": "output"}, "sharegpt": {}}
_MAX_BYTES = 16 * 1024 * 1024


class Listed(NamedTuple):
    """One entry of a list."""

    name: str
    file: str
    image_folder: str
    fields: FieldNames


def read_list(path: str) -> tuple[list[Listed], list[str]] | None:
    """Return the entries of a list and sentences about those that are not read; None for any other file."""
    if os.path.getsize(path) > _MAX_BYTES or not path.casefold().endswith(".json"):
        return None
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or not tree or not all(isinstance(entry, dict) for entry in tree.values()):
        return None
    known = ("file_name", "hf_hub_url", "ms_hub_url", "script_url", "annotation")
    if not all(any(name in entry for name in known) for entry in tree.values()):
        return None
    found: list[Listed] = []
    notes: list[str] = []
    for name, entry in tree.items():
        listed = list(_entries(path, name, entry))
        found += [one for one in listed if os.path.exists(one.file)]
        notes += [
            f"missing: {one.file}, which {os.path.basename(path)} names as {name}" for one in listed if one not in found
        ]
        if not listed:
            notes.append(f"passed over: {name} of {os.path.basename(path)}, which is not a local file")
        if entry.get("repeat_time", 1) != 1 or entry.get("num_samples"):
            notes.append(
                f"read once and whole: {name}, whatever its repeat_time or num_samples; set the mix in data.sources"
            )
    return found, notes


def _entries(path: str, name: str, entry: Mapping[str, Any]) -> Iterator[Listed]:
    folder = os.path.dirname(os.path.abspath(path))
    if isinstance(entry.get("annotation"), str):
        root = entry.get("root") or "."
        yield Listed(name, _resolved(folder, entry["annotation"]), _resolved(folder, str(root)), FieldNames())
    elif isinstance(entry.get("file_name"), str):
        file = _resolved(folder, entry["file_name"])
        files = sorted(str(one) for one in Path(file).iterdir()) if os.path.isdir(file) else [file]
        for one in files:
            yield Listed(name, one, folder, _fields(entry))


def _resolved(folder: str, name: str) -> str:
    """Return a path that is relative to the list, else to the present folder, as these tools are started."""
    inside = os.path.join(folder, name)
    return os.path.abspath(inside if os.path.exists(inside) or not os.path.exists(name) else name)


def _fields(entry: Mapping[str, Any]) -> FieldNames:
    formatting = entry.get("formatting", "alpaca")
    columns = {**_DEFAULT_COLUMNS.get(formatting, {}), **entry.get("columns", {})}
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "system_tag": "system",
    }
    tags |= {name: value for name, value in entry.get("tags", {}).items() if isinstance(value, str)}
    renamed = tuple((old, _COLUMNS[name]) for name, old in columns.items() if name in _COLUMNS and isinstance(old, str))
    roles = ((tags["user_tag"], "human"), (tags["assistant_tag"], "gpt"), (tags["system_tag"], "system"))
    return FieldNames(renamed, tags["role_tag"], tags["content_tag"], roles)
