"""Encoding a sample: conversation to tokens and labels, images to the tower's square.

The one place where template, tokenizer and image policy meet; its fingerprint says what an encoded sample depends on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.samples.conversation import Conversation, render, render_prompt
from pipeline.samples.fit import ImageSpec, fit_image
from pipeline.samples.image import ImageLimits, Pixels, decode_image
from pipeline.samples.schema import Sample
from pipeline.samples.templates import Template, get_template
from pipeline.samples.text_tokenizer import Ids, TextTokenizer
from pipeline.samples.tokenization import EncodedText, encode_prompt, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedSample(NamedTuple):
    """A sample ready to be packed."""

    input_ids: Ids
    """int64 `[T]`, one IMAGE_TOKEN_INDEX per image."""
    labels: Ids
    """int64 `[T]`, IGNORE_INDEX where nothing is learnt."""
    pixels: Pixels
    """uint8 `[N, 3, P, P]`, image k for the k-th placeholder."""


class SampleEncoder:
    """Turns samples into tokens and pixels; picklable, stateless.

    Attributes:
        image_spec: the square every image becomes.
        features_per_image: features that replace a placeholder.
        max_length: longest fused sample, tokens; None for no limit.
        tokenizer: text to ids and, for people to read, back.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Template,
        image_spec: ImageSpec,
        features_per_image: int,
        max_length: int | None,
        limits: ImageLimits = ImageLimits(),  # noqa: B008
    ) -> None:
        """Check that the parts fit together.

        Raises:
            ValueError: unknown template, a tokenizer without fast backend, or without the template's control tokens.
        """
        if features_per_image < 1 or (max_length is not None and max_length < 2):
            raise ValueError(
                f"features_per_image {features_per_image} and max_length {max_length}: expected at least 1 and 2"
            )
        self.image_spec = image_spec
        self.features_per_image = features_per_image
        self.max_length = max_length
        self._template = get_template(template) if isinstance(template, str) else template
        self.tokenizer = TextTokenizer(tokenizer)
        self._limits = limits
        self.tokenizer.check_control_tokens(self._template.controls, self._template.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids, labels and pixels."""
        policy = [dataclasses.asdict(part) for part in (self._template, self.image_spec, self._limits)]
        facts = json.dumps([policy, self.features_per_image, self.max_length], sort_keys=True)
        return hashlib.sha256((facts + self.tokenizer.definition).encode()).hexdigest()

    def encode(self, sample: Sample) -> EncodedSample:
        """Encode text and images.

        Raises:
            DataError: the sample is unusable, with its key.
        """
        text = self.encode_text(sample)
        try:
            pixels = [fit_image(decode_image(data, self._limits), self.image_spec) for data in sample.images]
        except DataError as error:
            raise error.at(key=sample.key) from None
        size = self.image_spec.size
        stacked = np.stack(pixels) if pixels else np.zeros((0, 3, size, size), np.uint8)
        return EncodedSample(text.input_ids, text.labels, stacked)

    def encode_text(self, sample: Sample) -> EncodedText:
        """Encode the conversation only; images are not decoded.

        Raises:
            DataError: the sample is unusable, with its key.
        """
        return self.encode_conversation(sample.conversation, key=sample.key)

    def encode_conversation(self, conversation: Conversation, *, key: str) -> EncodedText:
        """Encode a conversation that is not part of a stored sample.

        Raises:
            DataError: it is unusable, with `key`.
        """
        spans = render(conversation, self._template)
        try:
            return encode_text(spans, self.tokenizer, self.max_length, self.features_per_image)
        except DataError as error:
            raise error.at(key=key) from None

    def lengths(self, sample: Sample) -> tuple[int, int]:
        """Return fused length and supervised tokens without decoding pixels.

        Raises:
            DataError: the sample is unusable, with its key.
        """
        text = self.encode_text(sample)
        return text.num_tokens, text.num_supervised_tokens

    def encode_prompt(self, conversation: Conversation) -> Ids:
        """Encode a conversation that ends with the user, up to where the answer begins; int64 `[T]`.

        Raises:
            ValueError: the last turn is not the user's.
        """
        return encode_prompt(render_prompt(conversation, self._template), self.tokenizer)
