"""Copies planted in a set of 20,000 pictures: how many of each kind are found, and what else is taken for one.

python -m benchmarks.data.copies FOLDER [FIRST END]
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from pipeline.index.hygiene.duplicates import Prints, group_pictures
from pipeline.samples.image import Pixels, decode_image
from pipeline.samples.image_hash import PRINT_BYTES, print_of

NUM_PICTURES, NUM_COPIES = 18_000, 2_000
_BICUBIC = Image.Resampling.BICUBIC


def _jpeg(image: Image.Image, quality: int) -> Pixels:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return decode_image(file.getvalue())


def _cropped(image: Image.Image, share: float) -> Pixels:
    across, down = round(share * image.width), round(share * image.height)
    return np.asarray(image.crop((across, down, image.width - across, image.height - down)))


CHANGES: dict[str, Callable[[Image.Image], Pixels]] = {
    "JPEG, quality 90": lambda image: _jpeg(image, 90),
    "JPEG, quality 30": lambda image: _jpeg(image, 30),
    "half the size": lambda image: np.asarray(image.resize((image.width // 2, image.height // 2), _BICUBIC)),
    "twice the size": lambda image: np.asarray(image.resize((2 * image.width, 2 * image.height), _BICUBIC)),
    "stretched to a square": lambda image: np.asarray(image.resize((128, 128), _BICUBIC)),
    "5 % brighter": lambda image: np.asarray(ImageEnhance.Brightness(image).enhance(1.05)),
    "2 % cut off each side": lambda image: _cropped(image, 0.02),
    "5 % cut off each side": lambda image: _cropped(image, 0.05),
    "mirrored": lambda image: np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "without colour": lambda image: np.asarray(image.convert("L").convert("RGB")),
}


def drawn(number: int) -> Pixels:
    """Return a picture with the spectrum of photographs, uint8 `[120, 160, 3]`."""
    side = 24
    rng = np.random.default_rng([11, number])
    frequencies = np.fft.fftfreq(side)
    radius = np.sqrt(frequencies[:, None] ** 2 + frequencies[None] ** 2)
    radius[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(side, side, 3)), axes=(0, 1)) / radius[..., None] ** 1.2
    field = np.real(np.fft.ifft2(noise, axes=(0, 1)))
    field = (field - field.min()) / np.ptp(field) * 255
    return np.asarray(Image.fromarray(field.astype(np.uint8)).resize((160, 120), _BICUBIC))


def write_prints(folder: Path, first: int, end: int) -> None:
    """Write the prints of pictures `first` to `end - 1`, and of the copies of those that have one."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = list(CHANGES.values())
    rows = []
    for number in range(first, end):
        pixels = drawn(number)
        rows.append((number, -1, print_of(pixels)))
        if number < NUM_COPIES:
            change = number % len(changes)
            rows.append((number, change, print_of(changes[change](Image.fromarray(pixels)))))
    np.savez(
        folder / f"{first:06d}.npz",
        origin=np.array([row[0] for row in rows]),
        change=np.array([row[1] for row in rows]),
        hash=np.array([row[2].hash for row in rows], np.uint64),
        colours=np.frombuffer(b"".join(row[2].colours for row in rows), np.uint8).reshape(-1, PRINT_BYTES),
    )


def report(folder: Path) -> None:
    """Print how many copies of each kind are in the group of their original, and groups of different origin."""
    parts = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    origin, change, hashes, colours = (
        np.concatenate([part[name] for part in parts]) for name in ("origin", "change", "hash", "colours")
    )
    places = np.arange(len(origin))
    groups = group_pictures(Prints(places, np.zeros(len(origin), np.int64), hashes, colours))
    row_of = np.zeros(int(origin.max()) + 1, np.int64)
    row_of[origin[change < 0]] = places[change < 0]
    found = groups == groups[row_of[origin]]
    for number, name in enumerate(CHANGES):
        mine = change == number
        print(f"{name:24} {int(found[mine].sum())} of {int(mine.sum())}")
    firsts = groups[change < 0]
    print(f"different pictures taken for copies: {len(firsts) - len(np.unique(firsts))} of {len(firsts)}")
    print(json.dumps({"pictures": len(origin)}))


if __name__ == "__main__":
    where, *numbers = sys.argv[1:]
    if numbers:
        write_prints(Path(where), int(numbers[0]), int(numbers[1]))
    else:
        if not any(Path(where).glob("*.npz")):
            write_prints(Path(where), 0, NUM_PICTURES)
        report(Path(where))
