"""Checkpoints as transactions: one counts only once its manifest with all digests, written last, is in place.

Tensors in safetensors, all else in the manifest, never pickle. A checkpoint is `GROUP.safetensors` per group of tensors
(model, optimizer, random), or, when every rank writes its own share, `GROUP-RANK.safetensors` in the Hugging Face
format of torch.distributed.checkpoint, which any number of ranks can read. Ranks prove their shares by
`part-RANK.json`, `{NAME: [size, sha256]}`, or say there why they could not write them, `{"error": TEXT}`; rank 0
gathers these into the manifest. A process killed anywhere leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

from pipeline.checkpoint.cache import local_folder
from pipeline.checkpoint.manifest import MANIFEST_NAME, CheckpointError, FileProof, Manifest, encode_manifest
from pipeline.checkpoint.retention import superseded
from pipeline.checkpoint.storage import CheckpointStorage, open_storage
from pipeline.checkpoint.tensor_file import Piece, whole, write_tensors
from pipeline.checkpoint.verification import Position, newest_verified, read_manifest
from pipeline.run_folder.fault_points import reached

# Meanwhile, ranks whose share is written, or failed, may wait in a collective, which gives up after 10 minutes.
_PARTS_TIMEOUT_S = 480.0  # from the beginning of the write, which is the same on all ranks
_LAST_PARTS_S = 60.0  # at least so long after rank 0's own share, however long that took
_POLL_S = 0.05  # per rank that is awaited
_MAX_POLL_S = 5.0

logger = logging.getLogger(__name__)


class MissingShareError(OSError):
    """Another rank did not write its share of a checkpoint; the cause is with that rank."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, on this machine's disk."""

    folder: Path
    step: int
    """Optimizer steps done; the next one to run."""
    state: dict[str, Any]
    """Everything besides tensors: fingerprints, counters, config."""

    def specs(self, group: str) -> dict[str, TensorStorageMetadata]:
        """Return shape and type of every whole tensor of a group."""
        names: set[str] = set()
        for path in [self.folder / f"{group}.safetensors", *self.folder.glob(f"{group}-*.safetensors")]:
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    names.update(file.keys())
        found = HuggingFaceStorageReader(str(self.folder)).read_metadata().state_dict_metadata
        return {name: spec for name, spec in found.items() if name in names and isinstance(spec, TensorStorageMetadata)}

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Load a group of tensors, whole, on the CPU."""
        specs = self.specs(group)
        targets = {name: torch.empty(spec.size, dtype=spec.properties.dtype) for name, spec in specs.items()}
        self.load_into(targets)
        return targets

    def load_into(self, targets: dict[str, Tensor]) -> None:
        """Fill tensors, sharded or whole, by name; this rank reads its own shards only."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # meant: every rank for itself
            load_state_dict(dict(targets), storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)


@dataclass(frozen=True)
class SaveJob:
    """One rank's share of a checkpoint, complete in host memory."""

    step: int
    """Optimizer steps done."""
    groups: Mapping[str, Mapping[str, Piece]]
    """Groups of tensors, a file each."""
    state: Mapping[str, Any]
    """JSON-serialisable facts; used on rank 0."""
    score: float | None = None
    """For retention, lower is better."""
    token: str = field(default_factory=lambda: new_token(0))
    """The same on all ranks, another for every save."""
    rank: int = 0
    num_writers: int = 1
    """Ranks that write; 1 when rank 0 has everything."""


def new_token(attempt: int) -> str:
    """Return a name part that no other save has; those of later attempts sort after it."""
    return f"{attempt:04d}-{secrets.token_hex(4)}"


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: str | Path | CheckpointStorage,
        keep_last: int,
        may_commit: Callable[[], None] = lambda: None,
        keep_best: int = 0,
        start_step: int | None = None,
        score_metric: str | None = None,
    ) -> None:
        """Use a folder or an object store.

        Args:
            folder: where the checkpoints are, as a path, a URL, or opened.
            keep_last: newest checkpoints kept.
            may_commit: called right before a checkpoint becomes visible; raises to prevent it.
            keep_best: checkpoints with the lowest score kept besides.
            start_step: where the run continued. Checkpoints of later steps are there because they are damaged:
                retention neither counts nor removes them.
            score_metric: what scores are made from; those made from something else are not compared.
        """
        self.storage = open_storage(folder) if isinstance(folder, str | Path) else folder
        self._keep_last, self._keep_best, self._may_commit = keep_last, keep_best, may_commit
        self._score_metric = score_metric
        self._hurried = threading.Event()
        self._damaged: set[str] = set()
        if start_step is not None:
            self._damaged = {one.name for one in self.storage.generations() if one.step > start_step}

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        score: float | None = None,
    ) -> str:
        """Write a checkpoint of whole tensors; returns its name once it is durable.

        Args:
            step: optimizer steps done.
            tensors: groups of tensors, one safetensors file each.
            state: JSON-serialisable facts.
            score: what retention compares, lower is better.

        Raises:
            OSError: the storage refused (full, read-only); earlier checkpoints are untouched.
        """
        pieces = {name: {key: whole(tensor) for key, tensor in group.items()} for name, group in tensors.items()}
        return self.write(SaveJob(step, pieces, state, score))

    def write(self, job: SaveJob) -> str:
        """Write one rank's share; on rank 0, also wait for the others and commit. Returns the checkpoint's name.

        Raises:
            OSError: the storage refused, or another rank's share did not come; earlier checkpoints are untouched.
        """
        deadline = time.monotonic() + _PARTS_TIMEOUT_S
        place = self.storage.begin(job.step, job.token)
        try:
            files = self._write_files(place, job)
            if job.rank != 0:
                return place
            deadline = max(deadline, time.monotonic() + _LAST_PARTS_S)
            files |= self._gather_parts(place, range(1, job.num_writers), deadline)
            manifest = Manifest(job.step, files, {**job.state, "step": job.step}, job.score)
            name = self._commit(place, manifest)
        except BaseException as error:
            if job.rank == 0:
                self.storage.discard(place)
            else:
                self._report_failure(place, job.rank, error)
            raise
        self._prune()
        return name

    def hurry(self) -> None:
        """Stop waiting for the shares of ranks that may be gone."""
        self._hurried.set()

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose every byte verifies; None when there is none."""
        position = newest_verified(self.storage)
        return None if position is None else self.open(position)

    def open(self, position: Position) -> Checkpoint:
        """Return a checkpoint that was verified before, fetched to this machine if it is in an object store.

        Raises:
            CheckpointError: it arrived damaged.
        """
        folder, manifest = local_folder(self.storage, position)
        return Checkpoint(folder, manifest.step, manifest.state)

    def _write_files(self, place: str, job: SaveJob) -> dict[str, FileProof]:
        files = {}
        for group, pieces in job.groups.items():
            if pieces:
                name = f"{group}.safetensors" if job.num_writers == 1 else f"{group}-{job.rank:05d}.safetensors"
                files[name] = self._write_group(place, name, pieces)
                reached("checkpoint.file_written")
        if job.rank != 0:
            self._write_bytes(place, _part_name(job.rank), json.dumps(files).encode())
            reached("checkpoint.part_written")
        return files

    def _write_group(self, place: str, name: str, pieces: Mapping[str, Piece]) -> FileProof:
        return self.storage.write(place, name, lambda stream: write_tensors(stream, pieces))

    def _write_bytes(self, place: str, name: str, content: bytes) -> None:
        self.storage.write(place, name, lambda stream: stream.write(content))

    def _report_failure(self, place: str, rank: int, error: BaseException) -> None:
        """Tell rank 0 not to wait for this rank's share, if the storage lets it; its proof stays, once it is there."""
        with suppress(Exception):
            if not self.storage.exists(place, _part_name(rank)):
                told = json.dumps({"error": str(error) or type(error).__name__})
                self._write_bytes(place, _part_name(rank), told.encode())

    def _gather_parts(self, place: str, ranks: Iterable[int], deadline: float) -> dict[str, FileProof]:
        files: dict[str, FileProof] = {}
        for rank in self._as_they_come(place, ranks, deadline):
            with self.storage.open(place, _part_name(rank)) as file:
                content = file.read()
            part = json.loads(content)
            if "error" in part:
                raise MissingShareError(
                    f"checkpoint {self.storage.location}/{place}: rank {rank} could not write its share: "
                    f"{part['error']}"
                )
            files |= {name: FileProof(*proof) for name, proof in part.items()}
            files[_part_name(rank)] = FileProof(len(content), hashlib.sha256(content).hexdigest())
        return files

    def _as_they_come(self, place: str, ranks: Iterable[int], deadline: float) -> Iterator[int]:
        """Yield ranks as soon as they report, so that a failure is seen before slower ranks finish."""
        awaited = set(ranks)
        while awaited:
            for rank in sorted(awaited):
                if self.storage.exists(place, _part_name(rank)):
                    awaited.remove(rank)
                    yield rank
            if awaited and (self._hurried.is_set() or time.monotonic() > deadline):
                raise MissingShareError(
                    f"checkpoint {self.storage.location}/{place}: rank {min(awaited)} did not write its share; the "
                    "checkpoint before it stays. All ranks must see this folder: use a shared one, or s3://"
                )
            # pauses that grow with the number of ranks, so that the number of requests to the storage does not
            self._hurried.wait(min(_POLL_S * len(awaited), _MAX_POLL_S))

    def _commit(self, place: str, manifest: Manifest) -> str:
        self._may_commit()
        self._write_bytes(place, MANIFEST_NAME, encode_manifest(manifest))
        reached("checkpoint.manifest_written")
        self._may_commit()  # writing may have taken minutes
        name = self.storage.commit(place, manifest.step)
        self._damaged.discard(name)
        reached("checkpoint.committed")
        return name

    def _prune(self) -> None:
        """Remove what retention lets go; what cannot be removed stays until the next save tries again."""
        try:
            doomed = superseded(self._scores(), self._keep_last, self._keep_best)
        except OSError as error:
            logger.warning("%s was not listed, so old checkpoints stay: %s", self.storage.location, error)
            return
        for name in doomed:
            try:
                self.storage.remove(name)
            except OSError as error:
                where = f"{self.storage.location}/{name}"
                logger.warning("old checkpoint %s was not removed: %s; the next save tries again", where, error)
        reached("checkpoint.pruned")

    def _scores(self) -> dict[str, float | None]:
        """Return what retention compares; a checkpoint with an unreadable manifest neither counts nor goes."""
        scores: dict[str, float | None] = {}
        for generation in self.storage.generations():
            if generation.name in self._damaged:
                continue
            try:
                manifest = read_manifest(self.storage, generation)
                is_comparable = manifest.state.get("score_metric") == self._score_metric
                scores[generation.name] = manifest.score if is_comparable else None
            except CheckpointError:
                continue  # reported when a run looks for a place to continue
            except OSError as error:
                where = f"{self.storage.location}/{generation.name}"
                logger.warning("checkpoint %s was not read, so it stays: %s", where, error)
        return scores


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"
