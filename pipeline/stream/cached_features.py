"""The cache as the data workers read it: images by shard and content, or a loud error.

Only images are replaced: samples are read, verified and rejected as without it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.index.index import ShardInfo
from pipeline.stream.feature_files import (
    HOW_TO_FILL,
    CachedImage,
    FeatureCacheError,
    ShardReader,
    cached_shards,
    open_shard,
    table_file,
)

__all__ = ["HOW_TO_FILL", "FeatureCache", "FeatureCacheError"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureCache:
    """Cached features of one key; picklable."""

    folder: str
    """Of that key."""
    revision: str
    """SHA-256 of the tower that computed them."""

    def has(self, shard: ShardInfo) -> bool:
        """Whether a shard was finished."""
        return table_file(Path(self.folder), shard.sha256).is_file()

    def check_files(self) -> None:
        """Check every table by its digest, and every file of features by its size.

        Raises:
            FeatureCacheError: names the first file that is damaged or lost.
        """
        for shard in cached_shards(Path(self.folder)):
            ShardReader(Path(self.folder), shard).check_files()

    def verify(self) -> None:
        """Read everything and compare every digest.

        Raises:
            FeatureCacheError: names the first file that is damaged or lost.
        """
        for shard in cached_shards(Path(self.folder)):
            ShardReader(Path(self.folder), shard).verify()

    def is_sound(self, shard: ShardInfo) -> bool:
        """Whether a shard was finished and every byte of its features is what was written; says what is not."""
        if not self.has(shard):
            return False
        try:
            ShardReader(Path(self.folder), shard.sha256).verify()
        except FeatureCacheError as error:
            logger.warning("%s", error)
            return False
        return True

    def read(self, shard: ShardInfo, sample_key: str, image_key: bytes) -> CachedImage:
        """Return an image of a sample of a shard.

        Raises:
            FeatureCacheError: it is not there, or damaged; names the sample or the file.
        """
        try:
            found = open_shard(self.folder, shard.sha256).find(image_key)
        except FileNotFoundError as error:
            raise FeatureCacheError(
                f"{shard.url}: its features are gone from {self.folder} ({error}); {HOW_TO_FILL}"
            ) from error
        if found is None:
            table = table_file(Path(self.folder), shard.sha256).name
            raise FeatureCacheError(
                f"{shard.url}, key {ascii(sample_key)[1:-1]}: an image has no features in {self.folder}; remove "
                f"{table} there and {HOW_TO_FILL}"
            )
        return found
