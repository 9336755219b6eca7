"""Rows of every dialect: all of their media shown at the right places, or refused with the name of the field."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.samples.schema import SchemaPolicy, parse_sample
from pipeline.tools.convert.media_bytes import media_bytes
from pipeline.tools.convert.row import Reading, RowError, RowRules
from pipeline.tools.convert.row_media import family, find_media, media_kind
from pipeline.tools.convert.row_reader import read_row
from pipeline.tools.convert.tables import checked_row
from pipeline.tools.convert.written import write_members
from tests.pipeline.samples.pictures import picture

RED, BLUE = picture(5, 7), picture(11, 13)
ASK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ball."}]
MUTE = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A ball."}]


def shown(row: dict[str, Any], rules: RowRules = RowRules()) -> tuple[Reading, list[tuple[str, list[str]]]]:  # noqa: B008
    """Return the reading of a row, and its turns as written and parsed: R and B for the pictures in their places."""
    row = checked_row(row)
    reading = read_row(row, rules)
    contents = [media_bytes(found, None) for found in reading.media]
    members = write_members(reading, contents, {}, rules.policy)
    sample = parse_sample("k", members)
    images = iter({RED: "R", BLUE: "B"}[data] for data in sample.images)
    turns: list[tuple[str, list[str]]] = []
    for turn in sample.conversation.turns:
        turns.append((turn.role, [part if isinstance(part, str) else f"[{next(images)}]" for part in turn.parts]))
    return reading, turns


def image(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


ANSWER = ("assistant", ["A ball."])
ONE = [("user", ["[R]", "\nWhat?"]), ANSWER]
BEFORE = [("user", ["[R]", "What?"]), ANSWER]
URI = f"data:image/png;base64,{encoded(RED)}"
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "A ball."}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": image(RED), "conversations": ASK}, ONE),
        ({"image": RED, "images": None, "conversations": ASK, "messages": None}, ONE),
        ({"image": image(RED), "images": [], "conversations": ASK}, ONE),
        ({"image": list(RED), "conversations": ASK}, ONE),
        ({"image": encoded(RED), "conversations": ASK}, ONE),
        ({"image_base64": encoded(RED), "conversations": ASK}, ONE),
        ({"photo": URI, "conversations": ASK}, ONE),
        ({"image": {"bytes": RED, "path": "a.png", "width": 7}, "conversations": ASK}, ONE),
        ({"image": {"content": RED}, "frames": [0, 5, 9], "conversations": ASK}, ONE),
        ({"image": base64.urlsafe_b64encode(RED).decode(), "conversations": ASK}, ONE),
        ({"image": RED, "meta": {"image_size": [[5, 7]], "url": "http://host/x"}, "conversations": ASK}, ONE),
        ({"Blob": RED, "conversations": ASK}, ONE),
        ({"images": [image(RED), None], "conversations": ASK}, ONE),
        ({"image": RED, "conversations": [[("from", "human"), ("value", "<image>\nWhat?")], [*ASK[1].items()]]}, ONE),
        ({"image": RED, "conversations": {"from": ["human", "gpt"], "value": ["<image>\nWhat?", "A ball."]}}, ONE),
        ({"image": RED, "image_url": "http://host/other.png", "id": "a/b.png", "conversations": ASK}, ONE),
        ({"image": RED, "query": "<image>\nWhat?", "response": "A ball."}, ONE),
        ({"image": RED, "texts": [{"user": "<image>\nWhat?", "assistant": "A ball."}]}, ONE),
        ({"picture": RED, "texts": [{"user": "What?", "assistant": "A ball.", "source": "x"}]}, BEFORE),
        ({"image": RED, "question": "What?", "answers": ["A cube.", "A ball.", "A ball."]}, BEFORE),
        ({"messages": [{**MUTE[0], "images": [image(RED)]}, MUTE[1]]}, BEFORE),
        ({"messages": [{"role": "user", "content": "<image>\nWhat?", "images": [RED]}, MUTE[1]]}, ONE),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URI}}, "What?"]},
                    PARTS,
                ]
            },
            BEFORE,
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": encoded(RED)},
                            },
                            {"type": "text", "text": "What?"},
                        ],
                    },
                    PARTS,
                ]
            },
            BEFORE,
        ),
        (
            {
                "images": [RED],
                "messages": [{"role": "user", "content": [{"type": "text", "text": "<image>\nWhat?"}]}, PARTS],
            },
            ONE,
        ),
        ({"image": RED, "caption": None, "text": "A ball."}, [("user", ["[R]"]), ANSWER]),
        ({"image": RED, "caption": ["A ball."]}, [("user", ["[R]"]), ANSWER]),
        ({"Image": RED, "text": "A ball."}, [("user", ["[R]"]), ANSWER]),
        ({"system": "Be short.", "image": RED, "conversations": ASK}, [("system", ["Be short."]), *ONE]),
        (
            {"image": RED, "instruction": "Look.", "input": "What?", "output": "A ball."},
            [("user", ["[R]", "Look.\nWhat?"]), ANSWER],
        ),
        (
            {"image": RED, "query": "Sure?", "response": "Yes.", "history": [["<image>What?", "A ball."]]},
            [("user", ["[R]", "What?"]), ANSWER, ("user", ["Sure?"]), ("assistant", ["Yes."])],
        ),
        (
            {"images": [BLUE, RED], "texts": [{"user": "First: <image>\nSecond: <image>", "assistant": "A ball."}]},
            [("user", ["First: ", "[B]", "\nSecond: ", "[R]"]), ANSWER],
        ),
        (
            {"image_2": RED, "image_1": BLUE, "question": "Is <image 2> like <image 1>?", "answer": "No."},
            [("user", ["Is ", "[R]", " like ", "[B]", "?"]), ("assistant", ["No."])],
        ),
        (
            {
                "index": 3,
                "image": encoded(RED),
                "hint": "Look.",
                "question": "Which?",
                "A": "one",
                "B": "two",
                "answer": "A",
            },
            [("user", ["[R]", "Look.\nWhich?\nA. one\nB. two"]), ("assistant", ["A"])],
        ),
        (
            {"texts": [None, "A ball.", None, "A cube."], "images": [RED, None, BLUE, None]},
            [("user", ["[R]"]), ("assistant", ["A ball.", "[B]", "A cube."])],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "List HTML tags"},
                    {"from": "gpt", "value": "<video>, <img>"},
                ]
            },
            [("user", ["List HTML tags"]), ("assistant", ["<video>, <img>"])],
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Does <video> close itself?"},
                    {"from": "gpt", "value": "No."},
                ]
            },
            [("user", ["Does <video> close itself?"]), ("assistant", ["No."])],
        ),
    ],
)
def test_row_shows_all_of_its_media_at_their_places(row: dict[str, Any], expected: list[tuple[str, list[str]]]) -> None:
    reading, turns = shown(row)
    assert turns == expected
    assert reading.tally.media == len(reading.media) == str(expected).count("[R]") + str(expected).count("[B]")
    assert reading.tally.marks + reading.tally.implied == reading.tally.media


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"videos": ["a.mp4"], "messages": MUTE}, r"0 <video> placeholders but 1 video \(`videos`\)"),
        ({"clip": "s3://bucket/a.bin", "messages": MUTE}, r"placeholders but 1 image \(`clip`\)"),
        ({"extra": {"deep": ["x/b.webm"]}, "messages": MUTE}, r"field `extra\.deep` holds a film"),
        ({"audios": ["a.wav"], "messages": MUTE}, "field `audios` holds a sound"),
        ({"voice": {"array": [0.1], "sampling_rate": 16000, "path": None}, "messages": MUTE}, "`voice` holds a sound"),
        (
            {"image": RED, "depth": "depth/1.png", "conversations": ASK},
            "field `depth` holds a picture that no place shows",
        ),
        ({"image": RED, "images": [RED, BLUE], "conversations": ASK}, "`image` and `images` hold different pictures"),
        ({"imgs": [RED], "messages": MUTE}, r"0 <image> placeholders but 1 image \(`imgs`\)"),
        ({"data": RED, "messages": MUTE}, r"0 <image> placeholders but 1 image \(`data`\)"),
        ({"file_name": "a.JPEG", "messages": MUTE}, r"\(`file_name`\)"),
        ({"image_1": RED, "image_2": BLUE, "conversations": ASK}, r"1 <image> placeholder but 2 images"),
        ({"image": RED, "texts": [{"user": "<image> or <image>?", "assistant": "x"}]}, "2 <image> placeholders but 1"),
        ({"image": RED, "messages": [{**MUTE[0], "images": [BLUE]}, MUTE[1]]}, "1 <image> placeholder but 2 images"),
        ({"image": image(b""), "messages": MUTE}, "0 <image> placeholders but 1 image"),
        ({"image": [[[1, 2, 3]] * 4] * 4, "messages": MUTE}, "field `image` holds data that may be media"),
        ({"frames": [[0.5] * 9] * 9, "messages": MUTE}, "field `frames` holds data that may be media"),
        (
            {"more": {"views": [{"file": "a.png"}]}, "query": "What?", "response": "x"},
            r"field `more\.views\[\]\.file` holds a picture",
        ),
        ({"embedding": bytes(300), "messages": MUTE}, "field `embedding` holds data that may be media"),
        (
            {"messages": [{"role": "user", "content": "<video>Why is it funny?"}, MUTE[1]]},
            "turn 0 has a place '<video>'",
        ),
        (
            {"messages": [{"role": "user", "content": "What is said?\n<audio>"}, MUTE[1]]},
            "turn 0 has a place '<audio>'",
        ),
        ({"messages": [{"role": "user", "content": "Look here. <video>"}, MUTE[1]]}, "turn 0 has a place '<video>'"),
        (
            {"image": RED, "video": "a.mp4", "conversations": ASK},
            "field `video` holds a film, which is read as the only",
        ),
        (
            {"videos": ["a.mp4", "b.mp4"], "conversations": ASK},
            "field `videos` holds a film, which is read as the only",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, MUTE[1]]}, "part of type 'input_audio'"),
        ({"messages": [MUTE[0], {**MUTE[1], "tool_calls": [{"name": "x"}]}]}, "`tool_calls` of turn 1 is not read"),
        ({"messages": MUTE, "conversations": ASK}, "two fields of turns that differ"),
        ({"messages": [{"role": "system", "content": "a"}, *MUTE], "system": "b"}, "`system` in addition to a"),
        ({"messages": [{"role": "user", "content": "a", "value": "b"}, MUTE[1]]}, "several texts that differ"),
        ({"image": RED, "caption": "<image>\nA ball."}, "a caption with 1 <image> in its text"),
        ({"image": RED, "caption": ["one", "two"]}, "2 texts in one row: choose one"),
        ({"image": RED, "conversations": {"from": ["human"], "value": ["a", "b"]}}, "neither a caption nor a list"),
        (
            {"image": RED, "conversations": None, "caption": ""},
            "column 'conversations' is empty|column 'caption' is empty",
        ),
        ({"image": RED, "conversations": []}, "`conversations` holds no turn"),
        ({"conversations": "[]"}, "`conversations` holds no turn"),
        ({"conversations": "{}"}, "neither a caption nor a list of turns"),
        ({"texts": ["Only text.", None], "images": [None, RED]}, "without text after its first picture"),
    ],
)
def test_row_that_would_show_less_is_refused_by_name(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        shown(row)


def test_refused_row_tells_how_many_media_it_held() -> None:
    with pytest.raises(RowError) as caught:
        read_row({"images": [RED, BLUE], "videos": ["a.mp4"], "messages": MUTE})
    assert caught.value.tally.media == 3


def test_field_that_is_ignored_is_set_aside_and_counted() -> None:
    rules = RowRules(ignored=frozenset(("depth", "clip")))
    reading, turns = shown({"image": RED, "depth": BLUE, "clip": "a.mp4", "conversations": ASK}, rules)
    assert turns == ONE
    assert (reading.tally.media, reading.tally.set_aside) == (1, 2)


def test_field_that_is_named_is_the_one_that_is_shown() -> None:
    rules = RowRules(image_field="second", ignored=frozenset(("first",)))
    assert shown({"first": BLUE, "second": RED, "conversations": ASK}, rules)[1] == ONE


def test_missing_placeholder_is_added_only_when_asked() -> None:
    rules = RowRules(policy=SchemaPolicy(prepend_missing_placeholder=True))
    reading, turns = shown({"image": RED, "messages": MUTE}, rules)
    assert turns == ONE
    assert (reading.tally.marks, reading.tally.implied) == (0, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (name, "picture")
            for name in ("image", "Image", "imgs", "image_path", "imagePath", "PICTURE", "jpg", "img0")
        ),
        *((name, "film") for name in ("videos", "video_file", "clip")),
        *(
            (name, None)
            for name in ("image_width", "num_images", "image_id", "image_caption", "width_list", "source", "answer")
        ),
    ],
)
def test_media_kind_of_a_name(name: str, kind: str | None) -> None:
    assert media_kind(name) == kind


def test_find_media_passes_over_texts_and_numbers() -> None:
    row = {
        "messages": [{"role": "user", "content": "open a.jpg"}, {"role": "assistant", "content": "b.png"}],
        "question": "what.png",
        "image_size": [3, 4],
        "similarity": 0.3,
        "md5": "d41d8cd98f00b204e9800998ecf8427e",
        "hash": bytes(16),
        "license": None,
    }
    assert find_media(row) == []
    assert [family(name) for name in ("image", "image_2", "images", "Image-10")] == ["image"] * 4
