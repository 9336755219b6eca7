"""Emoji of several vendors, and pictures of one of them on a coloured background."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "face": (
        "face-smiling", "face-tongue", "face-sleepy", "face-affection", "face-glasses", "face-neutral-skeptical",
        "face-concerned", "face-unwell", "face-hand", "face-hat", "face-negative",
    ),
    "animal": ("animal-mammal", "animal-reptile", "animal-marine", "animal-bug", "animal-bird", "animal-amphibian"),
    "food": ("food-prepared", "food-vegetable", "food-fruit", "food-asian", "food-sweet"),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "flag": ("country-flag", "subdivision-flag"),
    "hand": (
        "hand-single-finger", "hand-fingers-closed", "hand-fingers-open", "hand-fingers-partial", "hands", "hand-prop"
    ),
    "clock": ("time",),
    "heart": ("heart",),
}  # fmt: skip
"""Answer -> subcategories of the data source."""
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "white": (245, 245, 245), "gray": (128, 128, 128), "black": (20, 20, 20), "red": (200, 45, 45),
    "green": (55, 160, 70), "blue": (50, 90, 200), "yellow": (240, 215, 70), "purple": (130, 60, 170),
}  # fmt: skip
"""Answer -> colour."""
_SIDE: Final = 128  # pixels
_TONE: Final = 18  # grey levels that a background may differ from its colour


class Scene(NamedTuple):
    """A picture and what is right about it."""

    picture: Image.Image
    emoji_class: str
    background: str


def read_emoji(packages: dict[str, Path]) -> dict[str, list[str]]:
    """Return the files' stems of all emoji of each class that both vendors of training drew, in the source's order."""
    entries = json.loads((packages["twitter"] / "emoji.json").read_text(encoding="utf-8"))
    class_of = {sub: name for name, subs in CLASSES.items() for sub in subs}
    found: dict[str, list[str]] = {name: [] for name in CLASSES}
    for entry in sorted(entries, key=lambda entry: int(entry["sort_order"])):
        name = class_of.get(entry["subcategory"])
        if name is not None and entry["has_img_twitter"] and entry["has_img_google"]:
            found[name].append(entry["image"].removesuffix(".png"))
    return found


@cache
def drawing(package: Path, vendor: str, stem: str) -> Image.Image | None:
    """Open a vendor's drawing with transparency; None where there is none."""
    path = package / (f"assets/{stem}.webp" if vendor == "fluent" else f"img/{vendor}/64/{stem}.png")
    return Image.open(path).convert("RGBA") if path.is_file() else None


def draw_scene(art: Image.Image, emoji_class: str, rng: random.Random) -> Scene:
    """Put a drawing at a random place, size and angle on a random background."""
    name = rng.choice(sorted(BACKGROUNDS))
    red, green, blue = (min(255, max(0, value + rng.randint(-_TONE, _TONE))) for value in BACKGROUNDS[name])
    canvas = Image.new("RGB", (_SIDE, _SIDE), (red, green, blue))
    size = round(_SIDE * rng.uniform(0.6, 0.95))
    slack = (_SIDE - size) / 2
    center_x, center_y = (_SIDE / 2 + rng.uniform(-slack, slack) for _ in range(2))
    turned = art.resize((size, size), Image.Resampling.LANCZOS).rotate(
        rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True
    )
    canvas.paste(turned, (round(center_x - turned.width / 2), round(center_y - turned.height / 2)), turned)
    return Scene(canvas, emoji_class, name)
