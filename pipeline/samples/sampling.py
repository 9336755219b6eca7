"""Which frames of a film a sample shows, and when: a pure function of its length, for index and training alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.samples.prompt.conversation import Conversation, Image, Part, Turn

Times = Literal["none", "frames", "sentence"]


@dataclass(frozen=True)
class FrameSampling:
    """How many frames, and what the prompt says of their times."""

    fps: float = 1.0
    """Frames for each second of the film."""
    max_frames: int = 32
    """Most frames; a longer film is sampled more thinly."""
    times: Times = "none"
    """`frames` writes `<1.5 seconds>` before each; `sentence` one sentence before the first, as LLaVA-Video does."""


def frame_numbers(num_frames: int, seconds: float, sampling: FrameSampling) -> list[int]:
    """Return which frames are shown, ascending: spread evenly from the first to the last.

    >>> frame_numbers(100, 4.0, FrameSampling(fps=1, max_frames=8))
    [0, 33, 66, 99]
    """
    wanted = max(1, round(seconds * sampling.fps))
    count = min(wanted, sampling.max_frames, num_frames)
    return [int(number) for number in np.linspace(0, num_frames - 1, count)]


def show_film(conversation: Conversation, num_frames: int, seconds: float, sampling: FrameSampling) -> Conversation:
    """Put the frames of a film into its one place, with their times where these are asked for."""
    numbers = frame_numbers(num_frames, seconds, sampling)
    times = [number * seconds / num_frames for number in numbers]

    def shown() -> tuple[Part, ...]:
        if sampling.times == "frames":
            return tuple(part for time in times for part in (f"<{time:.1f} seconds>", Image()))
        images: tuple[Part, ...] = (Image(),) * len(times)
        return (*images, "\n", _sentence(times, seconds)) if sampling.times == "sentence" else images

    turns = []
    for turn in conversation.turns:
        parts = tuple(new for part in turn.parts for new in (shown() if isinstance(part, Image) else (part,)))
        turns.append(Turn(turn.role, parts))
    return Conversation(tuple(turns))


def _sentence(times: list[float], seconds: float) -> str:
    """Return LLaVA-Video's sentence, spelled as its models learnt it."""
    located = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(times)} frames are uniformly sampled from it. "
        f"These frames are located at {located}.Please answer the following questions related to this video."
    )
