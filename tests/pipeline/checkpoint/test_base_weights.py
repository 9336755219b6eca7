"""Weight files that are exchanged under a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoint import base_weights
from pipeline.checkpoint.base_weights import check_same_weights, digest_weights
from pipeline.config import ConfigError, ModelConfig


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    for name in ("language", "tower"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)
    return ModelConfig(language_model=str(tmp_path / "language"), vision_tower=str(tmp_path / "tower"))


@pytest.mark.parametrize("part", ["language", "tower"])
@pytest.mark.parametrize("place", [0, 2_700_000, -1])
def test_other_weights_are_refused_by_name(model: ModelConfig, tmp_path: Path, part: str, place: int) -> None:
    before = digest_weights(model)
    check_same_weights(before, model)
    path = tmp_path / part / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    base_weights._digest.cache_clear()  # another process
    with pytest.raises(ConfigError, match=rf"weight files in {tmp_path / part} are not those"):
        check_same_weights(before, model)


def test_hub_ids_and_checkpoints_without_digests_are_taken_as_they_are(model: ModelConfig) -> None:
    assert digest_weights(ModelConfig(language_model="lmsys/vicuna-7b-v1.5", vision_tower="openai/clip")) == {}
    check_same_weights({}, model)
