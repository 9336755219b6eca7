"""Encoding a sample: conversation to tokens and labels, images to tiles of the tower's size.

The only place that combines template, tokenizer and image policy; its fingerprint covers all that encoding depends on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from model.fusion.feature_layout import layout_of
from model.fusion.resolution import ImageView, Resolution, Role
from model.vision.image_spec import fingerprint_facts
from pipeline.errors import DataError, Reason
from pipeline.samples.film import Film, as_bmp, decode_film
from pipeline.samples.fit import ImageSpec, fit_tiles
from pipeline.samples.image import ImageLimits, Pixels, decode_image
from pipeline.samples.prompt.conversation import Conversation
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.rendering import choose_template, render_conversation, render_question
from pipeline.samples.prompt.templates import Template
from pipeline.samples.prompt.text_tokenizer import Ids, TextTokenizer
from pipeline.samples.prompt.tokenization import EncodedText, encode_prompt, encode_text
from pipeline.samples.sampling import FrameSampling, frame_numbers, show_film
from pipeline.samples.schema import Sample

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class EncodedImage(NamedTuple):
    """An image cut into tiles."""

    view: ImageView
    pixels: Pixels
    """uint8 `[U, P, P, 3]`; no tiles when their features are known."""
    features: Tensor | None = None
    """What the vision tower makes of the tiles, read from a cache; None leaves that to the model."""


class EncodedSample(NamedTuple):
    """A sample ready to be packed."""

    text: EncodedText
    images: tuple[EncodedImage, ...]
    """Image k for the k-th placeholder."""

    @property
    def input_ids(self) -> Ids:
        """int64 `[T]`, one IMAGE_TOKEN_INDEX per image."""
        return self.text.input_ids

    @property
    def labels(self) -> Ids:
        """int64 `[T]`, IGNORE_INDEX where a token is not supervised."""
        return self.text.labels


EncodeImage = Callable[[bytes, Role], EncodedImage]
"""Decodes an image file and cuts it into tiles, as `SampleEncoder.encode_image` does."""


class SampleEncoder:
    """Turns samples into tokens and pixels; picklable, stateless.

    Attributes:
        image_spec: the square every tile is.
        resolution: which tiles an image becomes, and how many features replace its placeholder.
        max_length: longest fused sample, tokens; None for no limit.
        tokenizer: text to ids and, for people to read, back.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Template | JinjaTemplate,
        image_spec: ImageSpec,
        resolution: Resolution,
        max_length: int | None,
        limits: ImageLimits = ImageLimits(),  # noqa: B008
        sampling: FrameSampling = FrameSampling(),  # noqa: B008
    ) -> None:
        """Check that the parts fit together.

        Raises:
            ValueError: unknown template, a tokenizer without fast backend or without the template's control tokens,
                tiles of another size than the tower's, or a maximum length below 2.
        """
        if image_spec.size != resolution.tile_size:
            raise ValueError(
                f"the image processor makes squares of {image_spec.size} pixels, but tiles are of "
                f"{resolution.tile_size} pixels; correct size and crop_size in preprocessor_config.json"
            )
        if resolution.kind == "crop":
            image_spec.check_crop()
        if resolution.tile_features < 1 or (max_length is not None and max_length < 2):
            raise ValueError(
                f"features per tile {resolution.tile_features} and max_length {max_length}: expected at least 1 and 2"
            )
        self.image_spec = image_spec
        self.resolution = resolution
        self.max_length = max_length
        self.template = choose_template(template, tokenizer) if isinstance(template, str) else template
        self.tokenizer = TextTokenizer(tokenizer, adds_bos=not isinstance(self.template, JinjaTemplate))
        self._limits, self._sampling = limits, sampling
        self.tokenizer.check_control_tokens(self.template.controls, self.template.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids, labels and pixels."""
        policy = [fingerprint_facts(part) for part in (self.template, self.image_spec, self.resolution, self._limits)]
        if self._sampling != FrameSampling():  # which earlier versions did not know
            policy.append(dataclasses.asdict(self._sampling))
        facts = json.dumps([policy, self.max_length], sort_keys=True)
        return hashlib.sha256((facts + self.tokenizer.definition).encode()).hexdigest()

    def encode(self, sample: Sample, encode_image: EncodeImage | None = None) -> EncodedSample:
        """Encode text and images.

        Args:
            sample: the sample.
            encode_image: replaces `encode_image`, to reuse images that occur again.

        Raises:
            DataError: the sample is unusable, with its key.
        """
        sample = self.with_frames(sample)
        roles = self.resolution.roles(len(sample.images), sample.is_video)
        encode_image = functools.cache(encode_image or self.encode_image)  # one image may be shown many times
        try:
            images = tuple(encode_image(data, role) for data, role in zip(sample.images, roles, strict=True))
        except DataError as error:
            raise error.at(key=sample.key) from None
        text = self.encode_conversation(sample.conversation, [image.view for image in images], key=sample.key)
        return EncodedSample(text, images)

    def with_frames(self, sample: Sample) -> Sample:
        """Return a sample in which the chosen frames of a film take its place; any other as it is.

        Raises:
            DataError: the film or one of these frames cannot be decoded.
        """
        if not sample.is_film:
            return sample
        try:
            film, frames = decode_film(sample.images[0], self._numbers, self._limits)
        except DataError as error:
            raise error.at(key=sample.key) from None
        shown = show_film(sample.conversation, film.num_frames, film.seconds, self._sampling)
        return Sample(sample.key, "video", tuple(map(as_bmp, frames)), shown)

    def film_layout(
        self, conversation: Conversation, size: tuple[int, int], film: Film
    ) -> tuple[Conversation, list[ImageView]]:
        """Return what `with_frames` shows of a film of (height, width) pixels, without its file."""
        shown = show_film(conversation, film.num_frames, film.seconds, self._sampling)
        return shown, self.views([size] * shown.num_images, is_video=True)

    def num_frames(self, num_frames: int, seconds: float) -> int:
        """Return how many frames of a film of this length are shown."""
        return len(frame_numbers(num_frames, seconds, self._sampling))

    def _numbers(self, film: Film) -> list[int]:
        return frame_numbers(film.num_frames, film.seconds, self._sampling)

    def encode_image(self, data: bytes, role: Role = "image") -> EncodedImage:
        """Decode an image file and cut it into tiles.

        Raises:
            DataError: it cannot be decoded, or its size is outside the limits.
        """
        rgb = decode_image(data, self._limits)
        view = ImageView(rgb.shape[0], rgb.shape[1], role)
        return EncodedImage(view, fit_tiles(rgb, self.image_spec, self.resolution.tiling(view)))

    def views(self, sizes: Sequence[tuple[int, int]], is_video: bool) -> list[ImageView]:
        """Return how the images of a sample are shown, given their sizes (height, width) in pixels."""
        roles = self.resolution.roles(len(sizes), is_video)
        return [ImageView(height, width, role) for (height, width), role in zip(sizes, roles, strict=True)]

    def encode_conversation(self, conversation: Conversation, views: Sequence[ImageView], *, key: str) -> EncodedText:
        """Encode a conversation whose images are shown in `views`; pixels are not needed.

        Raises:
            DataError: it is unusable, with `key`.
        """
        features = [layout_of(self.resolution, view).num_features for view in views]
        try:
            spans = render_conversation(conversation, self.template)
            return encode_text(spans, self.tokenizer, self.max_length, features)
        except DataError as error:
            raise error.at(key=key) from None

    def encode_prompt(self, conversation: Conversation, views: Sequence[ImageView] = ()) -> Ids:
        """Encode a conversation that ends with the user, up to where the answer begins; int64 `[T]`.

        Nothing is cut off: the end of a prompt is the question.

        Args:
            conversation: ends with the user's turn.
            views: how its images are shown, which decides how many tokens each takes; without them each counts as one.

        Raises:
            ValueError: the last turn is not the user's.
            DataError: the prompt is longer than `max_length`, or cannot be spelled.
        """
        ids = encode_prompt(render_question(conversation, self.template), self.tokenizer)
        num_tokens = len(ids) + sum(layout_of(self.resolution, view).num_features - 1 for view in views)
        if self.max_length is not None and num_tokens > self.max_length:
            raise DataError(
                Reason.TOO_LONG,
                f"the prompt takes {num_tokens} tokens, {num_tokens - self.max_length} more than the {self.max_length} "
                "that the model was trained with (data.max_length)",
            )
        return ids
