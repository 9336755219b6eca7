"""A chat at the terminal: turns as lines, pictures as paths, answers as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from pipeline.generation.requests import Sampling
from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn
from pipeline.serving.answering.engine import Question
from pipeline.serving.answering.replica import Replica
from pipeline.serving.limits import Limits
from pipeline.serving.refusals import RefusedError
from pipeline.serving.wire.images import check_image

HELP = "/image FILE adds a picture to the next message; /retry, /new, /prompt, /quit; Ctrl-C stops an answer"

ReadLine = Callable[[], str]
Write = Callable[[str], None]


class TerminalChat:
    """One conversation with one model."""

    def __init__(self, replica: Replica, model: str, sampling: Sampling, write: Write) -> None:
        """Begin with no turns.

        Args:
            replica: holds the model.
            model: its name.
            sampling: of every answer.
            write: shows text as it is, without a line break.
        """
        self._replica, self._model, self._sampling, self._write = replica, model, sampling, write
        self._turns: list[Turn] = []
        self._shown: list[bytes] = []
        """Images of all turns."""
        self._pending: list[bytes] = []
        """Images of the message being written."""

    def run(self, read_line: ReadLine) -> None:
        """Talk until `/quit` or the end of the input."""
        self._write(HELP + "\n")
        while True:
            try:
                line = read_line().strip()
            except (EOFError, KeyboardInterrupt):
                self._write("\n")
                return
            if line == "/quit":
                return
            try:
                self._take(line)
            except RefusedError as error:
                self._write(f"{error.message}\n")

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            self._add_picture(Path(rest.strip()).expanduser())
        elif command == "/new":
            self._turns, self._shown, self._pending = [], [], []
        elif command == "/retry":
            if self._turns and self._turns[-1].role == "assistant":
                self._turns.pop()
            if self._turns:
                self._answer()
        elif command == "/prompt":
            self._show_prompt()
        elif command.startswith("/"):
            self._write(HELP + "\n")
        elif line or self._pending:
            if self._turns and self._turns[-1].role == "user":  # it got no answer; this one takes its place
                gone = self._turns.pop()
                self._shown = self._shown[: len(self._shown) - sum(isinstance(part, Image) for part in gone.parts)]
            parts: tuple[Part, ...] = (*(Image() for _ in self._pending), *([line] if line else []))
            self._turns.append(Turn("user", parts))
            self._shown, self._pending = self._shown + self._pending, []
            self._answer()

    def _add_picture(self, path: Path) -> None:
        if not path.is_file():
            self._write(f"{path}: no such file\n")
            return
        self._pending.append(check_image(path.read_bytes(), Limits().image, str(path)))
        self._write(f"picture {len(self._shown) + len(self._pending)}: {path.name}\n")

    def _question(self) -> Question:
        return Question(Conversation(tuple(self._turns)), tuple(self._shown), self._sampling)

    def _show_prompt(self) -> None:
        if not self._turns or self._turns[-1].role != "user":
            turns = self._turns[:-1] if self._turns else []
        else:
            turns = self._turns
        if not turns:
            self._write("write a message first\n")
            return
        question = self._question()._replace(conversation=Conversation(tuple(turns)))
        view = asyncio.run(self._replica.describe(self._model, question))
        if isinstance(view, RefusedError):
            raise view
        images = iter(view.images)
        for kind, text in view.pieces:
            if kind == "image":
                image = next(images)
                text = f"[{image.width}x{image.height}, {image.num_tiles} tiles, {image.num_tokens} tokens]"
            self._write(text)
        self._write(f"\n{view.num_tokens} tokens\n")

    def _answer(self) -> None:
        """Write the answer as it comes; Ctrl-C keeps what came so far."""
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(pieces))
        except KeyboardInterrupt:
            self._write(" (stopped)")
        self._write("\n")
        if text := "".join(pieces):
            self._turns.append(Turn("assistant", (text,)))

    async def _stream(self, pieces: list[str]) -> None:
        answer = self._replica.stream(self._model, self._question())
        try:
            async for piece in answer:
                if isinstance(piece, RefusedError):
                    raise piece
                pieces.append(piece.text)
                self._write(piece.text)
        finally:
            await answer.aclose()
