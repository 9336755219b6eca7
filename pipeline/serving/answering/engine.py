"""Answers requests in one growing and shrinking batch: a thread that lets new prompts join between two tokens.

Prompts are encoded in the thread's pauses, never more than the batch has room for, so that images which wait stay
compressed. Requests join in the order in which they came; each step gives every answer one token.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import DataError
from pipeline.generation.requests import Reply, Sampling
from pipeline.samples.prompt.conversation import Conversation
from pipeline.serving.refusals import RefusedError, invalid
from pipeline.serving.wire.images import image_refusal

if TYPE_CHECKING:
    from pipeline.generation.decoding import Decoder
    from pipeline.generation.generator import Generator

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """What one request asks of a model."""

    conversation: Conversation
    images: tuple[bytes, ...]
    """Encoded image files in reading order."""
    sampling: Sampling


class Piece(NamedTuple):
    """What came of an answer since the piece before."""

    text: str
    reply: Reply | None
    """The whole answer, with its last piece."""


Deliver = Callable[[Piece | RefusedError], object]
"""Takes the pieces of one answer, from the engine's thread; nothing comes after a reply or an error."""


@dataclass
class Ticket:
    """A question under way."""

    question: Question
    deliver: Deliver
    is_cancelled: bool = False
    row: int | None = field(default=None, repr=False)


class Engine:
    """One model that answers up to `max_rows` questions at the same time."""

    def __init__(self, generator: Generator, max_rows: int) -> None:
        """Start the thread.

        Args:
            generator: of the model; used by this engine's thread only.
            max_rows: answers in the batch.
        """
        self._generator, self._max_rows = generator, max_rows
        self._max_positions = int(getattr(generator.model.config, "max_position_embeddings", 0) or 0)
        self._waiting: deque[Ticket] = deque()
        self._news = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def submit(self, question: Question, deliver: Deliver) -> Ticket:
        """Let a question wait for its place in the batch."""
        ticket = Ticket(question, deliver)
        with self._news:
            self._waiting.append(ticket)
            self._news.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End an answer whose receiver went away; it leaves the batch before the next token."""
        with self._news:
            ticket.is_cancelled = True

    def stop(self) -> None:
        """End the thread; questions under way get no answer."""
        with self._news:
            self._is_stopped = True
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        decoder, running = self._generator.decoder(), dict[int, Ticket]()
        while True:
            # 1. Wait for work, and take as many questions as there is room for.
            with self._news:
                while not (self._is_stopped or self._waiting or running):
                    self._news.wait()
                if self._is_stopped:
                    return
                room = self._max_rows - len(running)
                taken = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            # 2. Encode them, and drop answers whose receiver went away.
            for ticket in taken:
                self._add(decoder, running, ticket)
            for row, ticket in running.items():
                if ticket.is_cancelled:
                    decoder.cancel(row)
            # 3. One token for everyone.
            try:
                progress = decoder.step()
            except Exception as error:  # out of memory, say: the batch is lost, the next one may work
                logger.exception("a decoding step failed; %d answers are lost", len(running))
                for ticket in running.values():
                    _deliver(ticket, _internal(error))
                decoder, running = self._generator.decoder(), {}
                continue
            for row, text, reply in progress:
                if text or reply is not None:
                    _deliver(running[row], Piece(text, reply))
                if reply is not None:
                    del running[row]

    def _add(self, decoder: Decoder, running: dict[int, Ticket], ticket: Ticket) -> None:
        """Encode a question and let it join, or tell its sender why not."""
        if ticket.is_cancelled:
            return
        conversation, images, sampling = ticket.question
        try:
            prompt = self._generator.prepare(conversation, images)
            room = self._max_positions - prompt.num_tokens if self._max_positions else sampling.max_new_tokens
            if room < 1:
                raise invalid(
                    f"the prompt takes {prompt.num_tokens} tokens, the model has room for {self._max_positions}; "
                    "shorten the conversation or show fewer images",
                    "messages",
                    "context_length_exceeded",
                )
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
            running[decoder.add(prompt, sampling)] = ticket
        except DataError as error:
            _deliver(ticket, image_refusal(error, "messages"))
        except RefusedError as error:
            _deliver(ticket, error)
        except Exception as error:
            logger.exception("a prompt could not be encoded")
            _deliver(ticket, _internal(error))


def _internal(error: Exception) -> RefusedError:
    """Return what a client may know of a defect: nothing of the message, which may name files."""
    return RefusedError(500, f"the model failed on this request ({type(error).__name__})", code="internal_error")


def _deliver(ticket: Ticket, piece: Piece | RefusedError) -> None:
    """Hand a piece over; a receiver that is gone, its event loop closed, counts as one that went away."""
    try:
        ticket.deliver(piece)
    except RuntimeError:
        ticket.is_cancelled = True
