"""Cases in batches: draw, write, convert, read back by `webdataset` and by our index, compare with the truth."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import random
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from pipeline.index.build import build_index
from pipeline.index.read import read_sample
from pipeline.samples.prompt.conversation import Image
from pipeline.tools.convert.formats import SourceOptions, open_source
from pipeline.tools.convert.run import convert
from pipeline.tools.convert.shard_plan import ShardLimits
from tests.fuzz.meaning.changes import CAUSES, Change, change
from tests.fuzz.meaning.dialects import DIALECTS, Dialect, Row, file_name
from tests.fuzz.meaning.truth import NUM_COLOURS, Part, Picture, Turns, colour_of, draw_turns, merged, picture_bytes

BATCH = 100


class Case(NamedTuple):
    """One row of a batch."""

    turns: Turns
    change: Change


class Result(NamedTuple):
    """What became of cases."""

    counts: Counter[tuple[str, str, str]]
    """By dialect, change and outcome: `shown`, or the reason of the refusal."""
    differences: list[str]
    """Cases that were shown otherwise than they mean, shown though they must be refused, or refused though sound."""


def run_batch(seed: int, number: int) -> Result:
    """Run one batch: all of its rows are of one dialect and in one source."""
    rng = random.Random(f"{seed}:{number}")
    dialect = DIALECTS[number % len(DIALECTS)]
    cases = [_draw(rng, dialect) for _ in range(BATCH)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, order = write_source(rng, dialect, [case.change.row for case in cases], folder / "in")
        opened = open_source([str(source)], options=SourceOptions(str(folder / "in")))
        result = convert(opened, folder / "out", limits=ShardLimits(37, 10**9))
        refused = {entry.row: (entry.reason, entry.detail) for entry in result.skipped}
        ours, theirs = _read_back(result.shards, folder), _read_by_webdataset(result.shards)
    cases = [cases[idx] for idx in order]
    return _compare(f"batch {number} of seed {seed}", dialect, cases, refused, ours, theirs)


def _draw(rng: random.Random, dialect: Dialect) -> Case:
    turns = draw_turns(rng, dialect.shape)
    if dialect.name == "question":
        turns = turns[:2]
        turns[0] = ("user", [*[one for one in turns[0][1] if isinstance(one, Picture)][:1], turns[0][1][-1]])
    if dialect.name == "sharegpt" and rng.random() < 0.4:
        turns = [("system", ["Be short."]), *turns]
    if dialect.name == "table-numbered" and sum(isinstance(one, Picture) for _, parts in turns for one in parts) > 9:
        turns = turns[:2]
    return Case(turns, change(rng, dialect, dialect.write(rng, turns), turns))


def write_source(rng: random.Random, dialect: Dialect, rows: Sequence[Row], folder: Path) -> tuple[Path, Sequence[int]]:
    """Write the rows as the dialect stores them; return what to convert, and which row is at which place there."""
    (folder / "im").mkdir(parents=True)
    if dialect.container in ("lines", "array", "coco"):
        for colour in range(NUM_COLOURS):
            (folder / file_name(colour)).write_bytes(picture_bytes(colour))
    path = (
        folder
        / f"{dialect.name}.{ {'lines': 'jsonl', 'parquet': 'parquet', 'tsv': 'tsv'}.get(dialect.container, 'json') }"
    )
    if dialect.container == "lines":
        path.write_text("".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows))
    elif dialect.container == "array":
        path.write_text(json.dumps(rows, indent=rng.choice((None, 1))))
    elif dialect.container == "parquet":
        pq.write_table(pa.Table.from_pylist(_same_fields(rows)), path, row_group_size=29)
    elif dialect.container == "tsv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["index", "question", "answer", "image"], delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    elif dialect.container == "coco":
        images = [{"id": idx, "file_name": row["file_name"]} for idx, row in enumerate(rows)]
        notes = [{"image_id": idx, "caption": row["caption"]} for idx, row in enumerate(rows)]
        path.write_text(json.dumps({"images": images, "annotations": notes}))
    elif dialect.container == "folder":
        for idx, row in enumerate(rows):
            for extension, data in row["__members__"].items():
                (folder / "im" / f"{idx:05d}.{extension}").write_bytes(data)
        return folder / "im", range(len(rows))
    else:
        return _write_tar(rng, dialect, rows, folder / "a.tar")
    return path, range(len(rows))


def _same_fields(rows: Sequence[Row]) -> list[Row]:
    """Return rows with every field: a table is written from the fields of its first row otherwise."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if kinds == {list, str} or kinds == {list, dict} or kinds == {list, bytes}:
            columns[name] = [value if isinstance(value, list | None) else [value] for value in values]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _write_tar(rng: random.Random, dialect: Dialect, rows: Sequence[Row], path: Path) -> tuple[Path, Sequence[int]]:
    files = []
    for idx, row in enumerate(rows):
        members = dict(row["__members__"])
        said = {name: value for name, value in row.items() if name != "__members__"}
        if said:
            members["json"] = json.dumps(said).encode()
        files += [(f"f/{idx:05d}.{extension}", data) for extension, data in members.items()]
    if dialect.container == "scattered":
        rng.shuffle(files)
    with tarfile.open(
        path, "w", format=rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path, [int(key) for key in dict.fromkeys(name[2:7] for name, _ in files)]


def _read_back(shards: Sequence[str], folder: Path) -> dict[int, Turns]:
    """Return the turns of each written row as our index and reader have them."""
    if not shards:
        return {}
    index = build_index(shards, folder / "index")
    assert index.summary() == {}, index.summary()
    found = {}
    for sample_id in range(index.num_samples):
        sample = read_sample(index, sample_id)
        images = iter(sample.images)
        turns: list[tuple[str, list[Part]]] = [
            (turn.role, [Picture(colour_of(next(images))) if isinstance(part, Image) else part for part in turn.parts])
            for turn in sample.conversation.turns
        ]
        found[_row(sample.key)] = merged(turns)
    return found


def _read_by_webdataset(shards: Sequence[str]) -> dict[int, Turns]:
    """Return the turns of each written row as somebody reads them who knows only the published form."""
    if not shards:
        return {}
    return {
        _row(item["__key__"]): merged([*_plain_turns(item)])
        for item in webdataset.WebDataset([*shards], shardshuffle=False)
    }


def _plain_turns(item: dict[str, Any]) -> Iterator[tuple[str, list[Part]]]:
    if "txt" in item:
        pictures = [item[name] for name in sorted(item) if name not in ("txt", "json") and not name.startswith("__")]
        yield "user", [Picture(colour_of(data)) for data in pictures]
        yield "assistant", [item["txt"].decode()]
        return
    tree = json.loads(item["json"])
    images = iter([item[name] for name in tree.get("image", [])])
    for turn in tree.get("conversations") or tree["messages"]:
        role = {"human": "user", "gpt": "assistant"}.get(turn.get("from", ""), turn.get("from") or turn.get("role"))
        content = turn["value"] if "value" in turn else turn["content"]
        if isinstance(content, str):
            pieces = content.split("<image>")
            parts: list[Part] = [pieces[0]]
            for piece in pieces[1:]:
                parts += [Picture(colour_of(next(images))), piece]
        else:
            parts = [part["text"] if part["type"] == "text" else Picture(colour_of(next(images))) for part in content]
        yield role, parts
    assert next(images, None) is None, "a picture that no place shows"


def _row(key: str) -> int:
    return int(key.rpartition("-")[2])


def _compare(
    where: str,
    dialect: Dialect,
    cases: Sequence[Case],
    refused: dict[int, tuple[str, str]],
    ours: dict[int, Turns],
    theirs: dict[int, Turns],
) -> Result:
    counts: Counter[tuple[str, str, str]] = Counter()
    differences = []
    for row, (turns, changed) in enumerate(cases):
        reason, detail = refused.get(row, ("shown", ""))
        counts[dialect.name, changed.name, reason] += 1
        problem = _problem(changed, merged(turns), reason, ours.get(row), theirs.get(row))
        if problem:
            place = f"{where}, {dialect.name}, {changed.name}, row {row}"
            differences.append(f"{place}: {problem}; {reason} {detail}; {_short(changed.row)}")
    return Result(counts, differences)


def _short(value: Any) -> str:
    """Return a row for a message, without the bytes of its pictures."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{str(value)[:80]!r}"


def _problem(changed: Change, truth: Turns, reason: str, ours: Turns | None, theirs: Turns | None) -> str:
    if reason != "shown":
        if changed.verdict == "shown":
            return "refused though sound"
        if reason not in CAUSES[changed.name]:
            return "refused by a reason that does not name the cause"
        return "" if ours is None is theirs else "refused and written"
    if ours is None or theirs is None:
        return "neither written nor refused"
    if changed.verdict == "refused":
        return f"shown though it must be refused, as {ours}"
    if ours != truth:
        return f"our reader shows {ours}, expected {truth}"
    return "" if theirs == truth else f"webdataset shows {theirs}, expected {truth}"


def run_campaign(num_cases: int, seed: int, num_processes: int) -> Result:
    """Run batches until so many cases are done."""
    numbers = range(-(-num_cases // BATCH))
    counts: Counter[tuple[str, str, str]] = Counter()
    differences: list[str] = []
    if num_processes == 1:
        results: Iterator[Result] = (run_batch(seed, number) for number in numbers)
        for result in results:
            counts.update(result.counts)
            differences += result.differences
        return Result(counts, differences)
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("forkserver")) as pool:
        for result in pool.map(run_batch, [seed] * len(numbers), numbers, chunksize=4):
            counts.update(result.counts)
            differences += result.differences
    return Result(counts, differences)


def describe(result: Result, started: float) -> str:
    """Return a table of what became of the cases, by dialect and by change."""
    total = result.counts.total()
    lines = [f"{total} cases, {len(result.differences)} differences, {time.perf_counter() - started:.0f} s"]
    for title, place in (("dialect", 0), ("change", 1), ("outcome", 2)):
        sums: Counter[str] = Counter()
        shown: Counter[str] = Counter()
        for key, number in result.counts.items():
            sums[key[place]] += number
            shown[key[place]] += number if key[2] == "shown" else 0
        lines += [f"  {title} {name}: {number}, {shown[name]} shown" for name, number in sorted(sums.items())]
    return "\n".join([*lines, *(f"DIFFERENCE {one}" for one in result.differences[:10])])
