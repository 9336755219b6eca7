"""Counters of a server, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipeline.serving.limits import Admission

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)


class Measures:
    """What a server has done since it started."""

    def __init__(self, admission: Admission) -> None:
        """Start at zero.

        Args:
            admission: knows what is under way.
        """
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ray_llava_requests", "Requests for an answer, by HTTP status.", ["status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "ray_llava_prompt_tokens", "Tokens of answered prompts, image features included.", registry=registry
        )
        self.answer_tokens = Counter("ray_llava_answer_tokens", "Tokens written.", registry=registry)
        self.seconds = Histogram(
            "ray_llava_answer_seconds", "From a request to its whole answer.", buckets=_SECONDS, registry=registry
        )
        self.first_seconds = Histogram(
            "ray_llava_first_text_seconds",
            "From a streamed request to its first text.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.broken = Counter("ray_llava_broken_streams", "Streams that ended with an error.", registry=registry)
        under_way = Gauge("ray_llava_requests_under_way", "Requests answered or waiting.", registry=registry)
        under_way.set_function(lambda: admission.num_requests)
        held = Gauge("ray_llava_held_bytes", "Request bodies under way.", registry=registry)
        held.set_function(lambda: admission.held_bytes)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self.registry)
