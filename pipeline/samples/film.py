"""Film files: what their container says, and single frames as RGB. Which are shown is `pipeline.samples.sampling`.

PyAV brings its own FFmpeg. Frames are counted by walking the packets, without decoding; a frame has the number of its
place in the order of display. H, W pixels after the rotation that phones note is applied.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from PIL import Image as PillowImage

from pipeline.errors import DataError, Reason
from pipeline.samples.film_bytes import is_cut_film, is_film
from pipeline.samples.image import ImageLimits, Pixels, check_size

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_FRAMES: Final = 1_000_000
"""Frames of a film whose packets are walked: eleven hours at 25 frames a second."""
_STRICT: Final = {"err_detect": "explode"}
"""FFmpeg would otherwise fill damaged parts of a frame from its neighbours silently."""
_SHORT_OF: Final = 0.9
"""Share of the stated duration below which a film without further packets is cut."""


class Film(NamedTuple):
    """What is known of a film without decoding it."""

    width: int
    """Pixels, as displayed."""
    height: int
    num_frames: int
    seconds: float
    """From the first frame's time to the end of the last one."""


class _Packets(NamedTuple):
    """Times of all frames, in units of the stream's time base."""

    times: list[int]
    """In order of display."""
    key_times: list[int]
    """Of frames that need no other, ascending."""
    mean: float
    """Distance of two frames."""


def probe_film(data: bytes, limits: ImageLimits = ImageLimits()) -> Film:  # noqa: B008
    """Read size, frames and duration of a film from its packets.

    Raises:
        DataError: not a film, damaged or cut, without a picture, or of a size outside the limits.
    """
    with _opened(data) as (container, stream), _named_errors(data):
        return _film(data, container, stream, limits)[0]


def decode_film(
    data: bytes,
    choose: Callable[[Film], list[int]],
    limits: ImageLimits = ImageLimits(),  # noqa: B008
) -> tuple[Film, list[Pixels]]:
    """Decode some frames of a film.

    Args:
        data: the file.
        choose: returns the numbers of the frames, ascending, for what is known of the film.
        limits: as for images.

    Returns:
        what is known of it, and the frames, uint8 `[H, W, 3]` each.

    Raises:
        DataError: as `probe_film`, or a frame that does not decode.
    """
    with _opened(data) as (container, stream), _named_errors(data):
        film, packets = _film(data, container, stream, limits)
        numbers = choose(film)
        wanted = [packets.times[number] for number in numbers]
        found = {time: _rgb(frame) for time, frame in _frames_at(container, stream, packets, wanted)}
    missing = [number for number, time in zip(numbers, wanted, strict=True) if time not in found]
    if missing:
        raise _corrupt(f"frame {missing[0]} of {len(packets.times)} does not decode")
    return film, [found[time] for time in wanted]


def check_film(data: bytes, limits: ImageLimits = ImageLimits()) -> tuple[Film, Pixels]:  # noqa: B008
    """Decode every frame of a film; returns what `probe_film` does, and the frame in its middle.

    Raises:
        DataError: as `probe_film`, or any frame that does not decode.
    """
    film = probe_film(data, limits)
    with _opened(data) as (container, stream), _named_errors(data):
        number, middle = 0, None
        for frame in container.decode(stream):
            if not frame.is_corrupt:
                middle = frame if number == film.num_frames // 2 else middle
                number += 1
        if number < film.num_frames or middle is None:
            raise _corrupt(f"{film.num_frames - number} of {film.num_frames} frames do not decode")
        return film, _rgb(middle)


def _frames_at(
    container: InputContainer, stream: VideoStream, packets: _Packets, wanted: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames at ascending times; frames between two of them are jumped over where a key frame allows it."""
    container.seek(packets.times[0], stream=stream, backward=True)
    frames = container.decode(stream)
    left = sorted(set(wanted))
    reached = packets.times[0] - 1
    while left:
        key = packets.key_times[max(0, bisect.bisect_right(packets.key_times, left[0]) - 1)]
        if key > reached + 1:
            container.seek(key, stream=stream, backward=True)
            frames = container.decode(stream)
        for frame in frames:
            if frame.pts is None:
                continue
            reached = frame.pts
            if reached >= left[0]:
                if reached == left[0] and not frame.is_corrupt:
                    yield reached, frame
                left.pop(0)
                break
        else:
            return


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a film and its first stream of moving pictures.

    Raises:
        DataError: it has none, or does not open.
    """
    import av  # takes a moment to load, and most data sets have no films
    from av.stream import Disposition

    if not is_film(data):
        raise _unsupported(f"{len(data)} bytes of no known film")
    with _named_errors(data):
        container = av.open(io.BytesIO(data), metadata_errors="ignore")
    with container:
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not streams:
            raise _truncated(data) if is_cut_film(data) else _unsupported("a film without moving pictures")
        stream = streams[0]
        if stream.codec_context is None or not stream.codec_context.width:
            if is_cut_film(data):
                raise _truncated(data)
            raise _unsupported("a film whose pictures are coded in a way that is not read")
        stream.codec_context.options = dict(_STRICT)
        stream.thread_type = "NONE"  # data workers have one core each
        yield container, stream


@contextmanager
def _named_errors(data: bytes) -> Iterator[None]:
    """Translate errors of FFmpeg; their text is not repeated, since it may quote the file.

    Raises:
        DataError: for any of them.
    """
    import av

    try:
        yield
    except (av.error.DecoderNotFoundError, av.error.PatchWelcomeError):
        if is_cut_film(data):
            raise _truncated(data) from None
        raise _unsupported("a film whose pictures are coded in a way that is not read") from None
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        if is_cut_film(data):
            raise _truncated(data) from None
        raise _corrupt(f"{len(data)} bytes of a film that do not decode ({type(error).__name__})") from None


def as_bmp(pixels: Pixels) -> bytes:
    """Return a frame as an image file: without loss, and made and read in a moment."""
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def _film(data: bytes, container: InputContainer, stream: VideoStream, limits: ImageLimits) -> tuple[Film, _Packets]:
    width, height = _size(container, stream, limits)
    packets = _walk(data, container, stream)
    span = packets.times[-1] - packets.times[0] + packets.mean
    return Film(width, height, len(packets.times), span * _time_base(stream)), packets


def _time_base(stream: VideoStream) -> float:
    """Return the seconds of one unit of a stream's times."""
    return float(stream.time_base or 0)


def _size(container: InputContainer, stream: VideoStream, limits: ImageLimits) -> tuple[int, int]:
    """Return width and height as displayed; how a phone was held is noted on the frames only."""
    check_size(stream.codec_context.width, stream.codec_context.height, limits)
    frame = next(container.decode(stream), None)
    container.seek(0)
    if frame is None:
        raise _corrupt("a film without a frame that decodes")
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)


def _walk(data: bytes, container: InputContainer, stream: VideoStream) -> _Packets:
    """Read all packets, without decoding.

    Raises:
        DataError: there is none, too many, or fewer than the film's duration says.
    """
    times, keys = [], []
    for packet in container.demux(stream):
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None or packet.is_discard or not packet.size:
            continue
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
        if len(times) > MAX_FRAMES:
            raise DataError(Reason.VIDEO_TOO_LONG, f"more than {MAX_FRAMES} frames")
    if not times or not keys:
        raise _corrupt("a film without a frame")
    times.sort()
    if len(set(times)) < len(times):
        raise _corrupt("two frames of a film at one time")
    rate = float(stream.average_rate or 25)
    mean = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / (rate * _time_base(stream))
    _check_complete(data, container, (times[-1] + mean) * _time_base(stream))
    return _Packets(times, sorted(keys), mean)


def _check_complete(data: bytes, container: InputContainer, end_s: float) -> None:
    """Refuse a film that breaks off: its boxes or its stated duration say that there was more."""
    stated_s = (container.duration or 0) / 1_000_000
    if is_cut_film(data) or (stated_s - end_s > 1 and end_s < _SHORT_OF * stated_s and not _has_sound(container)):
        raise _truncated(data)


def _has_sound(container: InputContainer) -> bool:
    """Whether a stream of sound may last longer than the pictures."""
    return bool(container.streams.audio)


def _rgb(frame: av.VideoFrame) -> Pixels:
    """Return a frame as RGB, turned upright."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return by how many quarter turns against the clock a frame is to be turned."""
    return round((frame.rotation or 0) / 90) % 4


def _corrupt(what: str) -> DataError:
    return DataError(Reason.VIDEO_CORRUPT, what)


def _truncated(data: bytes) -> DataError:
    return DataError(Reason.VIDEO_TRUNCATED, f"the film ends early, after {len(data)} bytes")


def _unsupported(what: str) -> DataError:
    return DataError(Reason.VIDEO_UNSUPPORTED_FORMAT, what)
