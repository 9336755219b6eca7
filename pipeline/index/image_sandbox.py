"""Measuring images in a process that may die: what the index does about a shard that ended the process reading it.

An image that ends its process, alone and twice, is a defect of its sample (`decoder_crash`) like any other.
"""

from __future__ import annotations

import os
from typing import Self

from pipeline.errors import DataError, Reason
from pipeline.index.scan import Checks, ImageFacts, facts_of
from pipeline.parallel.children import Child, ChildDiedError
from pipeline.parallel.exits import OUT_OF_MEMORY_EXIT, SAMPLE_TIMEOUT_S, limit_memory
from pipeline.samples.schema import Sample


class ImageSandbox:
    """Replaces `pipeline.index.scan.image_facts`; a context manager."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks
        self._child: Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def image_facts(self, sample: Sample, checks: Checks) -> list[ImageFacts]:
        """Return the facts about each image, after the check that was asked for.

        Raises:
            DataError: an image does not pass, or ended the child twice.
        """
        assert checks == self._checks
        facts = {image: self._facts(image) for image in dict.fromkeys(sample.images)}
        return [facts[image] for image in sample.images]

    def _facts(self, image: bytes) -> ImageFacts:
        try:
            return self._ask(image)
        except ChildDiedError:
            try:
                return self._ask(image)  # in another child that has seen nothing else
            except ChildDiedError as death:
                raise DataError(Reason.DECODER_CRASH, f"{death} when decoded alone in a sandbox") from death

    def _ask(self, image: bytes) -> ImageFacts:
        if self._child is None:
            self._child = Child(_Measure(self._checks))
        self._child.send(image)
        try:
            found: ImageFacts = self._child.result(SAMPLE_TIMEOUT_S)
        except ChildDiedError:
            self._close()
            raise
        return found

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Measure:
    """What the child does; its memory is limited before the first image."""

    def __init__(self, checks: Checks) -> None:
        self._checks, self._is_limited = checks, False

    def __call__(self, image: bytes) -> ImageFacts:
        if not self._is_limited:
            limit_memory()
            self._is_limited = True
        try:
            return facts_of(image, self._checks)
        except MemoryError:
            os._exit(OUT_OF_MEMORY_EXIT)
