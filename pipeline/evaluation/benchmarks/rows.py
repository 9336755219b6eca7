"""Rows of published files: JSON, JSON lines, tables with tabs, Parquet, and folders of any of them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.config import ConfigError

Row = dict[str, Any]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path}: not a JSON file ({error})") from None


def read_rows(path: Path, *containers: str) -> list[Row]:
    """Read the rows of a table.

    Args:
        path: .tsv, .csv, .parquet, .jsonl, or .json with a list, or with a list under one of `containers`; a file
            that is called .json may also hold a row per line, as POPE's do.
        containers: fields of the top object that may hold the rows.

    Raises:
        ConfigError: the rows are not where they are expected.
    """
    if path.suffix == ".parquet":
        return [dict(row) for row in pq.read_table(path).to_pylist()]
    if path.suffix in (".tsv", ".csv"):
        csv.field_size_limit(sys.maxsize)  # pictures are in the cells
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [dict(row) for row in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")]
    text = path.read_text(encoding="utf-8-sig")
    try:
        tree = json.loads(text)
    except ValueError:
        return list(_lines(path, text))
    for name in containers:
        tree = tree.get(name, tree) if isinstance(tree, dict) else tree
    if isinstance(tree, dict) and not containers:
        return [tree]
    if not isinstance(tree, list):
        wanted = " or ".join(containers)
        raise ConfigError(
            f"{path}: expected a list of questions{f' under {wanted}' if wanted else ''}, found an object"
        )
    return tree


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not a JSON object ({error})") from None


def files_in(path: Path, pattern: str) -> list[Path]:
    """Return a file itself, or those of a folder that match, in order.

    Raises:
        ConfigError: there is none.
    """
    found = [path] if path.is_file() else sorted(path.rglob(pattern))
    if not found:
        raise ConfigError(f"{path}: no such file, and no folder with {pattern}")
    return found
