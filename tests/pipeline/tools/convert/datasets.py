"""Small data sets in the formats that people have, two or three entries of each bad in a known way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.samples.pictures import picture
from tests.pipeline.shards.archives import tar_bytes


def turns(question: str = "<image>\nWhat is it?", answer: str = "A ball.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def llava_records(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write `count` images under `folder/images` and return a good LLaVA entry for each."""
    (folder / "images" / "coco").mkdir(parents=True, exist_ok=True)
    records = []
    for idx in range(count):
        name = f"coco/{idx:03d}.jpg"
        image_format = "PNG" if idx % 3 == 1 else "JPEG"  # names of crawled files can be wrong
        (folder / "images" / name).write_bytes(picture(11 + idx, 17, image_format))
        records.append({"id": f"a.{idx}", "image": name, "conversations": turns(answer=f"Answer {idx}.")})
    return records


def write_llava(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return path


def write_coco(folder: Path, num_images: int) -> Path:
    """Write captions: two per image; image 0 has no file, the last image no caption."""
    (folder / "images").mkdir(parents=True)
    images = [{"id": 100 + idx, "file_name": f"{idx:012d}.jpg"} for idx in range(num_images)]
    for image in images[1:]:
        (folder / "images" / str(image["file_name"])).write_bytes(picture(13, 19, "JPEG"))
    notes = [
        {"image_id": image["id"], "caption": f"caption {turn} of {image['id']}"}
        for turn in range(2)
        for image in images[:-1]
    ]
    path = folder / "captions.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return path


def write_downloads(folder: Path, num_shards: int, per_shard: int) -> Path:
    """Write what img2dataset writes: tar files, a table with the status of each URL, statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        files, status = [], []
        for idx in range(per_shard):
            key = f"{shard:05d}{idx:04d}"
            failed = idx == per_shard - 1
            status.append("failed_to_download" if failed else "success")
            if not failed:
                meta = json.dumps({"key": key, "url": f"http://host/{key}", "similarity": 0.3}).encode()
                files += [
                    (f"{key}.jpg", picture(9 + idx, 15, "JPEG")),
                    (f"{key}.json", meta),
                    (f"{key}.txt", f"caption of {key}".encode()),
                ]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(files))
        pq.write_table(pa.table({"status": status}), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, per_group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=per_group)
    return path
