"""The experiment config: one YAML per run, validated once, never edited afterwards.

A file per section; building things from the config is left to the components.
"""

from pipeline.config.data import DataConfig, TemplateName
from pipeline.config.evaluation import BestMetric, EvaluationConfig
from pipeline.config.experiment import ExperimentConfig
from pipeline.config.load import ConfigError, load_config, parse_config
from pipeline.config.lora import LoraConfig
from pipeline.config.mix import MixChange, SourceConfig
from pipeline.config.model import ModelConfig
from pipeline.config.recipe import Recipe, Stage
from pipeline.config.resume import check_record_resumable, check_resumable, fields_with_policy
from pipeline.config.running import CheckpointConfig, ClusterConfig, TrackingConfig
from pipeline.config.section import Fixed, Free, OnResume, Section
from pipeline.config.training import CostConfig, TrainingConfig

__all__ = [
    "BestMetric",
    "CheckpointConfig",
    "ClusterConfig",
    "ConfigError",
    "CostConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "Fixed",
    "Free",
    "LoraConfig",
    "MixChange",
    "ModelConfig",
    "OnResume",
    "Recipe",
    "Section",
    "SourceConfig",
    "Stage",
    "TemplateName",
    "TrackingConfig",
    "TrainingConfig",
    "check_record_resumable",
    "check_resumable",
    "fields_with_policy",
    "load_config",
    "parse_config",
]
