"""VQA pairs: a file of questions and one of answers, joined by `question_id`, as VQAv2 and OK-VQA are published."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from pipeline.errors import DataError, Reason
from pipeline.tools.convert.annotations import AnnotationSource, Chunks, open_annotations
from pipeline.tools.convert.row import RowRules
from pipeline.tools.convert.source import Outcome, refused

_HEAD_BYTES: Final = 1024 * 1024
_ENDINGS: Final = (".jpg", ".png", ".jpeg", ".webp")
_NAMED: Final = ("image", "image_path", "file_name", "image_name")


def vqa_kind(head: bytes) -> str:
    """Return what a JSON object is by its start: `vqa` (questions), `vqa_answers`, or empty.

    Questions that carry their own answers are not of a pair.
    """
    if b'"questions"' in head and b'"question_id"' in head:
        return "vqa"
    return "vqa_answers" if b'"annotations"' in head and b'"question_id"' in head else ""


@dataclass(frozen=True)
class VqaSource:
    """Question files with the answers of all answer files; a sample per question, in the order of its file."""

    files: tuple[str, ...]
    answer_files: tuple[str, ...]
    image_folder: str
    rules: RowRules = field(default_factory=RowRules)
    kind: str = "vqa"

    def units(self) -> list[str]:
        """Return the question files, then the answer files, in which there may be more than questions ask for."""
        return [*self.files, *self.answer_files]

    def list_unit(self, unit: str) -> pa.Table:
        """List the questions of a file; of an answer file, the answers to questions that no file asks."""
        chunks = Chunks(keeps_text=True)
        if unit in self.answer_files:
            asked = {_id(one) for file in self.files for one in _listed(file, "questions")}
            left = [one for one in _listed(unit, "annotations") if _id(one) not in asked]
            for row, one in enumerate(left):
                error = DataError(Reason.TEXT_UNREAD, f"an answer to question {_id(one)[:40]}, which no file asks")
                chunks.add(refused(row, error), 0, b"")
            return chunks.table()
        answers = self._answers()
        folder = _Pictures(self.image_folder, _subtype(unit))
        rows = AnnotationSource(self.files, self.image_folder, self.rules)
        for row, question in enumerate(_listed(unit, "questions")):
            found = answers.get(_id(question))
            text = json.dumps({**(found or {}), **question, "image": folder.of(question)}, ensure_ascii=False).encode()
            if found is None and not any(name in question for name in ("answer", "answers")):
                error = DataError(Reason.MISSING_ANNOTATION, f"question {_id(question)[:40]} has no answer in any file")
                chunks.add(refused(row, error)._replace(media=1), 0, b"")
            else:
                chunks.add(rows.entry(row, text), 0, text)
        return chunks.table()

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Yield what each question becomes."""
        rows = AnnotationSource(self.files, self.image_folder, self.rules)
        for text in entries["text"].to_pylist():
            yield rows.outcome(text)

    def _answers(self) -> dict[str, dict[str, Any]]:
        """Return the answers by question.

        Raises:
            DataError: two files answer a question differently.
        """
        found: dict[str, dict[str, Any]] = {}
        for file in self.answer_files:
            for one in _listed(file, "annotations"):
                if found.setdefault(_id(one), one) != one:
                    raise DataError(Reason.TEXT_UNREAD, f"question {_id(one)[:40]} is answered twice", shard=file)
        return found


class _Pictures:
    """Where the pictures of a question file are: COCO's names by number, or `ID.jpg`."""

    def __init__(self, folder: str, subtype: str) -> None:
        self._folder = folder
        self._subtypes = [name for name in (subtype, subtype.partition("_")[0]) if name]
        self._pattern = -1

    def names(self, question: dict[str, Any]) -> list[str]:
        """Return the names that a question's picture may have, the most likely first."""
        if named := next((question[name] for name in _NAMED if isinstance(question.get(name), str)), None):
            return [str(named)]
        return list(self._names(question.get("image_id")))

    def of(self, question: dict[str, Any]) -> str:
        """Return the name of a question's picture; of one that is not there, the most likely."""
        names = self.names(question)
        tried = [self._pattern, *range(len(names))] if 0 <= self._pattern < len(names) else range(len(names))
        for place in tried:
            if os.path.isfile(os.path.join(self._folder, names[place])):
                self._pattern = place
                return names[place]
        return names[0]

    def _names(self, image_id: Any) -> Iterator[str]:
        stems = [str(image_id)]
        if isinstance(image_id, int):
            stems = [f"{image_id:012d}", str(image_id)]
        for subtype in self._subtypes:
            if isinstance(image_id, int):
                yield f"COCO_{subtype}_{image_id:012d}.jpg"
                yield f"{subtype}/COCO_{subtype}_{image_id:012d}.jpg"
            yield from (f"{subtype}/{stem}{ending}" for stem in stems for ending in _ENDINGS)
        yield from (f"{stem}{ending}" for stem in stems for ending in _ENDINGS)


@functools.lru_cache(maxsize=4)
def _tree(path: str) -> Any:
    with open_annotations(path) as file:
        return json.loads(file.read())


def _listed(path: str, name: str) -> list[dict[str, Any]]:
    """Return the objects under `name` in a file.

    Raises:
        DataError: not such a file.
    """
    try:
        listed = _tree(path)[name]
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "question_id" in one for one in listed):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"expected `{name}`, a list of objects with question_id"
        raise DataError(Reason.JSON_INVALID, what, shard=path) from error
    return listed


def _subtype(path: str) -> str:
    return str(_tree(path).get("data_subtype") or "")


def _id(one: dict[str, Any]) -> str:
    return str(one["question_id"])


def first_names(path: str, number: int) -> list[list[str]]:
    """Return for each of the first questions the names that its picture may have."""
    pictures = _Pictures("", _subtype(path))
    return [pictures.names(one) for one in _listed(path, "questions")[:number]]


def head_of(path: str) -> bytes:
    """Return the start of an annotation file."""
    with open_annotations(path) as file:
        return file.read(_HEAD_BYTES)
