"""The chat at the terminal gives the answers of `generate`, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.generation.generator import Generator
from pipeline.generation.requests import Sampling
from pipeline.samples.prompt.conversation import Conversation, Image, Turn
from pipeline.serving.answering.engine import Engine, Ticket
from pipeline.serving.answering.opening import open_any
from pipeline.serving.answering.replica import Replica
from pipeline.serving.terminal import TerminalChat
from tests.jobs.conftest import png


def talk(replica: Replica, *lines: str, num_tokens: int = 9) -> str:
    said: list[str] = []
    typed: Iterator[str] = iter(lines)

    def read_line() -> str:
        for line in typed:
            said.append(f"> {line}\n")
            return line
        raise EOFError

    TerminalChat(replica, "tiny", Sampling(num_tokens), said.append).run(read_line)
    return "".join(said)


def test_turns_retry_and_new_are_answered_as_by_generate(replica: Replica, model_folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    images = [png(1, 53, 37), png(2, 31, 61)]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(image)
    generator = Generator(*open_any(model_folder))

    def answer(*turns: Turn) -> str:
        conversation = Conversation(turns)
        prompt = generator.prepare(conversation, images[: conversation.num_images])
        return generator.generate([prompt], [Sampling(9)])[0].text

    first = Turn("user", (Image(), "What is it?"))
    one = answer(first)
    two = answer(first, Turn("assistant", (one,)), second := Turn("user", (Image(), "And this?")))
    assert second.parts[0] == Image()
    alone = answer(Turn("user", ("Hello",)))
    said = talk(
        replica,
        f"/image {files[0]}",
        "What is it?",
        f"/image {files[1]}",
        "And this?",
        "/retry",
        "/new",
        "Hello",
        "/quit",
    )
    answers = [line for line in said.splitlines() if not line.startswith(("> ", "/image FILE", "picture "))]
    assert "\n".join(answers) == "\n".join([one, two, two, alone])


def test_prompt_is_shown_and_mistakes_are_explained(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("words")
    said = talk(replica, "/prompt", "/image nowhere", f"/image {tmp_path / 'no.png'}", "/help", "Hi", "/prompt")
    assert "write a message first" in said
    assert "nowhere: no such file" in said
    assert "5 bytes of no known format" in said
    assert said.count("/retry, /new") == 2
    assert "USER: Hi ASSISTANT:" in said


def test_interrupt_keeps_what_was_written(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[Ticket] = []
    keep = Engine.cancel

    def cancel(engine: Engine, ticket: Ticket) -> None:
        cancelled.append(ticket)
        keep(engine, ticket)

    monkeypatch.setattr(Engine, "cancel", cancel)
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        if len(said) == 4:
            raise KeyboardInterrupt

    lines = iter(["Go on.", "/prompt"])

    def read_line() -> str:
        for line in lines:
            return line
        raise EOFError

    TerminalChat(replica, "tiny", Sampling(900), write).run(read_line)
    assert cancelled
    assert replica.is_alive
    assert " (stopped)" in said
    assert "USER: Go on. ASSISTANT:" in "".join(said)
