"""Answers in this process, without Ray: for one person at a page or a terminal."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pipeline.generation.requests import Reply
from pipeline.serving.answering.engine import Piece, Question
from pipeline.serving.answering.replica import Replica
from pipeline.serving.refusals import RefusedError


class LocalBackend:
    """Asks a replica in this process; a `Backend`."""

    def __init__(self, replica: Replica) -> None:
        """Use opened models.

        Args:
            replica: holds them.
        """
        self._replica = replica

    async def is_ready(self) -> bool:
        """Whether a request would be answered."""
        return self._replica.is_alive

    async def complete(self, model: str, question: Question) -> Reply:
        """Return a whole answer; see `Backend.complete`."""
        found = await self._replica.complete(model, question)
        if isinstance(found, RefusedError):
            raise found
        return found

    async def stream(self, model: str, question: Question) -> AsyncGenerator[Piece, None]:
        """Yield an answer in pieces; see `Backend.stream`."""
        pieces = self._replica.stream(model, question)
        try:
            async for piece in pieces:
                if isinstance(piece, RefusedError):
                    raise piece
                yield piece
        finally:
            await pieces.aclose()
