"""A model that answers: conversations with image files become prompts, and prompts become answers in batches."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from model.fusion.feature_layout import layout_of
from pipeline.assembly.folder import OpenedModel
from pipeline.errors import DataError, Reason
from pipeline.generation.decoding import Decoder
from pipeline.generation.requests import Prompt, Reply, Sampling
from pipeline.samples.encode import EncodedImage
from pipeline.samples.prompt.conversation import Conversation
from pipeline.samples.prompt.ending import ending_of_model


class Generator:
    """Answers conversations about images, which are encoded exactly as in training."""

    def __init__(self, opened: OpenedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use a model as it is, on its device.

        Args:
            opened: the model in evaluation mode, and its encoder.
            tokenizer: of the model; spells the answers.

        Raises:
            ValueError: neither the template nor the tokenizer has an end of answers.
        """
        self.model, self.encoder = opened
        self.tokenizer = tokenizer
        self.ending = ending_of_model(self.model, self.encoder.template, tokenizer)

    def prepare(self, conversation: Conversation, images: Sequence[bytes]) -> Prompt:
        """Encode a conversation that ends with the user's turn.

        Args:
            conversation: the turns.
            images: encoded image files, one per image of the conversation, in reading order.

        Raises:
            DataError: an image cannot be decoded, there are more or fewer than the conversation shows, or the prompt
                is longer than a training sample can be; names by how many tokens.
            ValueError: the last turn is not the user's.
        """
        roles = self.encoder.resolution.roles(len(images), is_video=False)
        encoded = [self.encoder.encode_image(data, role) for data, role in zip(images, roles, strict=True)]
        return self.prepare_encoded(conversation, encoded)

    def prepare_encoded(self, conversation: Conversation, images: Sequence[EncodedImage]) -> Prompt:
        """Encode a conversation whose images are already encoded; see `prepare`."""
        if conversation.num_images != len(images):
            raise DataError(
                Reason.IMAGE_TOKEN_MISMATCH,
                f"{conversation.num_images} image places in the conversation but {len(images)} images",
            )
        views = [image.view for image in images]
        input_ids = self.encoder.encode_prompt(conversation, views)
        features = sum(layout_of(self.encoder.resolution, view).num_features - 1 for view in views)
        return Prompt(input_ids, tuple(images), len(input_ids) + features)

    def decoder(self) -> Decoder:
        """Return an empty batch, to add prompts to while others are answered."""
        return Decoder(self.model, self.tokenizer, self.ending)

    def generate(
        self, prompts: Sequence[Prompt], samplings: Sequence[Sampling], max_rows: int | None = None
    ) -> list[Reply]:
        """Answer prompts.

        Args:
            prompts: any number.
            samplings: one per prompt.
            max_rows: prompts answered at the same time; a new one joins when another has ended. None for all at once.

        Returns:
            The answers, in the order of the prompts.
        """
        if len(prompts) != len(samplings):
            raise ValueError(f"{len(prompts)} prompts but {len(samplings)} samplings; give one per prompt")
        decoder, replies = self.decoder(), dict[int, Reply]()
        # long prompts first, so that those answered together are of similar length
        order = sorted(range(len(prompts)), key=lambda idx: -prompts[idx].num_tokens)
        num_rows = max_rows or len(prompts)
        while len(replies) < len(prompts):
            # images of several prompts go through the tower together: wait for a quarter of the rows
            num_free = num_rows - decoder.num_rows
            begun = decoder.num_rows + len(replies)
            if 4 * num_free >= num_rows:
                for idx in order[begun : begun + num_free]:
                    decoder.add(prompts[idx], samplings[idx])
            for progress in decoder.step():
                if progress.reply is not None:
                    replies[order[progress.row]] = progress.reply
        return [replies[idx] for idx in range(len(prompts))]
