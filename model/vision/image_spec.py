"""What a preprocessor_config.json does to an image, as one square and one normalisation.

The index, the data side, the model and the exported processor all read it here. Defaults of fields that a file leaves
out are those of its processor's class (`image_processor_type`) in transformers; what has no such form is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

Resample = Literal["nearest", "bilinear", "bicubic"]
Shape = Literal["short_edge", "distorted"]
"""What the edge after resizing measures: the short side, or both, for any shape of image."""

_RESAMPLES: Final[dict[int, Resample]] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's number -> filter."""
_Triple = tuple[float, float, float]
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_HALF: Final = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class _Defaults(NamedTuple):
    """Defaults of a class of processors, for fields that its file leaves out."""

    size: Any
    crop_size: int | None
    """None when it does not crop unless asked to."""
    resample: int
    mean: _Triple
    std: _Triple
    default_to_square: bool
    """Whether a size that is one number means both sides."""
    cell: int | None = None
    """Side of a patch, pixels, of processors that keep the shape of an image; None for those that make squares."""


_SHORT_EDGE: Final = {"shortest_edge": 224}
_SQUARE: Final = {"height": 224, "width": 224}
_CLIP: Final = _Defaults(_SHORT_EDGE, 224, 3, _CLIP_MEAN, _CLIP_STD, False)
_DEFAULTS: Final[dict[str, _Defaults]] = {
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "LlavaNextImageProcessor": _CLIP,
    "LlavaOnevisionImageProcessor": _Defaults({"height": 384, "width": 384}, None, 3, _CLIP_MEAN, _CLIP_STD, False),
    "SiglipImageProcessor": _Defaults(_SQUARE, None, 3, _HALF, _HALF, False),
    "ViTImageProcessor": _Defaults(_SQUARE, None, 2, _HALF, _HALF, True),
    "DeiTImageProcessor": _Defaults({"height": 256, "width": 256}, 224, 3, _HALF, _HALF, True),
    "BlipImageProcessor": _Defaults({"height": 384, "width": 384}, None, 3, _CLIP_MEAN, _CLIP_STD, True),
    "DINOv3ViTImageProcessor": _Defaults(_SQUARE, None, 2, _IMAGENET_MEAN, _IMAGENET_STD, True),
    "Siglip2ImageProcessor": _Defaults(_SQUARE, None, 2, _HALF, _HALF, True, 16),
    "Qwen2VLImageProcessor": _Defaults(_SQUARE, None, 3, _CLIP_MEAN, _CLIP_STD, True, 14),
    "GotOcr2ImageProcessor": _Defaults({"height": 384, "width": 384}, None, 3, _CLIP_MEAN, _CLIP_STD, True),
}
"""Class, without the ending of its backend -> defaults, as transformers 5 and 4.57 have them."""


ADDED_LATER: Final = {"added_later": True}
"""Marks a field that fingerprints leave out at its default, so that those of older runs stay as they were."""


def fingerprint_facts(part: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its fingerprint covers, as plain values."""
    later = {one.name: one.default for one in fields(part) if "added_later" in one.metadata}
    return {name: value for name, value in asdict(part).items() if name not in later or value != later[name]}


@dataclass(frozen=True)
class ImageSpec:
    """The square a vision tower expects, and how an image processor makes one of an image."""

    size: int
    """Output side P, pixels."""
    mean: tuple[float, float, float]
    """Per channel, of pixels scaled to 0..1; also the colour of the padding."""
    std: tuple[float, float, float]
    resize_edge: int | None = None
    """Edge E after resizing, pixels, when it differs from `size`; the centre is cut out of it."""
    resample: Resample = field(default="bicubic", metadata=ADDED_LATER)
    """Filter of every resizing; with antialiasing when it shrinks, as Pillow's."""
    shape: Shape = field(default="short_edge", metadata=ADDED_LATER)
    """What E measures when the processor resizes an image that is not square."""
    crops: bool = field(default=True, metadata=ADDED_LATER)
    """Whether the centre is cut out; without it an image resized by its short edge stays oblong."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.edge < self.size:
            raise ValueError(f"image size {self.size} and resize edge {self.edge}: expected 1 <= size <= edge")

    @property
    def edge(self) -> int:
        """Edge E after resizing, pixels."""
        return self.size if self.resize_edge is None else self.resize_edge

    @property
    def background(self) -> tuple[int, int, int]:
        """Colour of the padding: (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def scaled(self, factor: int) -> Self:
        """Return the same for images of a multiple of the size."""
        values = {**self.__dict__, "size": self.size * factor}
        if self.resize_edge is not None:
            values["resize_edge"] = self.resize_edge * factor
        return type(self)(**values)

    def check_crop(self) -> None:
        """Refuse a processor that does not make images square by itself.

        Raises:
            ValueError: it does.
        """
        if self.shape == "short_edge" and not self.crops:
            raise ValueError(
                "image_aspect_ratio 'crop' leaves sizing to the image processor, but preprocessor_config.json resizes "
                "the short edge (shortest_edge) and has do_center_crop false: images would not be square. Set "
                "do_center_crop true with a crop_size, give size as height and width, or use image_aspect_ratio 'pad'"
            )

    @classmethod
    def from_preprocessor_config(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read a Hugging Face `preprocessor_config.json`, its folder, or its content.

        Rescaling is folded into mean and standard deviation, so that they always are of pixels scaled to 0..1.

        Raises:
            ValueError: no such file, or a processor whose steps these are not; names the field.
        """
        given, where = _load_config(source)
        config = {name: value for name, value in given.items() if value is not None}
        defaults = _defaults_of(config, where)
        if defaults.cell is not None:  # sizes follow from the image and the tower
            config["size"] = config["crop_size"] = int(config.get("patch_size", defaults.cell))
        if config.get("do_resize", True) is False:
            raise ValueError(f"{where}: do_resize false leaves every image its own size, but a tower takes one size")
        if config.get("do_flip_channel_order", False):
            raise ValueError(f"{where}: do_flip_channel_order is not supported; towers here take RGB")
        number = config.get("resample", defaults.resample)
        if number not in _RESAMPLES:
            known = ", ".join(f"{known} ({name})" for known, name in _RESAMPLES.items())
            raise ValueError(f"{where}: resample {number!r} is not supported; expected {known}")
        to_square = bool(config.get("default_to_square", defaults.default_to_square))
        edge, shape = _read_size(config.get("size", defaults.size), to_square, f"{where}: size")
        crops = bool(config.get("do_center_crop", defaults.crop_size is not None))
        size = edge
        if crops:
            size, _ = _read_size(config.get("crop_size", defaults.crop_size or edge), True, f"{where}: crop_size")
        if size > edge:
            raise ValueError(
                f"{where}: crop_size {size} is larger than size {edge}, so that images would get a black frame; "
                "expected 1 <= crop_size <= size"
            )
        mean, std = _normalisation(config, defaults, where)
        return cls(size, mean, std, edge if edge != size else None, _RESAMPLES[number], shape, crops)

    def to_preprocessor_config(self) -> dict[str, Any]:
        """Return an equal preprocessor_config.json with every field written out."""
        number = next(number for number, name in _RESAMPLES.items() if name == self.resample)
        both = {"height": self.edge, "width": self.edge}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.edge} if self.shape == "short_edge" else both,
            "resample": number,
            "do_center_crop": self.crops,
            "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def _defaults_of(config: Mapping[str, Any], where: str) -> _Defaults:
    """Return the defaults of the class that a file names; one that names none is read as CLIP's, as LLaVA does."""
    named = config.get("image_processor_type", config.get("feature_extractor_type"))
    if named is None:  # crops only if it states the size, so that a file with sizes alone keeps them
        return _CLIP if "crop_size" in config else _CLIP._replace(crop_size=None)
    name = str(named).replace("FeatureExtractor", "ImageProcessor")
    for backend in ("Fast", "Pil"):
        name = name.removesuffix(backend)
    if name not in _DEFAULTS:
        raise ValueError(f"{where}: image processor {named!r} is not known here; known: {', '.join(sorted(_DEFAULTS))}")
    return _DEFAULTS[name]


def _read_size(size: object, to_square: bool, where: str) -> tuple[int, Shape]:
    """Read 336, {"shortest_edge": 336} or {"height": 336, "width": 336}."""
    shape: Shape = "distorted" if to_square else "short_edge"
    if isinstance(size, Mapping):
        sides = {name: side for name, side in size.items() if side is not None}
        shape = "short_edge" if set(sides) == {"shortest_edge"} else "distorted"
        known = set(sides) in ({"shortest_edge"}, {"height", "width"})
        size = next(iter(sides.values())) if known and len(set(sides.values())) == 1 else sides
    elif isinstance(size, list | tuple):
        size = size[0] if len(size) in (1, 2) and len(set(size)) == 1 else size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"{where}: expected one number, a shortest_edge, or equal height and width (towers take squares), "
            f"found {size!r}"
        )
    return size, shape


def _normalisation(config: Mapping[str, Any], defaults: _Defaults, where: str) -> tuple[_Triple, _Triple]:
    """Return mean and standard deviation of pixels scaled to 0..1 that give what the file's own steps give."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean = _channels(config.get("image_mean", defaults.mean), where)
        std = _channels(config.get("image_std", defaults.std), where)
    factor = _number(config.get("rescale_factor", 1 / 255), where) if config.get("do_rescale", True) else 1.0
    if factor <= 0 or min(std) <= 0:
        raise ValueError(f"{where}: rescale_factor {factor} and image_std {std}: expected numbers above 0")
    whole = factor * 255  # (x f - m) / s = (x / 255 - m / 255 f) / (s / 255 f)
    if abs(whole - 1) > 1e-6:
        mean, std = _divided(mean, whole), _divided(std, whole)
    if min(mean) < 0 or max(mean) > 1:
        raise ValueError(
            f"{where}: image_mean, do_rescale and rescale_factor put the mean at {mean} of the brightest pixel; "
            "expected it between 0 and 1: a mean in grey levels belongs to do_rescale false"
        )
    return mean, std


def _divided(values: _Triple, divisor: float) -> _Triple:
    red, green, blue = (value / divisor for value in values)
    return red, green, blue


def _channels(values: object, where: str) -> _Triple:
    """Read one number for all channels, or three."""
    numbers = [values] * 3 if isinstance(values, int | float) else values
    if not isinstance(numbers, list | tuple) or len(numbers) != 3:
        raise ValueError(f"{where}: image_mean and image_std need 3 numbers, or one for all, found {values!r}")
    red, green, blue = (_number(value, where) for value in numbers)
    return red, green, blue


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{where}: rescale_factor, image_mean and image_std: expected a number, found {value!r}")
    return float(value)


def _load_config(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "preprocessor_config.json"
    path = Path(source)
    path = path / "preprocessor_config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"image processor {path}: no such file; expected the preprocessor_config.json of the tower")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"image processor {path}: expected a JSON object")
    return config, str(path)
