"""What one client, and all of them together, may ask of a server; and the count of what is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.samples.image import ImageLimits
from pipeline.serving.refusals import RefusedError, unavailable


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before a model sees a request."""

    body_bytes: int = 32 << 20
    """Longest request body; images in base64 are part of it."""
    held_bytes: int = 512 << 20
    """Bodies of all requests under way."""
    requests: int = 512
    """Requests under way: those that are being answered and those that wait."""
    messages: int = 256
    """Turns of a conversation."""
    text_chars: int = 200_000
    """Letters of all turns."""
    images: int = 16
    """Images of a conversation."""
    image: ImageLimits = field(default_factory=ImageLimits)
    """Pixels and sides of an image, read from its header."""
    new_tokens: int = 4096
    """Largest `max_tokens`."""
    default_new_tokens: int = 512
    """`max_tokens` of a request that names none."""
    body_timeout_s: float = 30.0
    """How long a client may take to send a body, seconds."""
    answer_timeout_s: float = 600.0
    """How long an answer may take, waiting included, seconds."""


class Admission:
    """Counts requests and body bytes under way; used from one event loop only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.num_requests = 0
        self.held_bytes = 0
        self.is_closed = False
        """Whether the server is ending; nothing more is let in."""

    @contextmanager
    def admit(self) -> Iterator[Hold]:
        """Count a request for the length of the block.

        Raises:
            RefusedError: the server is ending (503), or as many requests as allowed are under way (429).
        """
        if self.is_closed:
            raise unavailable("the server is shutting down; send the request again later")
        if self.num_requests >= self._limits.requests:
            raise RefusedError(
                429,
                f"{self._limits.requests} requests are under way, which is the most that this server takes; "
                "send the request again later",
                code="too_many_requests",
            )
        hold = Hold(self)
        self.num_requests += 1
        try:
            yield hold
        finally:
            self.num_requests -= 1
            self.held_bytes -= hold.num_bytes

    def take(self, num_bytes: int) -> None:
        """Count further bytes.

        Raises:
            RefusedError: all bodies together would be too large (503).
        """
        if self.held_bytes + num_bytes > self._limits.held_bytes:
            raise unavailable("the requests under way fill the memory meant for them; send the request again later")
        self.held_bytes += num_bytes


class Hold:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Count further bytes of the body; see `Admission.take`."""
        self._admission.take(num_bytes)
        self.num_bytes += num_bytes
