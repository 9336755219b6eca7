"""Mutated images: pixels of the size that the header check saw, or a reason."""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import ImageLimits, decode_image, probe_image
from tests.fuzz.mutate import damage
from tests.pipeline.samples.pictures import encoded, picture, png_header, smooth_rgb

_LIMITS = ImageLimits(max_pixels=1_000_000)
_SPEC = ImageSpec(11, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@functools.cache
def _pictures() -> list[bytes]:
    rgb = Image.fromarray(smooth_rgb(13, 17))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(np.full((7, 5, 3), value, np.uint8)) for value in (31, 97)]
    modes = [rgb.convert(mode) for mode in ("L", "1", "LA", "RGBA", "P")]
    grey16 = Image.fromarray(np.full((5, 7), 300, np.uint16))
    return [
        *(picture(13, 17, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")),
        picture(13, 17, "TIFF", compression="tiff_lzw", exif=exif),
        encoded(rgb.convert("1"), "TIFF", compression="group4"),
        encoded(rgb.convert("P"), "BMP"),
        picture(33, 29, "JPEG", progressive=True),
        picture(13, 17, "JPEG", exif=exif.tobytes()),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb.convert("L"), "JPEG"),
        *(encoded(one, "PNG") for one in [*modes, grey16]),
        picture(13, 17, "WEBP", lossless=True),
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        png_header(900, 900),
        picture(5, 7, "GIF"),
    ]


def run_case(rng: random.Random) -> str:
    """Mutate one image, decode it, and return the reason, or `samples`.

    Raises:
        AssertionError: header check and decoder disagree.
    """
    pictures = _pictures()
    data = damage(rng.choice(pictures), rng, pictures)
    try:
        pixels = decode_image(data, _LIMITS)
    except DataError as error:
        return error.reason.value
    assert pixels.dtype == np.uint8
    header = probe_image(data, _LIMITS)
    assert pixels.shape == (header.height, header.width, 3), "the header check saw another size"
    if rng.random() < 0.1:
        assert fit_image(pixels, _SPEC, rng.choice(("pad", "crop"))).shape == (11, 11, 3)
    return "samples"
