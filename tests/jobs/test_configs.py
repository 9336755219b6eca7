"""The included configs are valid, and those named after a publication hold its values."""

import pytest

from jobs.config_source import find_config, included_configs, read_config
from pipeline.config import ExperimentConfig


@pytest.mark.parametrize("name", included_configs())
def test_included_config_is_valid_once_it_is_given_data(name: str) -> None:
    config = read_config(name, ["data.shards=[a.tar]"])
    assert config.name
    assert config.stage in name or "pretrain" not in name


def llava_v15(stage: str) -> ExperimentConfig:
    return read_config(f"llava_v15_7b_{stage}", ["data.shards=[a.tar]"], stage)


def test_llava_v15_configs_hold_the_published_hyperparameters() -> None:
    both = {
        "vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
    }
    schedule = {"num_epochs": 1, "weight_decay": 0.0, "warmup_ratio": 0.03, "lr_schedule": "cosine"}
    pretrain, finetune = llava_v15("pretrain"), llava_v15("finetune")
    for config in (pretrain, finetune):
        assert both.items() <= config.model.model_dump().items()
        assert schedule.items() <= config.training.model_dump().items()
        assert (config.training.precision, config.data.max_length) == ("bfloat16", 2048)
    assert (pretrain.training.learning_rate, pretrain.training.global_batch_size) == (1e-3, 256)
    assert (finetune.training.learning_rate, finetune.training.global_batch_size) == (2e-5, 128)
    assert (pretrain.data.template, finetune.data.template) == ("plain", "v1")
    assert (pretrain.data.image_aspect_ratio, finetune.data.image_aspect_ratio) == ("crop", "pad")


def test_config_is_found_by_path_before_by_name(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert find_config("nlvr_pretrain").name == "nlvr_pretrain.yaml"
    assert find_config("nlvr_pretrain").is_absolute()
    assert str(find_config("mine.yaml")) == "mine.yaml"
