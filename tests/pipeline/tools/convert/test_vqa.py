"""VQAv2's pair of files: every question with its most frequent answer, and what belongs to no pair is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.reading import converted, skipped


def write_pair(folder: Path, ids: list[int], pictures: str = "") -> tuple[Path, Path]:
    """Write questions 0 to 2 about each image, the last of all without an answer, and an answer to none."""
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for image in ids:
        (folder / pictures / f"COCO_val2014_{image:012d}.jpg").write_bytes(picture(image, 7, "JPEG"))
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014"}
    asked = [
        {"image_id": image, "question": f"Question {place} about {image}?", "question_id": image * 10 + place}
        for image in ids
        for place in range(3)
    ]
    answered: list[dict[str, Any]] = [
        {
            "question_type": "what is",
            "multiple_choice_answer": f"answer {one['question_id']}",
            "answers": [{"answer": "other", "answer_confidence": "yes", "answer_id": 1}],
            "image_id": one["image_id"],
            "answer_type": "other",
            "question_id": one["question_id"],
        }
        for one in asked[:-1]
    ]
    answered.append({**answered[0], "question_id": 99, "multiple_choice_answer": "to nothing"})
    questions, notes = folder / "v2_OpenEnded_questions.json", folder / "v2_annotations.json"
    questions.write_text(json.dumps({**head, "questions": asked}))
    notes.write_text(json.dumps({**head, "annotations": answered[::-1]}))
    return questions, notes


@pytest.mark.parametrize("pictures", ["", "val2014", "data/images"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_vqa_pairs_are_joined_by_question(tmp_path: Path, pictures: str, *, as_folder: bool) -> None:
    questions, notes = write_pair(tmp_path / "in", [11, 13], pictures)
    paths = [tmp_path / "in"] if as_folder else [notes, questions]
    result, samples = converted(tmp_path, *paths)
    said = [[turn.text.strip() for turn in sample.conversation.turns] for sample in samples]
    wanted = [
        [f"Question {place} about {image}?", f"answer {image * 10 + place}"] for image in (11, 13) for place in range(3)
    ]
    assert said == wanted[:-1]
    assert [len(sample.images) for sample in samples] == [1] * 5
    assert skipped(result) == [(5, "missing_annotation"), (0, "text_unread")]
    assert result.account.media_found == 6


def test_half_of_a_pair_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    questions, notes = write_pair(tmp_path, [11])
    with pytest.raises(ValueError, match="questions without answers; name the file of the annotations"):
        converted(tmp_path, questions)
    with pytest.raises(ValueError, match="answers without their questions"):
        converted(tmp_path, notes)
