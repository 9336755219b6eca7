"""The sections that decide which model a stage trains, handed on together."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pipeline.config.data import DataConfig
from pipeline.config.lora import LoraConfig
from pipeline.config.model import ModelConfig
from pipeline.config.training import TrainingConfig

Stage = Literal["pretrain", "finetune"]


class Recipe(NamedTuple):
    """A stage's model: its parts, what of them learns and in which arithmetic, and how samples reach it."""

    stage: Stage
    model: ModelConfig
    lora: LoraConfig
    training: TrainingConfig
    data: DataConfig
