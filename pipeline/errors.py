"""Data defects: a closed list of reason codes, and the errors that carry them.

A defect of content is permanent (the same bytes give the same verdict) and is raised as `DataError`; failures of
storage are transient and stay `OSError`, so that a retry never changes which samples a run trains on.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why a shard or a sample was refused; the values are stable and appear in the index and in metrics."""

    SHARD_EMPTY = "shard_empty"
    SHARD_NOT_TAR = "shard_not_tar"
    SHARD_TRUNCATED = "shard_truncated"
    SHARD_CORRUPT_HEADER = "shard_corrupt_header"
    SHARD_TRAILING_DATA = "shard_trailing_data"
    SHARD_KEY_SHARED = "shard_key_shared"
    MEMBER_TYPE_FORBIDDEN = "member_type_forbidden"
    MEMBER_TOO_LARGE = "member_too_large"
    UNKNOWN_MEMBER = "unknown_member"
    DUPLICATE_MEMBER = "duplicate_member"
    SAMPLE_TOO_LARGE = "sample_too_large"
    DUPLICATE_KEY = "duplicate_key"
    MEMBERS_NOT_CONTIGUOUS = "members_not_contiguous"
    MISSING_IMAGE = "missing_image"
    MISSING_FILES = "missing_files"
    MISSING_ANNOTATION = "missing_annotation"
    AMBIGUOUS_ANNOTATION = "ambiguous_annotation"
    UNREFERENCED_IMAGE = "unreferenced_image"
    MEDIA_UNREAD = "media_unread"
    TEXT_UNREAD = "text_unread"
    REMOTE_IMAGE_FORBIDDEN = "remote_image_forbidden"
    CONTENT_HASH_MISMATCH = "content_hash_mismatch"
    IMAGE_UNSUPPORTED_FORMAT = "image_unsupported_format"
    IMAGE_MODE_UNSUPPORTED = "image_mode_unsupported"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_DEGENERATE = "image_degenerate"
    VIDEO_UNSUPPORTED_FORMAT = "video_unsupported_format"
    VIDEO_TRUNCATED = "video_truncated"
    VIDEO_CORRUPT = "video_corrupt"
    VIDEO_TOO_LONG = "video_too_long"
    JSON_INVALID = "json_invalid"
    JSON_TOO_LARGE = "json_too_large"
    JSON_TOO_DEEP = "json_too_deep"
    TEXT_INVALID_UNICODE = "text_invalid_unicode"
    TEXT_CONTROL_TOKEN = "text_control_token"
    CONVERSATION_EMPTY = "conversation_empty"
    TURN_EMPTY = "turn_empty"
    ROLE_UNKNOWN = "role_unknown"
    ROLE_ORDER = "role_order"
    NO_ASSISTANT = "no_assistant"
    IMAGE_TOKEN_MISMATCH = "image_token_mismatch"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"
    TEMPLATE_REFUSED = "template_refused"
    NOT_A_CAPTION = "not_a_caption"
    TOO_LONG = "too_long"
    DECODER_CRASH = "decoder_crash"


_REPACK = "write the shard again; if it was copied, compare its size with the source"

ADVICE: dict[Reason, str] = {
    Reason.SHARD_EMPTY: "remove the file or write the shard again",
    Reason.SHARD_NOT_TAR: "pass uncompressed WebDataset tar shards",
    Reason.SHARD_TRUNCATED: _REPACK,
    Reason.SHARD_CORRUPT_HEADER: _REPACK,
    Reason.SHARD_TRAILING_DATA: "one archive per shard: do not concatenate tar files, write the shard again",
    Reason.SHARD_KEY_SHARED: "give each sample its own KEY before the first dot, or set data.sample_keys=extension",
    Reason.MEMBER_TYPE_FORBIDDEN: "store regular files only (tar -h follows links)",
    Reason.MEMBER_TOO_LARGE: "shrink the file or leave it out of the shard",
    Reason.UNKNOWN_MEMBER: "name members KEY.txt, KEY.json, KEY.jpg or KEY.N.jpg; for dots in KEY set data.sample_keys",
    Reason.DUPLICATE_MEMBER: "keep one file per name, one sample per key",
    Reason.SAMPLE_TOO_LARGE: "split the sample, or leave out or shrink some of its images",
    Reason.DUPLICATE_KEY: "give every sample its own key, or set data.allow_duplicate_keys",
    Reason.MEMBERS_NOT_CONTIGUOUS: "keep the files of a sample together (tar --sort=name)",
    Reason.MISSING_FILES: "fetch the missing files, or convert without --strict",
    Reason.MISSING_IMAGE: "add the image to the shard or remove the reference",
    Reason.MISSING_ANNOTATION: "add KEY.txt (caption) or KEY.json (conversation)",
    Reason.AMBIGUOUS_ANNOTATION: "keep either KEY.txt or the conversation in KEY.json",
    Reason.UNREFERENCED_IMAGE: "name every image of the sample in `image`, or remove the extra file",
    Reason.MEDIA_UNREAD: "show it in `image` with an <image> place, or set the field aside with --ignore-field",
    Reason.TEXT_UNREAD: "keep one text, or set the field aside with --ignore-field",
    Reason.REMOTE_IMAGE_FORBIDDEN: "put the image into the shard; nothing is downloaded",
    Reason.CONTENT_HASH_MISMATCH: "the shard changed or storage returned other bytes: rebuild the index or restore it",
    Reason.IMAGE_UNSUPPORTED_FORMAT: "convert the image to JPEG, PNG, WebP, BMP, TIFF or AVIF",
    Reason.IMAGE_MODE_UNSUPPORTED: "convert the image to 8-bit RGB or grey",
    Reason.IMAGE_TRUNCATED: "fetch the image again",
    Reason.IMAGE_CORRUPT: "fetch the image again or convert it",
    Reason.IMAGE_TOO_LARGE: "shrink the image or raise data.max_image_pixels",
    Reason.IMAGE_DEGENERATE: "remove the image; it is too thin to show anything",
    Reason.VIDEO_UNSUPPORTED_FORMAT: "convert the video to MP4 (H.264) or WebM (VP9)",
    Reason.VIDEO_TRUNCATED: "fetch the video again",
    Reason.VIDEO_CORRUPT: "fetch the video again or convert it",
    Reason.VIDEO_TOO_LONG: "cut the video into shorter ones",
    Reason.JSON_INVALID: "fix the JSON",
    Reason.JSON_TOO_LARGE: "split the conversation",
    Reason.JSON_TOO_DEEP: "flatten the JSON",
    Reason.TEXT_INVALID_UNICODE: "store text as valid UTF-8 without NUL or lone surrogates",
    Reason.TEXT_CONTROL_TOKEN: "remove the control token from the text; this tokenizer cannot spell it as text",
    Reason.CONVERSATION_EMPTY: "add turns or remove the sample",
    Reason.TURN_EMPTY: "fill the turn or remove it",
    Reason.ROLE_UNKNOWN: "use human/gpt/system or user/assistant/system",
    Reason.ROLE_ORDER: "alternate user and assistant, starting with the user and ending with the assistant",
    Reason.NO_ASSISTANT: "add an answer or remove the sample",
    Reason.IMAGE_TOKEN_MISMATCH: "add the missing image or remove the placeholder",
    Reason.NO_SUPERVISED_TOKENS: "shorten the question or raise max_length",
    Reason.TEMPLATE_REFUSED: "change the conversation, or choose one of the built-in templates",
    Reason.NOT_A_CAPTION: "give the sample one caption, or set data.template to one for conversations",
    Reason.TOO_LONG: "shorten the text, use fewer images or raise max_length",
    Reason.DECODER_CRASH: "inspect the image with care; it ended the decoding process",
}


def advice(reason: Reason) -> str:
    """Return what a user can do about a defect, one clause without a final stop."""
    return ADVICE[reason]


class TransientError(RuntimeError):
    """Something outside the program went wrong; starting again may help."""


class DataError(ValueError):
    """A sample cannot be used because of its content.

    Attributes:
        reason: what kind of defect.
        what: what was expected and found, without user text.
        shard: URL or file name of the shard, empty while unknown.
        key: key of the sample, empty for whole-shard defects or while unknown.
    """

    def __init__(self, reason: Reason, what: str, *, shard: str = "", key: str = "") -> None:
        self.reason, self.what, self.shard, self.key = reason, what, shard, key
        # keys and shard names come from outside: escaped, so that they cannot forge log lines
        place = ", ".join(part for part in (_printable(shard), f"key {_printable(key)}" if key else "") if part)
        super().__init__(f"{place}: {what}; {advice(reason)}" if place else f"{what}; {advice(reason)}")

    @property
    def where(self) -> tuple[str, str]:
        """Shard and key."""
        return self.shard, self.key

    def at(self, *, shard: str = "", key: str = "") -> Self:
        """Return the same error with the place filled in where it was unknown."""
        return type(self)(self.reason, self.what, shard=self.shard or shard, key=self.key or key)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the fields when the error crosses a process boundary."""
        return _rebuild, (type(self), self.reason, self.what, self.shard, self.key)


class ShardError(DataError):
    """A whole shard is defective from some byte on."""


def _rebuild(kind: type[DataError], reason: Reason, what: str, shard: str, key: str) -> DataError:
    return kind(reason, what, shard=shard, key=key)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]
