"""Tells the tracker of every checkpoint that a run commits or removes, and of its result, with what was measured."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.assembly.parts import find_projector
from pipeline.checkpoint.manifest import CheckpointError, Manifest
from pipeline.checkpoint.resume import run_storage
from pipeline.checkpoint.verification import read_manifest
from pipeline.config import ExperimentConfig, Stage
from pipeline.index.dataset import SourceFacts
from pipeline.launch.metrics_tail import measured_before
from pipeline.run_folder.metrics_log import METRICS_FILE
from pipeline.run_folder.place import working_folder

if TYPE_CHECKING:
    from pipeline.tracking import RunTracker

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_POLL_OBJECTS_S = 30.0  # a request each
_METRICS = ("train/", "eval/", "data/samples_trained")
_ALIASES = {"pretrain": "pretrained", "finetune": None}


class ModelWatch:
    """Follows the checkpoints of a run until closed."""

    def __init__(self, config: ExperimentConfig, data_digest: str, tracker: RunTracker) -> None:
        """Watch the checkpoints of a config.

        Args:
            config: the run.
            data_digest: fingerprint of its data.
            tracker: is told.
        """
        self._config, self._digest, self._tracker = config, data_digest, tracker
        self._storage = run_storage(config.run_dir, config.checkpoint)
        self._there: dict[str, Manifest] = {}
        """Checkpoints that were told, by name, and not yet removed."""
        self._told = tracker.model_names()
        self._source_run: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="model-watch", daemon=True)

    def __enter__(self) -> ModelWatch:
        """Start watching."""
        self._source_run = self._name_sources()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Tell what is left, then stop; a second call does nothing."""
        self._closed.set()
        self._thread.join()

    def tell_result(self, output: Path, with_files: bool) -> None:
        """Log the result of a finished run and register it.

        Args:
            output: projector file, or folder of a model or of adapters.
            with_files: whether to upload it.
        """
        newest = max(self._there.values(), key=lambda manifest: manifest.step, default=None)
        step, score = (newest.step, _training_loss(newest)) if newest else (0, None)
        kind = "projector" if self._config.stage == "pretrain" else "model"
        self._source_run = self._name_sources()  # a run before this one may have been sent meanwhile
        adapters = kind == "model" and self._config.lora.rank is not None
        self._log(kind, "adapters" if adapters else kind, step, score, output if with_files else None, registered=True)

    def _name_sources(self) -> str | None:
        """Name the models of other runs that this run starts from; returns the run of the last one."""
        from pipeline.tracking import source_models

        parts = self._config.model
        projector = find_projector(parts.pretrain_mm_mlp_adapter)
        sources = source_models(projector, parts.language_model, self._tracker.tracking_uri)
        for source in sources:
            self._tracker.use_model(*source)
        return sources[-1].run_id if sources else None

    def _follow(self) -> None:
        interval_s = _POLL_OBJECTS_S if "://" in self._storage.location else _POLL_S
        while not self._closed.wait(interval_s):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            found = {generation.name: generation for generation in self._storage.generations()}
            for name in self._there.keys() - found.keys():
                del self._there[name]
                self._tracker.tag_model(_model_name(name), {"ray_llava.checkpoint": "removed"})
            for name, generation in found.items():
                if name in self._there:
                    continue
                manifest = read_manifest(self._storage, generation)
                self._there[name] = manifest
                if _model_name(name) not in self._told:
                    score = _training_loss(manifest)
                    self._log(_model_name(name), "checkpoint", manifest.step, score, None, registered=False)
                    self._told.add(_model_name(name))
        except (
            CheckpointError,
            OSError,
        ) as error:  # being removed, or storage is away for a moment
            logger.debug("%s: not all checkpoints were told to the tracker: %s", self._storage.location, error)

    def _log(
        self, name: str, kind: Any, step: int, score: float | None, path: Path | None, *, registered: bool
    ) -> None:
        from pipeline.tracking.operations import DATA_TAG, SOURCE_RUN_TAG, LogModel, RegistryEntry

        config = self._config
        entry = measured_before(working_folder(config.run_dir) / METRICS_FILE, step) or {"metrics": {}, "time_s": None}
        metrics = {key: value for key, value in entry["metrics"].items() if key.startswith(_METRICS)}
        tags = {"ray_llava.stage": config.stage, DATA_TAG: self._digest}
        if self._source_run is not None:
            tags[SOURCE_RUN_TAG] = self._source_run
        if kind == "checkpoint":
            tags["ray_llava.checkpoint"] = f"{self._storage.location}/{name}"
        params = {
            "language_model": config.model.language_model,
            "vision_tower": json.dumps(config.model.vision_tower).strip('"'),
            "template": str(config.data.template),
            "learning_rate": f"{config.training.learning_rate:g}",
            "global_batch_size": str(config.training.global_batch_size),
        }
        self._tracker.log_model(
            LogModel(
                time_s=time.time(),
                name=name,
                model_type=kind,
                step=step,
                path=None if path is None else str(path),
                tags=tags,
                params=params,
                metrics=metrics if score is None else metrics | {"train/loss_smoothed": score},
                metrics_time_s=entry["time_s"],
                dataset=(dataset_name(config.name), self._digest),
                entry=RegistryEntry(
                    name=registry_name(config.tracking.experiment, config.stage),
                    alias=_ALIASES[config.stage],
                    score=score,
                )
                if registered
                else None,
            )
        )


def _training_loss(manifest: Manifest) -> float | None:
    """Return the smoothed training loss, if it is what retention compares."""
    return None if "score_metric" in manifest.state else manifest.score


def log_sources(tracker: RunTracker, name: str, digest: str, sources: Sequence[SourceFacts]) -> None:
    """Name the data of a run as inputs: every source, and the mix where there are several.

    Args:
        tracker: of the run.
        name: of the run.
        digest: fingerprint of all data.
        sources: of the data.
    """
    for source in sources:
        tracker.log_dataset(
            name=source.name or dataset_name(name),
            digest=source.fingerprint,
            shards=source.shards,
            num_samples=source.num_usable,
            context="training",
        )
    if len(sources) > 1:
        shards = [url for source in sources for url in source.shards]
        total = sum(source.num_usable for source in sources)
        tracker.log_dataset(
            name=dataset_name(name), digest=digest, shards=shards, num_samples=total, context="training mix"
        )


def dataset_name(run_name: str) -> str:
    """Return what all data of a run is called."""
    return f"{run_name}-shards"


def registry_name(experiment: str, stage: Stage) -> str:
    """Return the name of a stage's entry in the model registry; runs of one experiment share it."""
    return re.sub(r"[/:]", "-", f"{experiment}-{stage}")


def _model_name(generation: str) -> str:
    """Return the name of a checkpoint's model: `step-00000100`, without what an object store's generation adds."""
    return "-".join(generation.split("-")[:2])
