"""Lists of data sets: LLaMA-Factory's dataset_info.json and InternVL's meta file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tools.convert.formats import look_for_source, open_source
from tests.pipeline.samples.pictures import picture
from tests.pipeline.tools.convert.datasets import turns
from tests.pipeline.tools.convert.reading import answers, converted


def test_dataset_info_names_files_fields_and_speakers(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(picture(5, 7))
    said = [{"who": "Q", "what": "<image>What?"}, {"who": "A", "what": "A ball."}]
    (tmp_path / "chat.json").write_text(json.dumps([{"dialog": said, "pics": ["pics/a.png"], "sys": "Be short."}]))
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "Add.", "input": "1 + 1", "output": "2"}]))
    info = {
        "chat": {
            "file_name": "chat.json",
            "formatting": "sharegpt",
            "columns": {"messages": "dialog", "images": "pics", "system": "sys"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "Q", "assistant_tag": "A"},
        },
        "plain": {"file_name": "alpaca.json"},
        "gone": {"file_name": "gone.json"},
        "hub": {"hf_hub_url": "llamafactory/alpaca_en"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    result, samples = converted(tmp_path, tmp_path)
    assert result.skipped == ()
    assert answers(samples) == ["A ball.", "2"]
    assert [turn.text for turn in samples[0].conversation.turns] == ["Be short.", "What?", "A ball."]
    assert samples[0].images == (picture(5, 7),)
    assert samples[1].conversation.turns[0].text == "Add.\n1 + 1"
    assert result.account.media_written == 1
    notes = "\n".join(look_for_source([str(tmp_path / "dataset_info.json")]).notes)
    assert "taken for a list of data sets" in notes
    assert "missing: " in notes
    assert "passed over: hub of dataset_info.json, which is not a local file" in notes


def test_meta_file_names_annotations_and_where_their_pictures_are(tmp_path: Path) -> None:
    for name, height in (("one", 5), ("two", 11)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(height, 7))
        row = {"image": "a.png", "conversations": turns(answer=f"Of {name}.")}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    meta = {
        name: {"root": name, "annotation": f"{name}.jsonl", "repeat_time": 2, "length": 1} for name in ("one", "two")
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    _, samples = converted(tmp_path, tmp_path / "meta.json")
    assert [(answer, sample.images) for answer, sample in zip(answers(samples), samples, strict=True)] == [
        ("Of one.", (picture(5, 7),)),
        ("Of two.", (picture(11, 7),)),
    ]


def test_list_of_which_nothing_is_here_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "gone.json"}}))
    with pytest.raises(ValueError, match="none of which is here; missing: "):
        open_source([str(tmp_path / "dataset_info.json")])
