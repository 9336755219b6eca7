"""Samples: three layouts, image order, placeholder counts, and every way a conversation can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import DataError, Reason
from pipeline.samples import schema
from pipeline.samples.prompt.conversation import Image, Part, Turn
from pipeline.samples.schema import Sample, SchemaPolicy, conversation_from_turns, parse_sample

HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A ball."}
ASKED = {"from": "human", "value": "<image>\nWhat?"}
STRICT = SchemaPolicy()


def parse(tree: object, images: dict[str, bytes] | None = None, policy: SchemaPolicy = STRICT, **more: bytes) -> Sample:
    return parse_sample("dir/k", {**(images or {}), "json": json.dumps(tree).encode(), **more}, policy)


def reason_of(tree: object, images: dict[str, bytes] | None = None, policy: SchemaPolicy = STRICT) -> str:
    with pytest.raises(DataError) as caught:
        parse(tree, images, policy)
    assert caught.value.key == "dir/k"
    return caught.value.reason.value


def pictures(*names: str) -> dict[str, bytes]:
    return {name: name.encode() for name in names}


def test_caption_puts_every_image_before_the_stripped_text() -> None:
    members = {**pictures("10.jpg", "2.jpg"), "txt": b" a ball \n"}
    sample = parse_sample("k", members)
    assert sample.kind == "caption"
    assert sample.images == (b"2.jpg", b"10.jpg")
    assert sample.conversation.turns == (Turn("user", (Image(), Image())), Turn("assistant", ("a ball",)))


@pytest.mark.parametrize(
    "metadata", [b'{"url": "http://x", "similarity": NaN}', b"broken", b"[]", b'{"messages_count": 1}']
)
def test_caption_with_metadata_json_ignores_it(metadata: bytes) -> None:
    sample = parse_sample("k", {"jpg": b"i", "txt": b"a ball", "json": metadata})
    assert (sample.kind, sample.images) == ("caption", (b"i",))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"a ball"}, "missing_image"),
        ({"jpg": b"i"}, "missing_annotation"),
        ({"jpg": b"i", "txt": b" \n"}, "turn_empty"),
        ({"jpg": b"i", "txt": b"\xff"}, "text_invalid_unicode"),
        ({"jpg": b"i", "json": b'{"url": "x"}'}, "missing_annotation"),
        ({"jpg": b"i", "json": b"[1]"}, "missing_annotation"),
        ({"jpg": b"i", "json": b'{"conversations": null}'}, "missing_annotation"),
        ({"jpg": b"i", "json": b"{"}, "json_invalid"),
        (
            {"jpg": b"i", "txt": b"a", "json": json.dumps({"conversations": [ASKED, GPT]}).encode()},
            "ambiguous_annotation",
        ),
        ({"0.jpg": b"i", "0.png": b"j", "txt": b"a"}, "duplicate_member"),
    ],
)
def test_members_that_make_no_sample_are_refused(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_sample("k", members)
    assert (caught.value.reason.value, caught.value.key) == (reason, "k")


def test_llava_json_keeps_placeholders_in_place() -> None:
    first = {"from": "human", "value": "First <image> second <image>?"}
    sample = parse(
        {"conversations": [{"from": "system", "value": "Be brief."}, first, GPT]}, pictures("0.png", "1.png")
    )
    parts: tuple[Part, ...] = ("First ", Image(), " second ", Image(), "?")
    assert sample.conversation.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", parts),
        Turn("assistant", ("A ball.",)),
    )
    assert (sample.kind, sample.images) == ("instruction", (b"0.png", b"1.png"))


def test_messages_with_typed_parts_take_text_literally() -> None:
    content = [{"type": "text", "text": "Is <image> a token?"}, {"type": "image"}, {"type": "text", "text": ""}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "No."}]
    sample = parse({"messages": messages}, pictures("jpg"))
    assert sample.conversation.turns[0] == Turn("user", ("Is <image> a token?", Image()))
    assert sample.images == (b"jpg",)


def test_messages_whose_parts_name_files_follow_the_names() -> None:
    content = [
        {"type": "image", "image": "1.png"},
        {"type": "image", "image": "0.png"},
        {"type": "text", "text": "Which?"},
    ]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "Left."}]},
    ]
    assert parse({"messages": messages}, pictures("0.png", "1.png")).images == (b"1.png", b"0.png")


def test_text_only_sample_has_no_images() -> None:
    assert parse({"conversations": [HUMAN, GPT]}).images == ()
    assert parse({"image": [], "conversations": [HUMAN, GPT]}).images == ()
    assert parse({"image": None, "conversations": [HUMAN, GPT]}).images == ()


@pytest.mark.parametrize("num_images", range(4))
@pytest.mark.parametrize("num_placeholders", range(4))
def test_placeholders_must_equal_images(num_placeholders: int, num_images: int) -> None:
    names = [f"{idx}.png" for idx in range(num_images)]
    turn = {"from": "human", "value": "<image>" * num_placeholders + " What?"}
    tree = {"image": names, "conversations": [turn, GPT]} if names else {"conversations": [turn, GPT]}
    if num_placeholders == num_images:
        assert len(parse(tree, pictures(*names)).images) == num_images
    else:
        assert reason_of(tree, pictures(*names)) == "image_token_mismatch"


@pytest.mark.parametrize(
    "system", ["<image> Be brief.", "<image>", [{"type": "image"}, {"type": "text", "text": "Be"}]]
)
def test_image_in_the_system_turn_is_refused(system: Any) -> None:
    turns = [{"from": "system", "value": system}, HUMAN, GPT]
    assert reason_of({"conversations": turns}, pictures("jpg")) == "image_token_mismatch"


def test_sample_of_more_images_or_bytes_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_IMAGES", 2)
    names = pictures("0.png", "1.png", "2.png")
    with pytest.raises(DataError, match="3 images, at most 2"):
        parse_sample("k", {**names, "txt": b"x"})
    assert len(parse_sample("k", {**pictures("0.png", "1.png"), "txt": b"x"}).images) == 2
    monkeypatch.setattr(schema, "MAX_SAMPLE_BYTES", 10)
    with pytest.raises(DataError, match="key k: 11 bytes, at most 10") as caught:
        parse_sample("k", {**pictures("0.png", "1.png"), "txt": b"x"})
    assert caught.value.reason == Reason.SAMPLE_TOO_LARGE


def test_prepend_policy_repairs_exactly_one_image_without_placeholder() -> None:
    policy = SchemaPolicy(prepend_missing_placeholder=True)
    sample = parse({"image": "x.jpg", "conversations": [HUMAN, GPT, HUMAN, GPT]}, pictures("jpg"), policy)
    assert [turn.parts for turn in sample.conversation.turns[:3:2]] == [(Image(), "\n", "What?"), ("What?",)]
    assert reason_of({"conversations": [HUMAN, GPT]}, pictures("0.jpg", "1.jpg"), policy) == "image_token_mismatch"
    assert reason_of({"conversations": [ASKED, GPT]}, None, policy) == "image_token_mismatch"


def test_leading_answer_is_refused_unless_the_policy_drops_it() -> None:
    tree = {"conversations": [GPT, HUMAN, GPT]}
    assert reason_of(tree) == "role_order"
    assert len(parse(tree, None, SchemaPolicy(drop_leading_answer=True)).conversation.turns) == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "conversation_empty"),
        ("text", "conversation_empty"),
        (["hi"], "json_invalid"),
        ([HUMAN], "no_assistant"),
        ([HUMAN, HUMAN, GPT], "role_order"),
        ([HUMAN, GPT, GPT], "role_order"),
        ([HUMAN, GPT, HUMAN], "role_order"),
        ([HUMAN, GPT, {"from": "system", "value": "x"}], "role_order"),
        ([{"from": "system", "value": "x"}], "no_assistant"),
        ([{"from": "human", "value": ""}, GPT], "turn_empty"),
        ([HUMAN, {"from": "gpt", "value": " \n"}], "turn_empty"),
        ([HUMAN, {"from": "gpt", "value": "<image>"}], "turn_empty"),
        ([{"from": "user2", "value": "x"}, GPT], "role_unknown"),
        ([{"value": "x"}, GPT], "role_unknown"),
        ([{"from": 3, "value": "x"}, GPT], "role_unknown"),
        ([{"from": "human", "value": 3}, GPT], "json_invalid"),
        ([{"from": "human"}, GPT], "json_invalid"),
        ([{"from": "human", "content": [{"type": "video"}]}, GPT], "json_invalid"),
        ([{"from": "human", "content": ["x"]}, GPT], "json_invalid"),
    ],
)
def test_broken_conversation_is_refused_with_its_reason(turns: Any, reason: str) -> None:
    assert reason_of({"conversations": turns}) == reason


@pytest.mark.parametrize(
    ("names", "stored", "expected"),
    [
        (["1.png", "0.png"], ("0.png", "1.png"), ("1.png", "0.png")),
        (["k.1.png", "k.0.png"], ("0.png", "1.png"), ("1.png", "0.png")),
        (["some/dir/K.1.PNG", "k.0.png"], ("0.png", "1.png"), ("1.png", "0.png")),
        ("coco/train2017/000000033471.jpg", ("jpg",), ("jpg",)),
        (["a.jpg", "b.jpg"], ("10.jpg", "9.jpg"), ("9.jpg", "10.jpg")),
        (["0.png", "0.png"], ("0.png",), ("0.png", "0.png")),
    ],
)
def test_image_names_decide_the_order(names: Any, stored: tuple[str, ...], expected: tuple[str, ...]) -> None:
    turn = {"from": "human", "value": "<image>" * len(expected) + "?"}
    sample = parse({"image": names, "conversations": [turn, GPT]}, pictures(*stored))
    assert sample.images == tuple(name.encode() for name in expected)


@pytest.mark.parametrize(
    ("names", "stored", "reason"),
    [
        (["0.png", "1.png"], ("0.png",), "missing_image"),
        ("0.png", (), "missing_image"),
        (["0.png", "x.png"], ("0.png", "1.png"), "missing_image"),
        (["0.png"], ("0.png", "1.png"), "unreferenced_image"),
        ([], ("0.png",), "unreferenced_image"),
        ("http://example.org/a.jpg", ("jpg",), "remote_image_forbidden"),
        (["0.png", "s3://bucket/a.jpg"], ("0.png", "1.png"), "remote_image_forbidden"),
        ("data:image/png;base64,AA", ("png",), "remote_image_forbidden"),
        ("//example.org/a.jpg", ("jpg",), "remote_image_forbidden"),
        (" HTTPS://example.org/a.jpg", ("jpg",), "remote_image_forbidden"),
        (3, ("jpg",), "json_invalid"),
        ([3], ("jpg",), "json_invalid"),
    ],
)
def test_image_names_that_do_not_fit_are_refused(names: Any, stored: tuple[str, ...], reason: str) -> None:
    turn = {"from": "human", "value": "<image>" * len(stored) + "?"}
    assert reason_of({"image": names, "conversations": [turn, GPT]}, pictures(*stored)) == reason


@pytest.mark.parametrize(
    "tree",
    [
        {"image": None, "images": ["1.jpg", "0.jpg"]},
        {"image": [], "images": ["1.jpg", "0.jpg"]},
        {"image": "", "images": ["1.jpg", "0.jpg"], "video": None},
        {"image": ["1.jpg", "0.jpg"], "images": None, "video": []},
        {"images": [{"path": "1.jpg"}, {"path": "0.jpg", "bytes": None}], "video": ""},
    ],
)
def test_fields_without_content_are_as_good_as_absent(tree: dict[str, Any]) -> None:
    turns = [{"from": "human", "value": "<image><image>What?", "role": None, "content": None}, GPT]
    for fields in ({"conversations": turns, "messages": None}, {"conversations": None, "messages": turns}):
        assert parse({**tree, **fields}, pictures("0.jpg", "1.jpg")).images == (b"1.jpg", b"0.jpg")


def test_text_with_an_empty_image_name_needs_no_image() -> None:
    assert parse({"image": "", "conversations": [HUMAN, GPT]}).images == ()


def test_parts_without_a_type_are_told_by_what_they_hold() -> None:
    content = [{"image": "1.jpg"}, {"text": "and"}, {"image": "0.jpg"}, {"text": "Which?"}]
    sample = parse({"messages": [{"role": "user", "content": content}, GPT]}, pictures("0.jpg", "1.jpg"))
    assert sample.images == (b"1.jpg", b"0.jpg")
    assert sample.conversation.turns[0].parts == (Image(), "and", Image(), "Which?")


def test_image_url_part_is_refused() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    assert reason_of({"messages": messages}, pictures("jpg")) == "remote_image_forbidden"


def test_error_names_counts_and_advice_but_no_user_text() -> None:
    turn = {"from": "human", "value": "<image><image> my secret"}
    with pytest.raises(DataError) as caught:
        parse({"conversations": [turn, GPT]}, pictures("jpg"))
    located = caught.value.at(shard="train-0003.tar")
    assert str(located) == (
        "train-0003.tar, key dir/k: 2 <image> placeholders but 1 image; add the missing image or remove the placeholder"
    )
    assert located.reason == Reason.IMAGE_TOKEN_MISMATCH


def test_conversation_from_turns_reads_a_prompt_without_answer() -> None:
    conversation = conversation_from_turns([{"from": "human", "value": "<image>\nWhat?"}])
    assert conversation.turns == (Turn("user", (Image(), "\nWhat?")),)
