"""One copy of the served models: opens them, and answers questions in batches. Runs inside a Ray Serve replica."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from pipeline.generation.requests import Reply
from pipeline.serving.options import ServedModel
from pipeline.serving.refusals import RefusedError

if TYPE_CHECKING:  # the process that listens needs no torch
    from pipeline.serving.answering.engine import Piece, Question
    from pipeline.serving.answering.prompt_view import PromptView

logger = logging.getLogger(__name__)


class Replica:
    """The models by name, each with its engine; adapters of one base share its weights."""

    def __init__(self, models: Sequence[ServedModel], device: str, batch_rows: int, threads: int) -> None:
        """Open the models.

        Args:
            models: what to serve.
            device: cpu, cuda, ...
            batch_rows: answers that each writes at the same time.
            threads: of torch, on the CPU.

        Raises:
            ConfigError: a folder holds no model, or adapters are of another base.
            ValueError: a file is missing or does not fit.
        """
        import torch

        from pipeline.generation.generator import Generator
        from pipeline.serving.answering.engine import Engine
        from pipeline.serving.answering.opening import open_any
        from pipeline.serving.answering.sharing import share_base

        torch.set_num_threads(threads)
        opened = {one.name: open_any(one.path, device) for one in models}
        first = models[0].name
        for name, other in opened.items():
            if name != first:
                share_base(opened[first].opened.model, other.opened.model, first, name)
        self._generators = {name: Generator(one.opened, one.tokenizer) for name, one in opened.items()}
        self._engines = {name: Engine(generator, batch_rows) for name, generator in self._generators.items()}

    @property
    def is_alive(self) -> bool:
        """Whether all engines work."""
        return all(engine.is_alive for engine in self._engines.values())

    async def check_health(self) -> None:
        """Tell Ray Serve that this copy works.

        Raises:
            RuntimeError: an engine has ended; Ray Serve then starts another copy.
        """
        if not self.is_alive:
            raise RuntimeError("an engine has ended")

    def close(self) -> None:
        """End the engines; answers under way get no more text."""
        for engine in self._engines.values():
            engine.stop()

    async def describe(self, model: str, question: Question) -> PromptView | RefusedError:
        """Return the prompt of a question as the model gets it, or why there is none."""
        from pipeline.errors import DataError
        from pipeline.serving.answering.prompt_view import view_prompt
        from pipeline.serving.wire.images import image_refusal

        try:
            return await asyncio.to_thread(view_prompt, self._generators[model], question.conversation, question.images)
        except DataError as error:
            return image_refusal(error, "messages")

    async def complete(self, model: str, question: Question) -> Reply | RefusedError:
        """Return a whole answer, or why there is none."""
        async for piece in self.stream(model, question):
            if isinstance(piece, RefusedError):
                return piece
            if piece.reply is not None:
                return piece.reply
        raise AssertionError("an answer ends with its reply")

    async def stream(self, model: str, question: Question) -> AsyncGenerator[Piece | RefusedError, None]:
        """Yield an answer in pieces, the last with the whole reply, or why there is none.

        Text that came while the receiver was busy is sent as one piece.
        """
        from pipeline.serving.answering.engine import Piece

        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Piece | RefusedError]()
        engine = self._engines[model]
        ticket = engine.submit(question, lambda piece: loop.call_soon_threadsafe(arrived.put_nowait, piece))
        try:
            while True:
                piece = await arrived.get()
                while isinstance(piece, Piece) and piece.reply is None and not arrived.empty():
                    following = arrived.get_nowait()
                    if isinstance(following, RefusedError):
                        piece = following
                    else:
                        piece = Piece(piece.text + following.text, following.reply)
                yield piece
                if isinstance(piece, RefusedError) or piece.reply is not None:
                    return
        finally:
            engine.cancel(ticket)  # does nothing after the end
