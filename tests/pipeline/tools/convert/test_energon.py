"""Folders of Megatron-Energon: members mapped to fields by dataset.yaml; what is not mapped must not get lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tools.convert.formats import look_for_source
from tests.pipeline.samples.pictures import picture
from tests.pipeline.shards.archives import write_tar
from tests.pipeline.tools.convert.reading import answers, converted, skipped


def write_energon(
    folder: Path, dataset: str, files: list[tuple[str, bytes]], counts: dict[str, int] | None = None
) -> Path:
    (folder / ".nv-meta").mkdir(parents=True)
    (folder / ".nv-meta" / "dataset.yaml").write_text(dataset)
    (folder / ".nv-meta" / ".info.json").write_text(json.dumps({"shard_counts": counts or {"data-0.tar": 2}}))
    write_tar(folder / "data-0.tar", files)
    return folder


VQA = """
sample_type:
  __module__: megatron.energon
  __class__: VQASample
field_map:
  image: jpg
  context: json[0][value]
  answers: json[1][value]
"""


def test_vqa_field_map_reads_places_in_json(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}]
    files = [
        ("a.jpg", picture(5, 7, "JPEG")),
        ("a.json", json.dumps(turns).encode()),
        ("b.jpg", picture(6, 7, "JPEG")),
        ("b.png", picture(3, 7)),
        ("b.json", json.dumps(turns).encode()),
    ]
    result, samples = converted(tmp_path, write_energon(tmp_path / "in", VQA, files))
    assert answers(samples) == ["A ball."]
    assert samples[0].conversation.turns[0].text.strip() == "What is it?"
    assert (len(samples[0].images), samples[0].images[0]) == (1, picture(5, 7, "JPEG"))
    assert skipped(result) == [(1, "media_unread")]  # b.png is in no field


def test_caption_field_map_reads_members_of_any_name(tmp_path: Path) -> None:
    dataset = "sample_type: {__module__: megatron.energon, __class__: CaptioningSample}\n"
    dataset += "field_map: {image: 'jpg,png', caption: 'long.txt'}\n"
    files = [("x.png", picture(5, 7)), ("x.long.txt", b"A long caption."), ("y.jpg", picture(4, 9, "JPEG"))]
    result, samples = converted(
        tmp_path, write_energon(tmp_path / "in", dataset, files, {"data-0.tar": 2, "gone.tar": 3})
    )
    assert answers(samples) == ["A long caption."]
    assert skipped(result) == [(1, "missing_annotation")]


def test_multiple_choice_shows_the_choices(tmp_path: Path) -> None:
    dataset = "sample_type: {__module__: megatron.energon, __class__: MultiChoiceVQASample}\n"
    dataset += "field_map: {image: jpg, context: 'json[q]', choices: 'json[c]', correct_choice_idx: 'json[i]'}\n"
    row = {"q": "Which?", "c": ["red", "blue"], "i": 1}
    files = [("x.jpg", picture(5, 7, "JPEG")), ("x.json", json.dumps(row).encode())]
    _, samples = converted(tmp_path, write_energon(tmp_path / "in", dataset, files))
    assert answers(samples) == ["B"]
    assert samples[0].conversation.turns[0].text.strip() == "Which?\nA. red\nB. blue"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("sample_type: {__class__: VQASample}\nsample_loader: sample_loader.py:load\n", "code that is not run"),
        ("sample_type: {__class__: OCRSample}\nfield_map: {image: jpg}\n", "samples of type OCRSample"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_what_is_made_by_code_or_not_known_is_refused(tmp_path: Path, dataset: str, message: str) -> None:
    folder = write_energon(tmp_path / "in", dataset, [("x.jpg", picture(5, 7, "JPEG"))])
    with pytest.raises(ValueError, match=message):
        converted(tmp_path, folder)


def test_missing_shards_and_several_splits_are_named(tmp_path: Path) -> None:
    files = [("x.jpg", picture(5, 7, "JPEG")), ("x.txt", b"A caption.")]
    dataset = "sample_type: {__class__: CaptioningSample}\nfield_map: {image: jpg, caption: txt}\n"
    folder = write_energon(tmp_path / "in", dataset, files, {"data-0.tar": 1, "data-1.tar": 1})
    notes = look_for_source([str(folder)]).notes
    assert any(note.startswith("missing: ") and "1 of 2 shards, such as data-1.tar" in note for note in notes)
    (folder / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [data-0.tar], val: [data-1.tar], test: []}")
    with pytest.raises(ValueError, match=r"several parts \(train: data-0\.tar; val: data-1\.tar\)"):
        look_for_source([str(folder)])
    assert len(look_for_source([str(folder / "data-0.tar")]).source.units()) == 1


def test_crude_samples_are_read_as_they_are(tmp_path: Path) -> None:
    dataset = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    files = [("x.jpg", picture(5, 7, "JPEG")), ("x.txt", b"A caption.")]
    _, samples = converted(tmp_path, write_energon(tmp_path / "in", dataset, files))
    assert answers(samples) == ["A caption."]
