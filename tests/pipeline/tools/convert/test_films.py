"""Video files go into the shard as they are, from every dialect that names one; two media in a row are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.samples.prompt.conversation import Image
from tests.pipeline.samples.films import film
from tests.pipeline.samples.pictures import picture
from tests.pipeline.shards.archives import write_tar
from tests.pipeline.tools.convert.datasets import turns, write_parquet
from tests.pipeline.tools.convert.reading import answers, converted, skipped

CLIP = film(5)
SAID = {"role": "assistant", "content": "A ball."}


@pytest.mark.parametrize(
    "row",
    [
        {"video": "clips/a.mp4", "conversations": turns("<image>\nWhat?"), "data_source": "x"},
        {"video": "clips/a.mp4", "conversations": turns("<video>\nWhat?")},
        {"video": ["clips/a.mp4"], "conversations": turns("<video>\nWhat?")},
        {"videos": ["clips/a.mp4"], "messages": [{"role": "user", "content": "<video>\nWhat?"}, SAID]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": "clips/a.mp4"}, {"type": "text", "text": "What?"}],
                },
                SAID,
            ]
        },
        {"video_path": "clips/a.mp4", "question": "What?", "answer": "A ball."},
        {"video": "clips/a.mp4", "caption": "A ball."},
    ],
)
def test_row_that_names_a_film_shows_it(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(CLIP)
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    result, samples = converted(tmp_path, tmp_path / "a.jsonl")
    assert [(one.kind, one.images) for one in samples] == [("film", (CLIP,))]
    assert answers(samples) == ["A ball."]
    said = samples[0].conversation.turns[0]
    assert (said.parts[0], said.text.strip()) == (Image(), "" if "caption" in row else "What?")
    assert (result.account.media_written, result.account.places) == (1, 1)


def test_films_in_tables_tars_and_folders(tmp_path: Path) -> None:
    row = {"video": {"bytes": CLIP, "path": "a.mp4"}, "conversations": turns("<video>\nWhat?")}
    write_parquet(tmp_path / "in" / "a.parquet", [row])
    tree = {"video": "b.webm", "conversations": turns("<video>\nWhat?", "From a tar.")}
    write_tar(tmp_path / "in" / "b.tar", [("b.mp4", CLIP), ("b.json", json.dumps(tree).encode())])
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "c.mp4").write_bytes(CLIP)
    (tmp_path / "files" / "c.txt").write_text("From a folder.")
    _, samples = converted(tmp_path, tmp_path / "in", tmp_path / "files")
    assert answers(samples) == ["From a tar.", "A ball.", "From a folder."]
    assert all((one.kind, one.images) == ("film", (CLIP,)) for one in samples)


def test_film_with_another_medium_or_damage_is_refused(tmp_path: Path) -> None:
    for name, data in (("a.mp4", CLIP), ("b.mp4", film(6)), ("cut.mp4", CLIP[:900]), ("c.jpg", picture(5, 7, "JPEG"))):
        (tmp_path / name).write_bytes(data)
    rows = [
        {"videos": ["a.mp4", "b.mp4"], "conversations": turns("<video><video>\nWhat?")},
        {"video": "a.mp4", "image": "c.jpg", "conversations": turns("<image><video>\nWhat?")},
        {"video": "a.mp4", "conversations": turns("<video><video>\nWhat?")},
        {"video": "a.mp4", "conversations": turns("What?")},
        {"video": "cut.mp4", "conversations": turns("<video>\nWhat?")},
        {"video": "gone.mp4", "conversations": turns("<video>\nWhat?")},
        {"video": "a.mp4", "audio": "a.wav", "conversations": turns("<video>\nWhat?")},
        {"conversations": turns("The tag <video> plays a film, as <video src='a'></video>.")},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result, samples = converted(tmp_path, tmp_path / "a.jsonl")
    assert [reason for _, reason in skipped(result)] == [
        "media_unread", "media_unread", "image_token_mismatch", "image_token_mismatch", "video_truncated",
        "missing_image", "media_unread",
    ]  # fmt: skip
    assert [len(sample.images) for sample in samples] == [0]
