"""Writers of every dialect: from turns to the row that somebody else's tool would have stored.

A dialect says how its rows are stored, which shapes of turns it can say, and whether its rows name files or hold bytes.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tests.fuzz.meaning.truth import Part, Picture, Shape, Turns, colours, picture_bytes

Container = Literal["lines", "array", "parquet", "tsv", "tar", "scattered", "folder", "coco"]
Row = dict[str, Any]
Media = Callable[[int], Any]
"""From a colour to the value in the row for its picture: a file name, bytes, base64."""


class Dialect(NamedTuple):
    """One way to store samples."""

    name: str
    container: Container
    shape: Shape
    write: Callable[[random.Random, Turns], Row]


def file_name(colour: int) -> str:
    """Return the name of the file that holds a picture; endings can be wrong, as those of crawled files."""
    return f"im/{colour:03d}.jpg"


def as_base64(colour: int) -> str:
    return base64.b64encode(picture_bytes(colour)).decode()


def as_uri(colour: int) -> str:
    return f"data:image/png;base64,{as_base64(colour)}"


def as_struct(colour: int) -> dict[str, Any]:
    return {"bytes": picture_bytes(colour), "path": None}


def _marked(parts: list[Part], mark: Callable[[Picture], str] = lambda _: "<image>") -> str:
    return "".join(mark(part) if isinstance(part, Picture) else part for part in parts)


def _llava(turns: Turns) -> list[Row]:
    return [{"from": "human" if role == "user" else "gpt", "value": _marked(parts)} for role, parts in turns]


def _messages(turns: Turns) -> list[Row]:
    return [{"role": role, "content": _marked(parts)} for role, parts in turns]


def _one_or_list(rng: random.Random, values: list[Any]) -> Any:
    return values[0] if len(values) == 1 and rng.random() < 0.5 else values


def _with_images(rng: random.Random, row: Row, turns: Turns, media: Media, field: str) -> Row:
    shown = [media(colour) for colour in colours(turns)]
    return {**row, **({field: _one_or_list(rng, shown) if field == "image" else shown} if shown else {})}


def llava(rng: random.Random, turns: Turns) -> Row:
    return _with_images(rng, {"id": "x", "conversations": _llava(turns)}, turns, file_name, "image")


def sharegpt(rng: random.Random, turns: Turns) -> Row:
    row: Row = {"conversations": _llava(turns)}
    if turns[0][0] == "system":
        row = {"system": turns[0][1][0], "conversations": _llava(turns[1:])}
    return _with_images(rng, row, turns, file_name, "images")


def swift(rng: random.Random, turns: Turns) -> Row:
    return _with_images(rng, {"messages": _messages(turns)}, turns, file_name, "images")


def swift_query(rng: random.Random, turns: Turns) -> Row:
    texts = [_marked(parts) for _, parts in turns]
    pairs = [*zip(texts[::2], texts[1::2], strict=True)]
    row: Row = {"query": pairs[-1][0], "response": pairs[-1][1], "history": [list(pair) for pair in pairs[:-1]]}
    return _with_images(rng, row, turns, file_name, "images")


def qwen(rng: random.Random, turns: Turns) -> Row:
    listed = [
        {"from": role, "value": _marked(parts, lambda one: f"<img>{file_name(one.colour)}</img>")}
        for role, parts in turns
    ]
    return {"id": "x", "conversations": listed}


def per_turn(rng: random.Random, turns: Turns) -> Row:
    listed = []
    for role, parts in turns:
        shown = [file_name(part.colour) for part in parts if isinstance(part, Picture)]
        listed.append({"role": role, "content": _marked(parts), **({"images": shown} if shown else {})})
    return {"messages": listed}


def _typed(turns: Turns, show: Callable[[int], Row]) -> list[Row]:
    return [
        {
            "role": role,
            "content": [
                show(one.colour) if isinstance(one, Picture) else {"type": "text", "text": one} for one in parts
            ],
        }
        for role, parts in turns
    ]


def openai(rng: random.Random, turns: Turns) -> Row:
    name = rng.choice((as_uri, file_name))
    return {"messages": _typed(turns, lambda colour: {"type": "image_url", "image_url": {"url": name(colour)}})}


def anthropic(rng: random.Random, turns: Turns) -> Row:
    def show(colour: int) -> Row:
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": as_base64(colour)}}

    return {"messages": _typed(turns, show)}


def qwen_vl(rng: random.Random, turns: Turns) -> Row:
    return {"messages": _typed(turns, lambda colour: {"type": "image", "image": file_name(colour)})}


def listed_parts(rng: random.Random, turns: Turns) -> Row:
    row = {"messages": _typed(turns, lambda _: {"type": "image"})}
    return _with_images(rng, row, turns, file_name, "images")


def table_turns(rng: random.Random, turns: Turns) -> Row:
    return {"images": [as_struct(colour) for colour in colours(turns)], "conversations": _llava(turns)}


def table_json(rng: random.Random, turns: Turns) -> Row:
    return {"image": [picture_bytes(colour) for colour in colours(turns)], "conversations": json.dumps(_llava(turns))}


def table_base64(rng: random.Random, turns: Turns) -> Row:
    return {"images": [as_base64(colour) for colour in colours(turns)], "messages": _messages(turns)}


def table_numbers(rng: random.Random, turns: Turns) -> Row:
    return {"images": [list(picture_bytes(colour)) for colour in colours(turns)], "messages": _messages(turns)}


def table_numbered(rng: random.Random, turns: Turns) -> Row:
    shown = [*colours(turns), *([None] * 9)][:9]
    columns = {f"image_{idx + 1}": None if one is None else as_struct(one) for idx, one in enumerate(shown)}
    return {**columns, "messages": _messages(turns)}


def pairs(rng: random.Random, turns: Turns) -> Row:
    """FineVision with marks, or Cauldron, whose pictures all come before the first question."""
    shown = [as_struct(colour) for colour in colours(turns)]
    texts = [_marked(parts) for _, parts in turns]
    listed = [
        {"user": question, "assistant": answer, "source": "x"}
        for question, answer in zip(texts[::2], texts[1::2], strict=True)
    ]
    return {"images": shown, "texts": listed}


def bare_pairs(rng: random.Random, turns: Turns) -> Row:
    row = pairs(rng, turns)
    return {**row, "texts": [{**one, "user": one["user"].replace("<image>", "")} for one in row["texts"]]}


def question(rng: random.Random, turns: Turns) -> Row:
    asked, (answered,) = "".join(part for part in turns[0][1] if isinstance(part, str)), turns[1][1]
    shown = [as_base64(colour) for colour in colours(turns[:2])]
    return {"index": "3", "question": asked, "answer": answered, "image": shown[0] if shown else None}


def caption(rng: random.Random, turns: Turns) -> Row:
    return {rng.choice(("image", "jpg")): as_struct(colours(turns)[0]), "caption": turns[1][1][0]}


def caption_line(rng: random.Random, turns: Turns) -> Row:
    return {"image": file_name(colours(turns)[0]), "caption": turns[1][1][0]}


def document(rng: random.Random, turns: Turns) -> Row:
    parts = [part for _, said in turns for part in said]
    return {
        "texts": [part if isinstance(part, str) else None for part in parts],
        "images": [as_struct(part.colour) if isinstance(part, Picture) else None for part in parts],
    }


def stored(rng: random.Random, turns: Turns) -> Row:
    """A sample of a shard: members by extension under `members`, its annotation in the rest."""
    shown = colours(turns)
    members = {f"{idx}.jpg": picture_bytes(colour) for idx, colour in enumerate(shown)}
    listed = _llava(turns) if rng.random() < 0.5 else _typed(turns, lambda _: {"type": "image"})
    field = "conversations" if listed and "from" in listed[0] else "messages"
    named = {"image": [*members]} if shown and rng.random() < 0.7 else {}
    return {"__members__": members, **named, field: listed}


def stored_caption(rng: random.Random, turns: Turns) -> Row:
    return {"__members__": {"jpg": picture_bytes(colours(turns)[0]), "txt": str(turns[1][1][0]).encode()}}


def coco(rng: random.Random, turns: Turns) -> Row:
    return {"file_name": file_name(colours(turns)[0]), "caption": turns[1][1][0]}


DIALECTS = (
    Dialect("llava-array", "array", "free", llava),
    Dialect("llava-lines", "lines", "free", llava),
    Dialect("sharegpt", "array", "free", sharegpt),
    Dialect("swift", "lines", "free", swift),
    Dialect("swift-query", "lines", "free", swift_query),
    Dialect("qwen", "array", "free", qwen),
    Dialect("per-turn", "lines", "free", per_turn),
    Dialect("openai", "lines", "free", openai),
    Dialect("anthropic", "lines", "free", anthropic),
    Dialect("qwen-vl", "lines", "free", qwen_vl),
    Dialect("listed-parts", "lines", "free", listed_parts),
    Dialect("table-turns", "parquet", "free", table_turns),
    Dialect("table-json", "parquet", "free", table_json),
    Dialect("table-base64", "parquet", "free", table_base64),
    Dialect("table-numbers", "parquet", "free", table_numbers),
    Dialect("table-numbered", "parquet", "free", table_numbered),
    Dialect("finevision", "parquet", "free", pairs),
    Dialect("cauldron", "parquet", "first", bare_pairs),
    Dialect("question", "tsv", "first", question),
    Dialect("caption-table", "parquet", "caption", caption),
    Dialect("caption-lines", "lines", "caption", caption_line),
    Dialect("document", "parquet", "document", document),
    Dialect("shard", "tar", "free", stored),
    Dialect("shard-scattered", "scattered", "free", stored),
    Dialect("shard-caption", "tar", "caption", stored_caption),
    Dialect("folder", "folder", "caption", stored_caption),
    Dialect("coco", "coco", "caption", coco),
)
