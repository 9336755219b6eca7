"""Benchmarks with short answers and captions: VQAv2, GQA, TextVQA, DocVQA, ChartQA, RefCOCO, COCO and NoCaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.evaluation.benchmarks.item import CAPTION, Item, coco_names, picture_bytes
from pipeline.evaluation.benchmarks.rows import Row, read_json, read_rows

_BOX_PROMPT = (
    "Please provide the bounding box coordinate of the region this sentence describes: {}. "
    "Answer with [x1, y1, x2, y2] from 0 to 1."
)


def read_vqav2(path: Path) -> Iterator[Item]:
    """Read a pair of files, `*questions.json` and `*annotations.json`, either of which is given."""
    questions, annotations = _vqa_pair(path)
    tree = read_json(questions)
    subset = tree.get("data_subtype", "val2014")
    people = {row["question_id"]: row for row in read_rows(annotations, "annotations")}
    for row in tree["questions"]:
        asked = people.get(row["question_id"])
        if asked is None:
            raise ConfigError(f"{annotations}: no answers to question {row['question_id']} of {questions}")
        yield Item(
            key=str(row["question_id"]),
            images=(coco_names(row["image_id"], subset),),
            question=row["question"],
            answer=asked["multiple_choice_answer"],
            references=_texts(asked["answers"]),
            category=asked.get("answer_type", "all"),
        )


def read_gqa(path: Path) -> Iterator[Item]:
    """Read `*_questions.json`: an object per question id."""
    for key, row in read_json(path).items():
        kind = (row.get("types") or {}).get("structural", "all")
        yield Item(key, (f"{row['imageId']}.jpg",), row["question"], row["answer"], category=kind)


def read_textvqa(path: Path) -> Iterator[Item]:
    """Read `TextVQA_0.5.1_*.json`."""
    for row in read_rows(path, "data"):
        answers = _texts(row["answers"])
        picture = f"{row['image_id']}.jpg|{row['image_id']}.png"
        yield Item(str(row["question_id"]), (picture,), row["question"], _commonest(answers), answers)


def read_docvqa(path: Path) -> Iterator[Item]:
    """Read `*_v1.0*.json` of DocVQA, or InfographicVQA's."""
    for row in read_rows(path, "data"):
        answers = _texts(row["answers"])
        kinds = row.get("question_types") or ["all"]
        name = row.get("image") or row["image_local_name"]
        yield Item(str(row["questionId"]), (name,), row["question"], answers[0], answers, category=str(kinds[0]))


def read_chartqa(path: Path) -> Iterator[Item]:
    """Read `test_human.json` or `test_augmented.json`."""
    kind = next((name for name in ("human", "augmented") if name in path.name), "all")
    for number, row in enumerate(read_rows(path)):
        yield Item(
            f"{path.stem}-{number}",
            (f"{row['imgname']}|png/{row['imgname']}",),
            row["query"],
            str(row["label"]),
            category=kind,
        )


def read_refcoco(path: Path) -> Iterator[Item]:
    """Read boxes: lines {image, sent, bbox [x1, y1, x2, y2], width, height}, or Parquet with bbox [x, y, w, h]."""
    for number, row in enumerate(read_rows(path)):
        name = row.get("image") or row.get("img_path") or row.get("file_name")
        is_table = path.suffix == ".parquet"
        picture = picture_bytes(name) if is_table else str(name)
        left, top, right, bottom = map(float, row["bbox"])
        width, height = (row["width"], row["height"]) if not is_table else _size(picture)
        if is_table:
            right, bottom = left + right, top + bottom
        box = ", ".join(f"{value:.4f}" for value in (left / width, top / height, right / width, bottom / height))
        said = row.get("sent") or row.get("expression") or row["answer"]
        for place, text in enumerate(said if isinstance(said, list) else [said]):
            yield Item(f"{number}-{place}", (picture,), _BOX_PROMPT.format(text), f"[{box}]", ending="")


def read_captions(path: Path) -> Iterator[Item]:
    """Read COCO's `captions_*.json`, or NoCaps': images, and annotations with captions."""
    tree = read_json(path)
    captions: dict[Any, list[str]] = {}
    for row in tree["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"].strip())
    for row in tree["images"]:
        if row["id"] in captions:
            texts = tuple(captions[row["id"]])
            kind = str(row.get("domain", "all"))
            yield Item(str(row["id"]), (row["file_name"],), CAPTION, texts[0], texts, category=kind, ending="")


def _vqa_pair(path: Path) -> tuple[Path, Path]:
    """Find the other file of the pair in the same folder, by its name."""
    name = path.name
    if "annotations" in name:
        stem = name.replace("annotations", "questions")
        others = [stem, stem.replace("mscoco", "OpenEnded_mscoco")]
    else:
        stem = name.replace("questions", "annotations")
        others = [stem, stem.replace("OpenEnded_", "")]
    found = next((path.parent / other for other in others if other != name and (path.parent / other).is_file()), None)
    if found is None:
        raise ConfigError(
            f"{path}: VQAv2 comes as two files, *questions.json and *annotations.json; put {others[-1]} next to it"
        )
    return (found, path) if "annotations" in name else (path, found)


def _texts(entries: list[Any]) -> tuple[str, ...]:
    return tuple(str(entry["answer"]) if isinstance(entry, dict) else str(entry) for entry in entries)


def _commonest(texts: tuple[str, ...]) -> str:
    return max(dict.fromkeys(texts), key=texts.count)


def _size(picture: Row | bytes | str) -> tuple[int, int]:
    """Return width and height of a picture, pixels."""
    from pipeline.samples.image import decode_image

    assert isinstance(picture, bytes)
    height, width = decode_image(picture).shape[:2]
    return width, height
