"""Benchmarks with options, or with yes and no: AI2D, MMBench, ScienceQA, MMMU, SEED-Bench, POPE and MME."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import ConfigError
from pipeline.evaluation.benchmarks.item import LETTER, Item, picture_bytes
from pipeline.evaluation.benchmarks.rows import files_in, read_json, read_rows
from pipeline.evaluation.metrics.choice import LETTERS

_MAX_IMAGES = 7  # of an MMMU question


def read_ai2d(path: Path) -> Iterator[Item]:
    """Read the folder `questions`, a file per picture, one of its files, or Parquet with the pictures."""
    if path.suffix == ".parquet":
        for number, row in enumerate(read_rows(path)):
            yield Item(
                str(number), (picture_bytes(row["image"]),), row["question"], LETTERS[int(row["answer"])],
                options=tuple(row["options"]), ending=LETTER,
            )  # fmt: skip
        return
    for file in files_in(path, "*.json"):
        tree = read_json(file)
        for question, row in tree["questions"].items():
            yield Item(
                row.get("questionId", question), (tree["imageName"],), question, LETTERS[row["correctAnswer"]],
                options=tuple(row["answerTexts"]), ending=LETTER,
                category="letters" if row.get("abcLabel") else "words",
            )  # fmt: skip


def read_mmbench(path: Path) -> Iterator[Item]:
    """Read the TSV with the pictures as base64; a short text there is the index of the row that has the picture."""
    rows = read_rows(path)
    pictures = {row["index"]: row["image"] for row in rows}
    for row in rows:
        options = tuple(row[letter] for letter in LETTERS if row.get(letter) and row[letter] != "nan")
        hint = row.get("hint") or ""
        picture = pictures.get(row["image"], row["image"])
        yield Item(
            row["index"], (picture_bytes(picture),), (f"{hint}\n" if hint and hint != "nan" else "") + row["question"],
            row["answer"], options=options, ending=LETTER, category=row.get("category") or "all",
        )  # fmt: skip


def read_scienceqa(path: Path) -> Iterator[Item]:
    """Read `problems.json`; the questions of the test split that have a picture (ScienceQA-IMG)."""
    for key, row in read_json(path).items():
        if row.get("image") and row.get("split", "test") == "test":
            hint = f"Context: {row['hint']}\n" if row.get("hint") else ""
            names = f"test/{key}/{row['image']}|{key}/{row['image']}"
            yield Item(
                key, (names,), hint + row["question"], LETTERS[int(row["answer"])],
                options=tuple(row["choices"]), ending=LETTER, category=row.get("subject", "all"),
            )  # fmt: skip


def read_mmmu(path: Path) -> Iterator[Item]:
    """Read Parquet files with the pictures; questions without options are left out."""
    for file in files_in(path, "*.parquet"):
        for row in read_rows(file):
            options = row["options"] if isinstance(row["options"], list) else ast.literal_eval(row["options"])
            if row.get("question_type", "multiple-choice") != "multiple-choice" or len(options) < 2:
                continue
            shown = [int(number) for number in re.findall(r"<image (\d)>", row["question"])]
            numbers = shown or [n for n in range(1, _MAX_IMAGES + 1) if row.get(f"image_{n}")]
            yield Item(
                row["id"], tuple(picture_bytes(row[f"image_{number}"]) for number in numbers),
                re.sub(r"<image \d>", "<image>", row["question"]), row["answer"],
                options=tuple(re.sub(r"<image (\d)>", r"(image \1)", str(option)) for option in options),
                ending=LETTER, category=re.sub(r"^\w+?_|_\d+$", "", row["id"]),
            )  # fmt: skip


def read_seed(path: Path) -> Iterator[Item]:
    """Read `SEED-Bench.json`; questions about videos are left out."""
    kinds = {number: name for name, number in read_json(path).get("question_type", {}).items()}
    for row in read_rows(path, "questions"):
        if row.get("data_type", "image") != "image":
            continue
        options = tuple(row[f"choice_{letter}"] for letter in "abcd" if row.get(f"choice_{letter}"))
        name = str(row["data_id"])
        yield Item(
            str(row["question_id"]), (f"{name}|{name}.jpg|{name}.png",), row["question"], row["answer"],
            options=options, ending=LETTER, category=kinds.get(row.get("question_type_id"), "all"),
        )  # fmt: skip


def read_pope(path: Path) -> Iterator[Item]:
    """Read `coco_pope_*.json`: an object per line."""
    kind = next((name for name in ("adversarial", "popular", "random") if name in path.name), "all")
    for row in read_rows(path):
        yield Item(str(row["question_id"]), (row["image"],), row["text"], row["label"], category=kind)


def read_mme(path: Path) -> Iterator[Item]:
    """Read lines "picture, question, answer" with tabs of a file per category, or the folders of the release.

    In the release the lines are "question, answer", in a file that is called like the picture.
    """
    for file in files_in(path, "*.txt"):
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for number, cells in enumerate(lines):
            if len(cells) == 2:
                folder = file.parent.parent if file.parent.name == "questions_answers_YN" else file.parent
                category, place = folder.name, f"{folder.name}/"
                names = [f"{where}{file.stem}{end}" for where in (f"{place}images/", place) for end in (".jpg", ".png")]
                picture, question, answer = "|".join(names), *cells
            elif len(cells) >= 3:
                category, (name, question, answer) = file.stem, cells[:3]
                picture = f"{category}/images/{name}|{category}/{name}|{name}"
            else:
                raise ConfigError(f"{file}, line {number + 1}: expected picture, question and answer with tabs between")
            group = file.stem if len(cells) == 2 else cells[0]
            yield Item(
                f"{category}-{group}-{number}", (picture,), question, answer, category=category, group=group, ending=""
            )
