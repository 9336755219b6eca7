from __future__ import annotations

import random

import pytest

from pipeline.run_folder import log_parts
from pipeline.run_folder.log_parts import LogParts
from pipeline.storage.objects import ObjectFolder


def read(objects: ObjectFolder) -> bytes:
    return LogParts("a.jsonl").read_new(objects, b"")


def test_reader_that_follows_and_one_that_comes_late_see_what_was_written(
    objects: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_parts, "_MERGED", 7)
    rng, writer, follower = random.Random(11), LogParts("a.jsonl"), LogParts("a.jsonl")
    content = seen = b""
    for number in range(61):
        offset = len(content) if rng.random() < 0.9 else rng.randrange(len(content) + 1)
        piece = b"%d\n" % number * rng.randrange(4)
        content = content[:offset] + piece
        assert writer.add(objects, offset, piece)
        while (due := writer.due_merge()) is not None:
            assert writer.add(objects, due[0], content[due[0] :], due[1])
        if rng.random() < 0.2:
            seen = follower.read_new(objects, seen)
            assert seen == content
    assert read(objects) == content
    assert len(objects.list("a.jsonl/")) < 20  # of 61


def test_second_writer_takes_the_number_and_the_first_is_told(objects: ObjectFolder) -> None:
    first, second = LogParts("a.jsonl"), LogParts("a.jsonl")
    assert first.add(objects, 0, b"1\n")
    assert second.read_new(objects, b"") == b"1\n"
    assert second.add(objects, 2, b"2\n")
    assert not first.add(objects, 2, b"3\n")
    assert read(objects) == b"1\n2\n"


def test_late_part_of_a_writer_that_was_replaced_is_not_read(objects: ObjectFolder) -> None:
    first, second = LogParts("a.jsonl"), LogParts("a.jsonl")
    first.add(objects, 0, b"1\n")
    second.read_new(objects, b"")
    second.add(objects, 2, b"")  # number 2, which the next one removes
    second.add(objects, 2, b"2\n")
    assert first.add(objects, 2, b"late\n")  # so its number is free again
    assert read(objects) == b"1\n2\n"
    assert not first.add(objects, 7, b"later\n")
