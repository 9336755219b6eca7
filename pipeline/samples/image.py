"""Image bytes to RGB pixels: six formats, a pixel limit read from the header, one written rule per colour mode.

Sizing to the vision tower is left to `pipeline.samples.fit`. Ordinary JPEG goes through simplejpeg where it is
installed (the same pixels, a sixth faster and without Pillow's copies); everything else through Pillow.

H, W pixels after the EXIF orientation is applied.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from pipeline.errors import DataError, Reason
from pipeline.samples.image_bytes import describe_other, image_format, is_cut, without_png_metadata

try:
    import simplejpeg
except ImportError:  # an optional accelerator; the pixels are the same without it
    simplejpeg = None

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
"""Parsers that may run: Pillow would otherwise try over forty, one of which starts Ghostscript."""
_ORIENTED_BY_PILLOW = ("TIFF",)
"""Formats whose pixels and size Pillow turns itself."""
_NOT_HANDLED = re.compile(r"unsupported|unknown pixel mode|cannot handle (?:12|16)-bit|compression not", re.IGNORECASE)
"""What parsers say of a valid file that they cannot read."""
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323
_ORIENTATION_TAG = 0x0112
_WHITE = (255, 255, 255)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageLimits:
    """What is refused from the header, before any pixel is decoded."""

    max_pixels: int = 50_000_000
    """Width times height; 10000 x 10000 black pixels are a PNG of 12 kB and 300 MB of RGB."""
    min_side: int = 2
    """Shortest side, pixels."""
    max_aspect: float = 100.0
    """Longest side divided by shortest."""


class ImageHeader(NamedTuple):
    """What the header says."""

    format: str
    """One of `FORMATS`."""
    width: int
    height: int


def probe_image(data: bytes, limits: ImageLimits = ImageLimits()) -> ImageHeader:
    """Read format and oriented size from the header.

    Raises:
        DataError: not one of the formats, a broken header, or a size outside the limits.
    """
    try:
        return _probe(data, limits)
    except _LargeMetadataError:
        return _probe(without_png_metadata(data), limits)


def decode_image(data: bytes, limits: ImageLimits = ImageLimits()) -> Pixels:
    """Decode an image to RGB.

    Transparency is laid over white, 16-bit grey keeps its upper 8 bits, CMYK and palettes become RGB, an animation
    shows its first frame, the EXIF orientation is applied.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        DataError: not one of the formats, broken or cut, or a size outside the limits.
    """
    try:
        return _decode(data, limits)
    except _LargeMetadataError:
        return _decode(without_png_metadata(data), limits)


class _LargeMetadataError(Exception):
    """Pillow refuses a PNG for its texts or colour profile, which no pixel depends on."""


def _probe(data: bytes, limits: ImageLimits) -> ImageHeader:
    with _open(data, limits) as image:
        width, height = image.size
        if _orientation(image) >= 5 and image.format not in _ORIENTED_BY_PILLOW:
            width, height = height, width
        return ImageHeader("JPEG" if image.format == "MPO" else str(image.format), width, height)


def _decode(data: bytes, limits: ImageLimits) -> Pixels:
    with _open(data, limits) as image:
        orientation = _orientation(image)
        pixels = _decode_plain_jpeg(data, image)
        if pixels is None:
            try:
                image.load()
                orientation = _orientation(image)
                pixels = np.array(_to_rgb(image))
            except (MemoryError, DataError):
                raise
            except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, IndexError ...
                raise _broken(error, data) from None
        if image.format in _ORIENTED_BY_PILLOW:
            orientation = 1
    return _orient(pixels, orientation)


def _open(data: bytes, limits: ImageLimits) -> PillowImage.Image:
    """Parse the header only."""
    try:
        image = _parse(data)
    except (MemoryError, DataError):
        raise
    except PillowImage.DecompressionBombError:
        raise DataError(Reason.IMAGE_TOO_LARGE, "a WebP file with more pixels than Pillow opens") from None
    except Exception as error:
        raise _broken(error, data) from None
    check_size(*image.size, limits)
    if image.format == "TIFF":
        _check_tiles(image, limits)
    return image


def _parse(data: bytes) -> PillowImage.Image:
    """Do what `PIL.Image.open` does for our formats, but for its limit on pixels.

    That limit belongs to the process and to everything else in it, and ours is checked on the same header.

    Raises:
        DataError: the content begins like none of the formats.
        Exception: any error of the parser of its format.
    """
    if not data:
        raise DataError(Reason.IMAGE_TRUNCATED, "the file is empty")
    name = image_format(data)
    if name not in FORMATS:
        raise DataError(
            Reason.IMAGE_UNSUPPORTED_FORMAT, f"{describe_other(data)}, not JPEG, PNG, WebP, BMP, TIFF or AVIF"
        )
    if name not in PillowImage.OPEN:
        PillowImage.init()
    parse, _ = PillowImage.OPEN[name]
    return parse(io.BytesIO(data), "")


def _check_tiles(image: PillowImage.Image, limits: ImageLimits) -> None:
    """Check the tiles of a TIFF; the decoder allocates memory for them, for any size of the image."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, length = tags.get(_TIFF_TILE_WIDTH, 0), tags.get(_TIFF_TILE_LENGTH, 0)
    if not isinstance(width, int) or not isinstance(length, int):
        raise DataError(Reason.IMAGE_CORRUPT, "a TIFF whose tiles have no size")
    if width * length > limits.max_pixels:
        raise DataError(Reason.IMAGE_TOO_LARGE, f"tiles of {width} x {length} pixels, at most {limits.max_pixels}")


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse a size outside the limits.

    Raises:
        DataError: too many pixels, or too thin.
    """
    if width * height > limits.max_pixels:
        raise DataError(Reason.IMAGE_TOO_LARGE, f"{width} x {height} pixels, at most {limits.max_pixels} in all")
    short, long = sorted((width, height))
    if short < limits.min_side or long > limits.max_aspect * short:
        raise DataError(
            Reason.IMAGE_DEGENERATE,
            f"{width} x {height} pixels, sides of at least {limits.min_side} and a ratio up to {limits.max_aspect:g}",
        )


def _decode_plain_jpeg(data: bytes, image: PillowImage.Image) -> Pixels | None:
    """Decode an RGB or grey JPEG with simplejpeg; None leaves it, and its error message, to Pillow."""
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return None
    # a file may contain a second header; what the limits were checked on is what must come out
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def _to_rgb(image: PillowImage.Image) -> PillowImage.Image:
    if image.mode == "F":
        raise DataError(Reason.IMAGE_MODE_UNSUPPORTED, "floating-point pixels have no defined range")
    if image.format == "TIFF" and image.mode == "I":
        raise DataError(Reason.IMAGE_MODE_UNSUPPORTED, "32-bit integer pixels have no defined range")
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        upper = np.clip(grey >> 8, 0, 255).astype(np.uint8)
        if "transparency" in image.info:  # the colour key of a PNG, all 16 bits of it
            upper[grey == image.info["transparency"]] = _WHITE[0]
        return PillowImage.fromarray(upper).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = PillowImage.new("RGBA", layer.size, (*_WHITE, 255))
        return PillowImage.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: PillowImage.Image) -> int:
    """Return the EXIF orientation 1..8; damaged EXIF counts as none, since the pixels are intact without it."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the pixels to look for EXIF behind them
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 5 to 8 exchange rows and columns, then rows or columns are reversed."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _broken(error: Exception, data: bytes) -> DataError:
    """Translate a decoder's error; its text is not repeated, since it may quote the file.

    Raises:
        _LargeMetadataError: the decoder gave up over metadata of a PNG.
    """
    text = str(error)
    if "MAX_TEXT_" in text and len(without_png_metadata(data)) < len(data):
        raise _LargeMetadataError from None
    if "truncated" in text.lower() or is_cut(data):
        return DataError(Reason.IMAGE_TRUNCATED, f"the image ends early, after {len(data)} bytes")
    if isinstance(error, SyntaxError | OSError | NotImplementedError) and _NOT_HANDLED.search(text):
        return DataError(Reason.IMAGE_MODE_UNSUPPORTED, f"{image_format(data)} with pixels of a kind that is not read")
    return DataError(
        Reason.IMAGE_CORRUPT, f"{len(data)} bytes of {image_format(data)} that do not decode ({type(error).__name__})"
    )
