"""The cache as the data workers read it: images by shard and content, or a loud error.

Only images are replaced: samples are read, verified and rejected as without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.index.index import ShardInfo
from pipeline.stream.feature_files import CachedImage, open_shard, table_file

HOW_TO_FILL: Final = "run `ray-llava cache-features` with this config"


class FeatureCacheError(RuntimeError):
    """The cache does not hold what it should; nothing is computed in its place."""


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

    def read(self, shard: ShardInfo, sample_key: str, image_key: bytes) -> CachedImage:
        """Return an image of a sample of a shard.

        Raises:
            FeatureCacheError: it is not there; names the sample.
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
