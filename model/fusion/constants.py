"""Token conventions shared by the data side and the model side. Values are those of published LLaVA checkpoints."""

from typing import Final

IGNORE_INDEX: Final = -100
"""Label of a position that is not supervised."""

IMAGE_TOKEN_INDEX: Final = -200
"""Placeholder in `input_ids`, one per image. Negative, so that no tokenizer can emit it."""

DEFAULT_IMAGE_TOKEN: Final = "<image>"
"""How an image is written in a sample's text."""

DEFAULT_IMAGE_PATCH_TOKEN: Final = "<im_patch>"
DEFAULT_IM_START_TOKEN: Final = "<im_start>"
DEFAULT_IM_END_TOKEN: Final = "<im_end>"
