"""What the HTTP side needs of whatever holds the models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from pipeline.generation.requests import Reply
from pipeline.serving.answering.engine import Piece, Question


class Backend(Protocol):
    """Models that answer."""

    async def is_ready(self) -> bool:
        """Whether a request would be answered now."""

    async def complete(self, model: str, question: Question) -> Reply:
        """Return a whole answer.

        Raises:
            RefusedError: the question cannot be answered, or nothing is there to answer it.
        """

    def stream(self, model: str, question: Question) -> AsyncGenerator[Piece, None]:
        """Return an answer in pieces, the last with the whole reply; closing the iterator cancels it.

        Raises:
            RefusedError: see `complete`; also after some pieces.
        """
