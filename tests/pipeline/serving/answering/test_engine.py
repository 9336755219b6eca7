"""Questions join and leave a batch while others are answered, and a failure costs only what it must."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.generation.decoding import Decoder
from pipeline.generation.generator import Generator
from pipeline.generation.requests import Reply, Sampling
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.serving.answering.engine import Engine, Piece, Question
from pipeline.serving.answering.opening import open_any
from pipeline.serving.refusals import RefusedError
from tests.jobs.conftest import png

Arrived = queue.Queue[Piece | Exception]


@pytest.fixture(scope="module")
def generator(model_folder: Path) -> Generator:
    return Generator(*open_any(model_folder))


@pytest.fixture
def engine(generator: Generator) -> Iterator[Engine]:
    engine = Engine(generator, max_rows=2)
    yield engine
    engine.stop()
    assert not engine.is_alive


def question(text: str, num_tokens: int, *images: bytes) -> Question:
    parts: tuple[Image | str, ...] = (*(Image() for _ in images), text)
    return Question(Conversation((Turn("user", parts),)), images, Sampling(num_tokens))


def collect(arrived: Arrived) -> Reply | Exception:
    """Return the end of an answer, whose pieces must add up to it."""
    text = ""
    while True:
        piece = arrived.get(timeout=60)
        if isinstance(piece, Exception):
            return piece
        text += piece.text
        if piece.reply is not None:
            assert text == piece.reply.text
            return piece.reply


def test_more_questions_than_rows_are_all_answered_as_alone(engine: Engine, generator: Generator) -> None:
    questions = [question(f"Number {num}?", 2 + 3 * num, *[png(num, 37, 53)] * (num % 3)) for num in range(7)]
    arrived: list[Arrived] = [queue.Queue() for _ in questions]
    for one, into in zip(questions, arrived, strict=True):
        engine.submit(one, into.put)
    found = [collect(one) for one in arrived]
    prompts = [generator.prepare(one.conversation, one.images) for one in questions]
    alone = [generator.generate([prompt], [one.sampling])[0] for prompt, one in zip(prompts, questions, strict=True)]
    assert found == alone


def test_cancelled_answer_ends_early_and_makes_room(engine: Engine) -> None:
    long: Arrived = queue.Queue()
    ticket = engine.submit(question("Go on.", 900), long.put)
    assert isinstance(long.get(timeout=60), Piece)
    engine.cancel(ticket)
    reply = collect_rest(long)
    assert reply.finish_reason == "cancelled"
    assert len(reply.token_ids) < 900
    after: Arrived = queue.Queue()
    engine.submit(question("Next?", 3), after.put)
    assert isinstance(collect(after), Reply)


def collect_rest(arrived: Arrived) -> Reply:
    while True:
        piece = arrived.get(timeout=60)
        assert isinstance(piece, Piece)
        if piece.reply is not None:
            return piece.reply


def test_picture_that_cannot_be_decoded_costs_its_own_question_only(engine: Engine) -> None:
    bad, good = queue.Queue[Any](), queue.Queue[Any]()
    engine.submit(question("What?", 5, png(1, 131, 97)[:700]), bad.put)
    engine.submit(question("What?", 5, png(1, 131, 97)), good.put)
    refused = collect(bad)
    assert isinstance(refused, RefusedError)
    assert (refused.status, refused.code) == (400, "image_truncated")
    assert isinstance(collect(good), Reply)


def test_step_that_fails_is_told_to_its_questions_and_the_next_work(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Decoder) -> Any:
        raise RuntimeError("out of memory in /secret/place")

    arrived: Arrived = queue.Queue()
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", fail)
        engine.submit(question("What?", 5), arrived.put)
        refused = collect(arrived)
    assert isinstance(refused, RefusedError)
    assert refused.status == 500
    assert "secret" not in refused.message
    after: Arrived = queue.Queue()
    engine.submit(question("Next?", 3), after.put)
    assert isinstance(collect(after), Reply)


def test_answer_ends_where_the_model_has_no_more_positions(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.model.config, "max_position_embeddings", 61)
    engine, arrived = Engine(generator, max_rows=2), queue.Queue[Any]()
    asked = question("Go on.", 1000)
    engine.submit(asked, arrived.put)
    reply = collect(arrived)
    assert isinstance(reply, Reply)
    prompt = generator.prepare(asked.conversation, ())
    assert (reply.finish_reason, len(reply.token_ids)) == ("length", 61 - prompt.num_tokens)
    engine.submit(question("word " * 61, 1), arrived.put)
    refused = collect(arrived)
    assert isinstance(refused, RefusedError)
    assert refused.code == "context_length_exceeded"
    engine.stop()
